"""A check of one's own for `p2l votes ask --check examples/check.py`: what a good answer to your prompts must hold."""


def check(answer, reference, row):
    """True or false, or a number from 0 to 1.

    `row` is the prompt's row of the file, `reference` its value in the column that --reference names.
    """
    return bool(answer.strip()) and "as an AI" not in answer
