"""What our tasks share that ask the evaluated model nothing: their prompts are scored once, when the model has run."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.task import Task
from lm_eval.config.task import TaskConfig
from tqdm import tqdm

from lmeval_task import load_p2l
from lmeval_task.settings import Settings
from p2l_plugins.errors import DataError, PromptError
from p2l_plugins.prompts import Turns
from p2l_plugins.scoring.cached import cached
from p2l_plugins.scoring.scorer import P2L, Scores

FILTER = "p2l"

#: What a row shows that has no value, and a standard error that has none (lm-eval's own sign).
NO_VALUE, NO_ERROR = "n/a", "N/A"


class PromptsTask(Task):  # type: ignore[misc]  # lm-eval ships no types
    """A task of prompts that a bundle scores.

    Attributes:
        settings: from the YAML and `--metadata`.
        p2l: the scorer.
    """

    VERSION = 1

    def __init__(self, config: Mapping[str, Any], settings: Settings, p2l: P2L, docs: Sequence[Any]) -> None:
        """`Task.__init__` is left out, because it would fetch a data set.

        Args:
            config: of the YAML, with `--metadata` and the model's arguments under `metadata`.
            settings: read from it.
            p2l: the scorer.
            docs: one document per prompt.
        """
        metadata = dict(config.get("metadata") or {})
        self.settings = settings
        # Not the default generate_until, for which lm-eval sets and logs generation arguments. Its W&B logger reads the
        # metrics of the samples from metric_list.
        self._config = TaskConfig(
            task=config.get("task"),
            task_alias=config.get("task_alias"),
            output_type="loglikelihood_rolling",
            num_fewshot=0,
            metric_list=[],
            metadata=metadata,
        )
        self.VERSION = metadata.get("version", self.VERSION)
        self.fewshot_rnd = None
        self.p2l = p2l
        self._docs = docs
        self._instances: list[Instance] = []
        self._own: list[Instance] = []
        self._turns: list[Turns] = []
        self._report: dict[str, Any] = {}

    @abstractmethod
    def turns_of(self, index: int) -> Turns:
        """The prompt of a document; raises a PromptError where it is empty."""

    # ---- documents

    def has_training_docs(self) -> bool:
        """No examples are drawn."""
        return False

    def has_validation_docs(self) -> bool:
        """All documents are test documents."""
        return False

    def has_test_docs(self) -> bool:
        """See `test_docs`."""
        return True

    def test_docs(self) -> Sequence[Any]:
        """One document per prompt."""
        return self._docs

    def doc_to_target(self, doc: Any) -> str:
        """There is nothing to hit."""
        return ""

    def construct_requests(self, doc: Any, ctx: str, **kwargs: Any) -> list[Instance]:
        """The evaluated model is asked nothing."""
        return []

    def override_metric(self, metric_name: str) -> None:
        """Keeps the rows under `--predict_only`: they do not depend on the model's predictions."""

    # ---- scoring

    def build_all_requests(
        self,
        *,
        limit: int | None = None,
        samples: list[int] | None = None,
        rank: int = 0,
        world_size: int = 1,
        **kwargs: Any,
    ) -> None:
        """Reads the prompts of this rank. They become instances in `apply_filters`, after the model was asked.

        Raises:
            DataError: no prompts on this rank, or a sample that does not exist.
            PromptError: an empty prompt; the message gives its document.
        """
        chosen = self._chosen(limit, samples)
        # an id is the position among the chosen documents, as in `Task.doc_iterator`
        own = list(range(rank, len(chosen), world_size))
        if not own:
            raise DataError(
                f"{self.task_name}: no prompts on rank {rank}: {len(chosen)} prompts for {world_size} ranks"
            )
        self._instances = []
        self._turns = [self._checked_turns(chosen[i]) for i in own]
        self._own = [
            Instance(
                request_type="loglikelihood_rolling",
                doc=self._docs[chosen[i]],
                arguments=(joined(turns),),
                idx=0,
                metadata=(self.task_name, i, 1),
                resps=[[""]],  # the W&B logger shows the first response
            )
            for i, turns in zip(own, self._turns, strict=True)
        ]

    def _chosen(self, limit: int | None, samples: list[int] | None) -> list[int]:
        """Documents that `--limit` or `--samples` leave."""
        count = len(self._docs)
        chosen = sorted(set(samples)) if samples else list(range(min(int(limit or count), count)))
        if chosen[-1] >= count or chosen[0] < 0:
            raise DataError(f"{self.task_name}: --samples names document {chosen[-1]}; there are 0 to {count - 1}")
        return chosen

    def apply_filters(self) -> list[Instance]:
        """Scores the prompts in one go, after the evaluated model has run and before lm-eval reads the results."""
        scores = score_turns(self.p2l, self._turns, f"P2L scores of {self.task_name}")
        truncated = np.zeros(len(scores), np.bool_) if scores.truncated is None else scores.truncated
        for i, instance in enumerate(self._own):
            raw_eta = None if scores.raw_eta is None else round(float(scores.raw_eta[i]), 6)
            coefs = {model: round(float(c), 6) for model, c in zip(scores.models, scores.coefs[i], strict=True)}
            scored = {"id": instance.doc_id, "coefs": coefs, "raw_eta": raw_eta, "truncated": bool(truncated[i])}
            instance.filtered_resps = {FILTER: scored}
        self._instances = self._own
        return self._instances

    def dump_config(self) -> dict[str, Any]:
        """The task's config, with what was found under `p2l`."""
        return {**super().dump_config(), **({"p2l": self._report} if self._report else {})}

    def _identity(self) -> dict[str, Any]:
        """Which bundle made the scores, for the report."""
        return {"bundle": self.p2l.bundle.manifest.name, "fingerprint": self.p2l.fingerprint}

    def _checked_turns(self, index: int) -> Turns:
        try:
            return self.turns_of(index)
        except PromptError as error:
            raise PromptError(f"{self.task_name}: document {index}: {error}") from None


def read_settings(config: Mapping[str, Any]) -> tuple[Settings, P2L]:
    """Settings of a task, and the bundle that they name.

    Raises:
        P2LError: wrong settings, or a damaged bundle.
    """
    settings = Settings.read(config, dict(config.get("metadata") or {}))
    return settings, load_p2l(settings.p2l_bundle)


def score_turns(p2l: P2L, turns: Sequence[Turns], label: str) -> Scores:
    """Scores with a progress bar, from the shared cache where `P2L_CACHE_URL` names one."""
    with tqdm(total=len(turns), desc=label, disable=None) as bar, cached(p2l) as scorer:
        return scorer.score_turns(turns, progress=bar.update)


def scores_of(p2l: P2L, items: Sequence[Mapping[str, Any]]) -> Scores:
    """Scores of prompts from the values that lm-eval carried."""
    coefs = np.array([[item["coefs"][model] for model in p2l.models] for item in items], np.float32)
    etas = [item["raw_eta"] for item in items]
    raw_eta = None if etas[0] is None else np.array(etas, np.float32)
    return Scores(p2l.models, coefs, raw_eta, p2l.family, p2l.bundle.manifest.aliases, p2l.ungrounded)


def joined(turns: str | Sequence[str]) -> str:
    """The text that a log shows."""
    return turns if isinstance(turns, str) else "\n\n".join(turns)
