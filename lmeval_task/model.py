"""`--model p2l`: a bundle as a model of the harness.

It answers one kind of request: the log-likelihood of " a > b" after a prompt is log P(a beats b | prompt).
"""

# mypy: disable-error-code="import-untyped"

from __future__ import annotations

from typing import Any, NoReturn

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from lmeval_task import load_p2l
from p2l_plugins.errors import ConfigError, PromptError
from p2l_plugins.outcomes import A, B, log_probabilities


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
        """(log P(a beats b), whether b beats a is less likely) per request.

        Raises:
            PromptError: a continuation of another form, or an empty prompt.
            BundleError: a model that the bundle does not have.
        """
        prompts = list(dict.fromkeys(request.args[0] for request in requests))
        scores = self.p2l.score(prompts)
        row_of = {prompt: i for i, prompt in enumerate(prompts)}
        answers = []
        for request in requests:
            prompt, continuation = request.args
            a, b = (self.p2l.index(name) for name in _models(continuation))
            i = row_of[prompt]
            raw_eta = None if scores.raw_eta is None else scores.raw_eta[i]
            log_p = log_probabilities(self.p2l.family, scores.coefs[i, a], scores.coefs[i, b], raw_eta)
            answers.append((float(log_p[A]), bool(log_p[A] > log_p[B])))
        return answers

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

    def get_model_info(self) -> dict[str, Any]:
        """What goes to `config` of results.json."""
        manifest = self.p2l.bundle.manifest
        return {"p2l_bundle": manifest.name, "p2l_fingerprint": manifest.fingerprint, "p2l_family": manifest.family}


def _models(continuation: str) -> tuple[str, str]:
    names = continuation.strip().split(" > ")
    if len(names) != 2:
        raise PromptError(f"the model 'p2l' answers ' a > b' for two models, not {continuation!r}")
    return names[0].strip(), names[1].strip()
