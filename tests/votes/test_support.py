"""How much votes know of each model."""

import numpy as np
import pytest

from p2l_plugins.outcomes import A
from p2l_plugins.support import Support
from p2l_plugins.votes.support import effective_number, support
from p2l_plugins.votes.votes import VoteBuilder


def votes(*rows):
    builder = VoteBuilder()
    for prompt, pair, *rest in rows:
        weight, category = (*rest, 1.0, None)[:2] if len(rest) < 2 else rest
        builder.add((prompt,), pair, A, weight=weight, category=category)
    return builder.votes()


def test_votes_on_one_prompt_are_one_and_models_without_votes_are_left_out():
    found = support([votes(("p", ("x", "y")), ("p", ("x", "z")), ("p", ("y", "x")), ("q", ("x", "y")))])
    assert found["x"] == Support(2, 1, 1, pytest.approx(1.6), pytest.approx(2 / 1.6**0.5, abs=1e-12))  # weights 3 and 1
    assert found["z"].votes == 1.0
    assert set(found) == {"x", "y", "z"}


def test_the_same_prompt_of_two_judges_is_one_prompt_and_two_sets_but_no_more_votes():
    one = votes(("p", ("x", "y"), 1.0, "code"), ("q", ("x", "y"), 1.0, "maths"))
    found = support([one, one])["x"]
    assert (found.prompts, found.sets, found.kinds, found.votes) == (2, 2, 2, 2.0)


def test_files_without_categories_are_a_kind_each():
    assert support([votes(("p", ("x", "y"))), votes(("q", ("x", "y")))])["y"].kinds == 2


def test_uneven_weights_count_less():
    assert effective_number(np.array([3.0, 3.0, 3.0])) == pytest.approx(3)
    assert effective_number(np.array([100.0, 1.0, 1.0])) == pytest.approx(102**2 / 10002)


def test_two_supports_add_and_their_errors_weigh_by_precision():
    both = Support(3, 1, 2, 3.0, 1.0) + Support(1, 1, 1, 1.0, 1.0)
    assert both == Support(4, 2, 3, 4.0, pytest.approx(0.5**0.5))
    assert (Support(1, 1, 1, 1.0) + Support(1, 1, 1, 1.0)).stderr is None
