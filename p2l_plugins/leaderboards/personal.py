"""A user's own leaderboard: what their prompts are like, and what their thumbs said of answers.

Two parts, kept apart because they are learnt from different things:

- The **board** is the aggregate leaderboard of the prompts that the user sent, recent ones counting more. Keeping every
  prompt would cost memory without end, and a mean of coefficients is not the aggregate, so it follows the prompts by
  one Newton step each, of the size that a running mean takes: a recursive M-estimator (Sakrison, "Efficient recursive
  estimation", 1965), which needs M numbers and ends where the fit to all prompts ends.
- The **shift** moves with feedback, by a gradient step on the log-likelihood of each vote (Bradley-Terry, or for a
  grounded board P(usable) of the one answer): how this user's taste differs from what the bundle predicts.

Both are blended into the coefficients of a new prompt by weights that grow with evidence: a user without history gets
the prompt's own scores, to the bit.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from p2l_plugins.errors import ConfigError
from p2l_plugins.leaderboards.fit import gradients, hessian, newton_direction, targets
from p2l_plugins.leaderboards.intervals import opponent_weights
from p2l_plugins.leaderboards.leaderboard import Leaderboard
from p2l_plugins.leaderboards.pair_means import PairMeans
from p2l_plugins.outcomes import Array, Family, Numbers, has_eta, sigmoid, win_matrix

#: A step of the board moves no coefficient further than this: one prompt far from the others is not to be trusted more.
MAX_STEP = 2.0

#: Thumbs move the shift by at most this, however many there are.
MAX_SHIFT = 3.0

DAY_S = 24 * 3600.0


@dataclass(frozen=True)
class Blending:
    """How much a user's own board counts.

    Attributes:
        weight: of the board against the prompt's own scores once there is much evidence, in [0, 1].
        prompts: number of prompts at which it has half of that weight.
        half_life_s: seconds after which a prompt or a vote counts half.
        step: of the first vote of feedback, in coefficients at full surprise; later ones are smaller, by the square
            root of the votes per model, so that the shift settles.
    """

    weight: float = 0.5
    prompts: float = 20.0
    half_life_s: float = 30 * DAY_S
    step: float = 0.6


@dataclass(frozen=True)
class UserBoard:
    """What is remembered of one user, for one bundle.

    Attributes:
        coefs: (M,) of the board of the user's prompts.
        raw_eta: second coefficient of the board, for families that have it.
        prompts: their number, decayed.
        shift: (M,) that feedback added.
        votes: number of votes of feedback, decayed.
        time: of the last change, in seconds since the epoch.
    """

    coefs: Array
    raw_eta: float | None
    prompts: float
    shift: Array
    votes: float
    time: float

    @classmethod
    def empty(cls, family: Family, models: int, now: float) -> UserBoard:
        """Of a user who has done nothing yet."""
        return cls(np.zeros(models), 0.0 if has_eta(family) else None, 0.0, np.zeros(models), 0.0, now)


def decayed(board: UserBoard, now: float, blending: Blending) -> UserBoard:
    """The board as it counts at a later time: less evidence, and a taste that fades.

    A change in the future was made by a clock that went wrong: it counts as one of now, or nothing fades until then.
    """
    kept = 0.5 ** (max(0.0, now - board.time) / blending.half_life_s)
    return replace(board, prompts=kept * board.prompts, votes=kept * board.votes, shift=kept * board.shift, time=now)


def with_prompt(
    board: UserBoard, family: Family, coefs: Numbers, raw_eta: float | None, now: float, blending: Blending
) -> UserBoard:
    """The board after one more prompt.

    Args:
        coefs: (M,) of the prompt; raw_eta: of the prompt, for families that have it.
        now: seconds since the epoch.
    """
    board = decayed(board, now, blending)
    prompts = board.prompts + 1.0
    own = np.asarray(coefs, np.float64)
    own = own if family == "grk" else own - own.mean()
    if board.prompts == 0.0:
        return replace(board, coefs=own, raw_eta=raw_eta, prompts=prompts)
    means = PairMeans(family, len(own))
    means.add(own[None], None if raw_eta is None else np.array([raw_eta]))
    win, tie, bad = targets(family, means.win, means.tie, means.bad)
    x = board.coefs if board.raw_eta is None else np.append(board.coefs, board.raw_eta)
    slope = gradients(family, x[None], win[None], tie[None], bad[None])[0]
    step = newton_direction(slope, hessian(family, x, win, tie, bad))
    x = x + np.clip(step, -MAX_STEP, MAX_STEP) / prompts
    board_coefs = x[: len(own)] if family == "grk" else x[: len(own)] - x[: len(own)].mean()
    return replace(board, coefs=board_coefs, raw_eta=None if raw_eta is None else float(x[len(own)]), prompts=prompts)


def with_feedback(
    board: UserBoard,
    family: Family,
    model: int,
    liked: bool,
    now: float,
    blending: Blending,
    coefs: Numbers | None = None,
    other: int | None = None,
) -> UserBoard:
    """The board after a thumb up or down for an answer.

    With another model's answer beside it, the vote is that `model` won (or lost) against it. Alone, it says of a
    grounded board whether the answer was usable; of the other families, that the model won (or lost) against the field.

    Args:
        model: column of the model; other: column of the other model.
        liked: thumb up.
        coefs: (M,) of the prompt where they are known, else the user's board stands for it.
    """
    if other == model:
        raise ConfigError("feedback compares a model with itself; name two different ones")
    board = decayed(board, now, blending)
    base = board.coefs if coefs is None else np.asarray(coefs, np.float64)
    taste = base + board.shift
    step = np.zeros_like(taste)
    if other is not None:
        surprise = float(liked) - float(sigmoid(taste[model] - taste[other]))
        step[model], step[other] = surprise, -surprise
    elif family == "grk":
        step[model] = float(liked) - float(sigmoid(taste[model]))
    else:
        others = np.delete(taste, model)
        surprise = float(liked) - float(sigmoid(taste[model] - others).mean())
        step[:] = -surprise / max(len(others), 1)
        step[model] = surprise
    size = blending.step / np.sqrt(1.0 + board.votes / len(taste))
    shift = np.clip(board.shift + size * step, -MAX_SHIFT, MAX_SHIFT)
    return replace(board, shift=shift, votes=board.votes + 1.0)


def blended(board: UserBoard | None, family: Family, coefs: Numbers, now: float, blending: Blending) -> Numbers:
    """Coefficients (M,) of a prompt for this user; those of the prompt itself where nothing is known of the user.

    The board pulls how the models differ, by `weight · n / (n + prompts)`; the level of the prompt (how hard it is)
    stays the prompt's own. The shift is added as it is: each vote has moved it as much as it was worth.
    """
    if board is None or (board.prompts == 0.0 and board.votes == 0.0):
        return coefs
    board = decayed(board, now, blending)
    own = np.array(coefs, np.float64)
    pull = blending.weight * board.prompts / (board.prompts + blending.prompts)
    difference = board.coefs - own
    own += pull * (difference - difference.mean()) + board.shift
    return own


def leaderboard_of(
    board: UserBoard, family: Family, models: tuple[str, ...], ungrounded: frozenset[str] = frozenset()
) -> Leaderboard:
    """A user's board with what their votes moved, as a leaderboard; its win rates are those of its coefficients."""
    coefs = board.coefs + board.shift
    win_rate = (win_matrix(family, coefs, board.raw_eta) * opponent_weights(models, ungrounded)).sum(axis=1)
    return Leaderboard(models, family, coefs, board.raw_eta, win_rate, round(board.prompts), ungrounded)
