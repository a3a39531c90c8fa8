"""Which comparisons are chosen: against brute force, and in simulations with known coefficients."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import choix
import numpy as np
import pytest

from p2l_plugins.outcomes import BAD, TIE, A, B
from p2l_plugins.votes.design import PairDesign

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def simulation():
    spec = importlib.util.spec_from_file_location("design_benchmark", ROOT / "benchmarks" / "design.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def filled(seed=0, models=5, votes=60):
    rng, design = np.random.default_rng(seed), PairDesign(models)
    pairs = []
    for _ in range(votes):
        a, b = rng.choice(models, 2, replace=False).tolist()
        outcome = A if rng.random() < 1 / (1 + np.exp(b - a)) else B
        design.add(a, b, outcome)
        pairs.append((a, b) if outcome == A else (b, a))
    return design, pairs


def test_the_fit_is_that_of_choix():
    design, pairs = filled()
    theirs = choix.opt_pairwise(5, pairs, alpha=design.prior / 2)
    assert design.coefs == pytest.approx(theirs - theirs.mean(), abs=1e-3)


def test_the_gain_of_a_pair_is_how_much_its_comparison_lowers_the_summed_variance():
    design, _ = filled(models=4, votes=4000)  # so many that the chance is that of the fit
    centre = np.eye(4) - 0.25

    def summed(sigma):
        return np.trace(centre @ sigma @ centre)

    before = design.covariance
    for a, b in ((0, 1), (0, 3), (2, 3)):
        chance = 1 / (1 + np.exp(design.coefs[b] - design.coefs[a]))
        d = np.eye(4)[a] - np.eye(4)[b]
        after = np.linalg.inv(np.linalg.inv(before) + chance * (1 - chance) * np.outer(d, d))
        assert design.gains[a, b] == pytest.approx(summed(before) - summed(after), rel=0.02)


def test_every_model_is_compared_before_any_pair_is_compared_twice_and_all_are_connected():
    rng, design = np.random.default_rng(0), PairDesign(7, explore=0.0)
    seen = []
    for _ in range(12):
        a, b = design.next_pair(rng)
        seen.append(frozenset((a, b)))
        design.add(a, b, TIE)
    assert len(set(seen)) == 12
    group = {0}
    for _ in range(7):
        group |= {m for pair in seen if pair & group for m in pair}
    assert group == set(range(7))


def test_close_pairs_come_before_far_ones_and_what_is_pending_counts():
    design = PairDesign(4)
    true = np.array([2.0, 1.0, -1.0, -2.0])
    design.wins = 20 / (1 + np.exp(true[None, :] - true[:, None])) * (1 - np.eye(4))
    assert design.gains[0, 1] > design.gains[0, 2] > design.gains[0, 3] > 0
    before = design.gains[0, 1]
    design.begin([0, 1, 2])
    assert design.gains[0, 1] < before
    design.end([0, 1, 2])
    assert design.gains[0, 1] == pytest.approx(before)


def test_ties_of_both_kinds_are_half_a_win_for_each():
    one, other = PairDesign(2), PairDesign(2)
    one.add(0, 1, TIE)
    other.add(0, 1, BAD)
    assert one.wins.tolist() == other.wins.tolist() == [[0, 0.5], [0.5, 0]]


def test_who_must_and_who_can_not_answer_is_kept_to():
    rng, design = np.random.default_rng(0), PairDesign(6)
    for _ in range(50):
        chosen = design.choose(3, rng, must=[4], without={0, 1})
        assert 4 in chosen
        assert len(set(chosen)) == 3
        assert not {0, 1} & set(chosen)
    assert set(design.choose(9, rng, without={0})) == {1, 2, 3, 4, 5}
    with pytest.raises(ValueError, match="two models"):
        design.next_pair(rng, without={0, 1, 2, 3, 4})


def test_the_same_error_of_the_board_with_at_most_0_7_of_the_calls(simulation):
    """As `p2l votes ask` makes them: three models for each prompt, beside a random pair for each."""
    error, order = simulation.parts(simulation.normal(10, 1.5), 10, 3, True, boards=16)
    assert error <= 0.7
    assert order <= 1.0


def test_pairs_alone_need_fewer_calls_than_random_ones_and_no_fewer_than_the_limit(simulation):
    draw = simulation.normal(16, 2.0)
    error, _ = simulation.parts(draw, 16, 2, True, boards=8)
    least = np.mean([simulation.limit(draw(np.random.default_rng(seed)), steps=100) for seed in range(4)])
    assert least - 0.15 < error < 0.9
