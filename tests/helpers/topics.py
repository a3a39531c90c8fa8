"""Votes with a known structure: two topics, on each of which another model is good."""

TOPICS = {"sum": ("apple", "pear", "plum", "fig"), "code": ("loop", "array", "class", "stack")}
MODELS = ("coder", "counter", "weak")


def topic_votes(n: int = 160) -> list[dict[str, str]]:
    """Votes in which `counter` wins on one topic, `coder` on the other, and `weak` loses; some ties of both kinds."""
    rows = []
    for i in range(n):
        topic = ("sum", "code")[i % 2]
        words = TOPICS[topic]
        prompt = " ".join([topic, words[i % 4], words[(i // 4) % 4], words[(i // 16) % 4]])
        good, bad = ("counter", "coder") if topic == "sum" else ("coder", "counter")
        rows += [
            {"prompt": prompt, "model_a": good, "model_b": bad, "winner": "model_a"},
            {"prompt": prompt, "model_a": "weak", "model_b": good, "winner": "model_b"},
            {"prompt": prompt, "model_a": "weak", "model_b": bad, "winner": "tie (bothbad)" if i % 3 else "tie"},
        ]
    return rows
