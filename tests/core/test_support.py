"""Standard errors of levels, and P(usable) under them."""

import numpy as np
import pytest

from p2l_plugins.outcomes import sigmoid, usable_probability
from p2l_plugins.routing import policies
from p2l_plugins.routing.explain import explain
from p2l_plugins.scoring.scorer import Scores
from p2l_plugins.support import Support, level_errors

KNOWN = {"a": Support(4, 1, 1, 4.0, 1.0), "b": Support(4, 1, 1, 4.0)}


def test_errors_are_zero_where_nobody_said_one():
    assert level_errors(KNOWN, ["b", "a", "c"]) == [0.0, 1.0, 0.0]


def test_usable_without_an_error_is_as_before_and_an_error_brings_it_nearer_to_one_half():
    coefs = np.linspace(-6, 6, 25)
    np.testing.assert_array_equal(usable_probability(coefs), sigmoid(coefs))
    unsure = usable_probability(coefs, 1.5)
    assert (np.abs(unsure - 0.5) <= np.abs(sigmoid(coefs) - 0.5)).all()
    draws = np.random.default_rng(0).normal(size=200_000)
    means = [sigmoid(beta + 1.5 * draws).mean() for beta in coefs]
    np.testing.assert_allclose(unsure, means, atol=0.012)


def test_a_well_known_model_is_preferred_to_a_lucky_one():
    value = policies.values("usable", "grk", [2.0, 2.2], stderr=[0.1, 2.0])
    assert value[0] > value[1]
    rates = policies.values("win_rate", "grk", [2.0, 2.2], 0.0, stderr=[0.1, 2.0])
    assert rates[0] < rates[1]


def test_explain_takes_support_by_name_or_alias():
    coefs = np.array([[2.2, 2.0]], np.float32)
    scores = Scores(("a", "b"), coefs, np.zeros(1, np.float32), "grk", {"other": "a"})
    price = np.zeros(2)
    plain = explain(scores, ["other", "b"], price, objective="usable")
    known = explain(scores, ["other", "b"], price, objective="usable", support={"a": Support(1, 1, 1, 1.0, 2.0)})
    assert plain["choice"] == {"other": pytest.approx(1.0)}
    assert known["choice"] == {"b": pytest.approx(1.0)}
