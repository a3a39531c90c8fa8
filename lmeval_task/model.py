"""`--model p2l`: a bundle as a model of the harness.

It answers one kind of request: the log-likelihood of a vote's outcome after its prompt. The outcomes are " a > b",
" a = b" (a tie) and " a = b (both bad)". A context is the prompt, or the JSON text of a conversation's messages.
"""

from __future__ import annotations

import json
from typing import Any, NoReturn

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from lmeval_task import load_p2l
from p2l_plugins.errors import ConfigError, PromptError
from p2l_plugins.evaluation.quality import FLOOR
from p2l_plugins.outcomes import BAD, TIE, A, log_probabilities
from p2l_plugins.prompts import Turns, as_turns, user_turns
from p2l_plugins.scoring.cached import cached

_BOTH_BAD = "(both bad)"


class P2LModel(LM):  # type: ignore[misc]  # lm-eval ships no types
    """A P2L bundle that answers which of two models wins.

    Attributes:
        p2l: the scorer.
    """

    def __init__(self, bundle: str = "starter", **ignored: Any) -> None:
        """
        Args:
            bundle: bundle folder, hub id or `starter` (`--model_args bundle=...`).
            ignored: batch size and device, which lm-eval hands to every model.

        Raises:
            BundleError, ConfigError: as `P2L.load`.
        """
        super().__init__()
        self.p2l = load_p2l(bundle)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log P(outcome), whether it is the likeliest one) per request.

        An outcome that the bundle's family does not have is −690.8, as low as a forecast is taken to go.

        Raises:
            PromptError: a continuation of another form, or an empty prompt.
            BundleError: a model that the bundle does not have.
        """
        contexts = list(dict.fromkeys(request.args[0] for request in requests))
        row_of = {context: i for i, context in enumerate(contexts)}
        with cached(self.p2l) as scorer:
            scores = scorer.score_turns([turns_of(context) for context in contexts])
        rows = np.array([row_of[request.args[0]] for request in requests], np.int64)
        asked = [_outcome(request.args[1]) for request in requests]
        a = np.array([self.p2l.index(name) for name, _, _ in asked], np.int64)
        b = np.array([self.p2l.index(name) for _, name, _ in asked], np.int64)
        outcome = np.array([code for _, _, code in asked], np.int64)
        raw_eta = None if scores.raw_eta is None else scores.raw_eta[rows]
        log_p = log_probabilities(self.p2l.family, scores.coefs[rows, a], scores.coefs[rows, b], raw_eta)
        answers = np.maximum(log_p[np.arange(len(rows)), outcome], FLOOR)
        likeliest = answers >= log_p.max(axis=1)
        return list(zip(answers.tolist(), likeliest.tolist(), strict=True))

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> NoReturn:
        """Not answered.

        Raises:
            ConfigError: always.
        """
        raise ConfigError("the model 'p2l' ranks models and has no likelihood of a text; use a multiple_choice task")

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> NoReturn:
        """Not answered.

        Raises:
            ConfigError: always.
        """
        raise ConfigError("the model 'p2l' ranks models and can't write text; use a multiple_choice task")

    def apply_chat_template(self, chat_history: list[dict[str, Any]], add_generation_prompt: bool = True) -> str:
        """The messages as JSON text, which `loglikelihood` reads; the bundle applies its own template."""
        return json.dumps(chat_history, ensure_ascii=False)

    @property
    def tokenizer_name(self) -> str:
        """Of the cache of requests."""
        return f"p2l-{self.p2l.fingerprint}"

    def get_model_info(self) -> dict[str, Any]:
        """What goes to `config` of results.json."""
        manifest = self.p2l.bundle.manifest
        return {"p2l_bundle": manifest.name, "p2l_fingerprint": manifest.fingerprint, "p2l_family": manifest.family}


def turns_of(context: str) -> Turns:
    """The user turns of a context: of a chat's messages as JSON text, else the text itself.

    Raises:
        PromptError: there is no text.
    """
    if context.startswith("[{"):
        try:
            messages = json.loads(context)
        except ValueError:
            return as_turns(context)
        if all(isinstance(message, dict) and "role" in message for message in messages):
            return user_turns(messages)
    return as_turns(context)


def _outcome(continuation: str) -> tuple[str, str, int]:
    """The two models and the outcome that a continuation says."""
    text = continuation.strip()
    sides, code = text.split(" > "), A
    if len(sides) != 2:
        bad = text.endswith(_BOTH_BAD)
        sides, code = text.removesuffix(_BOTH_BAD).split(" = "), BAD if bad else TIE
    if len(sides) != 2:
        raise PromptError(
            f"the model 'p2l' answers ' a > b', ' a = b' or ' a = b {_BOTH_BAD}' for two models, not {continuation!r}"
        )
    return sides[0].strip(), sides[1].strip(), code
