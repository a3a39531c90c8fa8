"""A user's own board follows their prompts and their feedback, and says nothing where nothing is known."""

from dataclasses import replace

import numpy as np
import pytest

from p2l_plugins import ConfigError
from p2l_plugins.leaderboards.leaderboard import aggregate
from p2l_plugins.leaderboards.personal import (
    MAX_SHIFT,
    Blending,
    UserBoard,
    blended,
    decayed,
    with_feedback,
    with_prompt,
)
from p2l_plugins.outcomes import sigmoid

M = 8
FOREVER = Blending(half_life_s=1e15)
ETA = {"bt": None, "bt-tie": None, "rk": -7.0, "grk": 0.3}


def board_of(family, coefs, blending=FOREVER):
    board = UserBoard.empty(family, coefs.shape[1], 0.0)
    for row in coefs:
        board = with_prompt(board, family, row, ETA[family], 0.0, blending)
    return board


@pytest.mark.parametrize("family", ETA)
def test_the_board_ends_at_the_aggregate_leaderboard_and_not_at_the_mean(family):
    rng = np.random.default_rng(0)
    coefs = rng.normal(size=M) + rng.normal(size=(300, M))
    raw_eta = None if ETA[family] is None else np.full(len(coefs), ETA[family])
    exact = aggregate(tuple("abcdefgh"), family, coefs, raw_eta).coefs
    mean = coefs.mean(axis=0) - (0 if family == "grk" else coefs.mean())
    board = board_of(family, coefs)
    assert np.abs(board.coefs - exact).max() < 0.05
    assert np.abs(board.coefs - exact).max() < 0.25 * np.abs(mean - exact).max()


def test_one_prompt_is_its_own_board():
    coefs = np.array([1.0, -2.0, 0.5])
    assert board_of("grk", coefs[None]).coefs == pytest.approx(coefs)
    assert board_of("bt", coefs[None]).coefs == pytest.approx(coefs - coefs.mean())


@pytest.mark.parametrize("family", ETA)
def test_nothing_changes_for_a_user_without_history(family):
    coefs = np.random.default_rng(1).normal(size=M).astype(np.float32)
    for board in (None, UserBoard.empty(family, M, 0.0)):
        assert blended(board, family, coefs, 5.0, Blending()) is coefs


def test_the_weight_grows_with_evidence_and_fades_with_time():
    blending = Blending(weight=0.5, prompts=10, half_life_s=100)
    own, other = np.array([1.0, -1.0, 0.0]), np.zeros(3)
    pulls = []
    for n in (1, 10, 1000):
        board = replace(UserBoard.empty("grk", 3, 0.0), coefs=own, prompts=float(n))
        pulls.append(blended(board, "grk", other, 0.0, blending)[0])
    assert pulls == pytest.approx([0.5 / 11, 0.25, 0.5 * 1000 / 1010])
    board = replace(UserBoard.empty("grk", 3, 0.0), coefs=own, prompts=10.0)
    assert blended(board, "grk", other, 100.0, blending)[0] == pytest.approx(0.5 * 5 / 15)
    assert decayed(board, -50.0, blending).prompts == 10.0  # a clock that goes back


def test_how_hard_a_prompt_is_stays_the_prompt_s_own():
    board = board_of("grk", np.random.default_rng(2).normal(size=(30, M)) + 3)
    coefs = np.random.default_rng(3).normal(size=M) - 4
    assert blended(board, "grk", coefs, 0.0, FOREVER).mean() == pytest.approx(coefs.mean())


def test_an_outlying_prompt_moves_the_board_by_a_bounded_step():
    board = board_of("grk", np.zeros((9, M)))
    far = with_prompt(board, "grk", np.full(M, 80.0), 0.3, 0.0, FOREVER)
    assert np.abs(far.coefs - board.coefs).max() <= 0.2 + 1e-12
    assert np.isfinite(far.coefs).all()


def test_a_vote_is_a_gradient_step_of_its_likelihood():
    board = replace(UserBoard.empty("bt", 3, 0.0), coefs=np.array([0.5, 0.0, -0.5]), prompts=1.0)
    after = with_feedback(board, "bt", 0, True, 0.0, FOREVER, other=2)
    step = FOREVER.step * (1 - sigmoid(1.0))
    assert after.shift == pytest.approx([step, 0.0, -step])
    after = with_feedback(board, "grk", 1, False, 0.0, FOREVER)
    assert after.shift == pytest.approx([0.0, -FOREVER.step * sigmoid(0.0), 0.0])
    field = with_feedback(board, "bt", 0, True, 0.0, FOREVER).shift
    assert field.sum() == pytest.approx(0.0)
    assert field[0] > 0 > field[1] == field[2]


def test_thumbs_without_end_stay_bounded():
    board = UserBoard.empty("grk", 2, 0.0)
    for _ in range(2000):
        board = with_feedback(board, "grk", 0, True, 0.0, Blending(step=10, half_life_s=1e15))
    assert board.shift[0] <= MAX_SHIFT


def test_a_model_is_not_compared_with_itself():
    with pytest.raises(ConfigError, match="with itself"):
        with_feedback(UserBoard.empty("bt", 2, 0.0), "bt", 1, True, 0.0, FOREVER, other=1)


def test_feedback_of_users_with_known_tastes_converges_and_helps():
    """Simulated: each user likes some models more than the bundle predicts; thumbs follow P(usable)."""
    rng = np.random.default_rng(4)
    blending = Blending(half_life_s=1e15)
    likeness, gains = {40: [], 400: [], 2000: []}, {40: [], 400: [], 2000: []}
    for _ in range(10):
        taste = rng.normal(0, 1.0, M)
        tests = rng.normal(0, 0.7, (200, M))
        usable, rows = sigmoid(tests + taste), np.arange(len(tests))
        board = UserBoard.empty("grk", M, 0.0)
        for n in range(1, 2001):
            coefs = rng.normal(0, 0.7, M)
            model = rng.integers(M)
            liked = rng.random() < sigmoid(coefs[model] + taste[model])
            board = with_feedback(board, "grk", model, liked, 0.0, blending, coefs)
            if n in gains:
                personal = np.array([blended(board, "grk", row, 0.0, blending) for row in tests])
                gain = usable[rows, personal.argmax(1)] - usable[rows, tests.argmax(1)]
                gains[n].append(gain.mean())
                likeness[n].append(np.corrcoef(board.shift, taste)[0, 1])
    assert np.mean(likeness[40]) < np.mean(likeness[400]) < np.mean(likeness[2000])
    assert np.mean(likeness[400]) > 0.9
    assert np.mean(likeness[2000]) > 0.97
    assert np.mean(gains[40]) > 0.03
    assert min(gains[400]) > 0
    assert np.mean(gains[400]) > 0.08


def test_the_board_helps_where_scores_of_single_prompts_are_noisy():
    """Simulated: a user's prompts are alike, and the bundle scores each with an error of its own."""
    rng = np.random.default_rng(5)
    plain, personal = [], []
    for _ in range(20):
        subject = rng.normal(0, 1, M)
        true = subject + rng.normal(0, 0.3, (150, M))
        seen = true + rng.normal(0, 0.8, true.shape)
        board = board_of("grk", seen[:100])
        rows = np.arange(50)
        own = np.array([blended(board, "grk", row, 0.0, FOREVER) for row in seen[100:]])
        plain.append(sigmoid(true[100:])[rows, seen[100:].argmax(1)].mean())
        personal.append(sigmoid(true[100:])[rows, own.argmax(1)].mean())
    difference = np.array(personal) - np.array(plain)
    assert difference.mean() > 2 * difference.std() / np.sqrt(len(difference)) > 0
