"""`p2l adopt --train`: the backbone fine-tuned to the votes, taken where it is better on prompts that it has not seen.

The rule. Of the adoption's five folds the first `folds` are judged: for each, the backbone is trained on the prompts of
the other folds, to which the rows of the frozen one were fitted there too. The trained model is taken where, on the
prompts of these folds, its log loss is below the frozen one's by two standard errors, what it gains in routing passes
the test of `shrinkage.tells`, and it does not score less than the frozen one by more than a standard error. Then it is
trained once more, on all prompts. Needs torch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from numpy.typing import NDArray

from onnx_export.adopt_figures import Tuned
from onnx_export.adopt_votes import Evidence
from onnx_export.export import export
from onnx_export.joint import JointTask
from onnx_export.shrinkage import CERTAIN, Choice, Judge, standard_error, tells
from p2l_plugins.evaluation.gains import gain_over
from p2l_plugins.outcomes import Array, Ids, Mask
from p2l_plugins.prompts import Turns, pad
from p2l_plugins.scoring.bundle import Bundle
from p2l_plugins.scoring.scorer import batches
from p2l_plugins.training.checkpoint import Checkpoint
from p2l_plugins.training.config import Source, TrainConfig
from p2l_plugins.training.train import train

#: Padded tokens of one run without gradients.
RUN_TOKENS = 16_384


class FineTuning:
    """Trains the backbone of a bundle to the votes of an adoption.

    Args:
        source: the bundle.
        backbone: how it is named: `starter`, or its folder.
        evidence: the votes.
        folds: that are judged, 1 to 5.
        work: folder for checkpoints.
        step: called with a line at the start of each training.
    """

    def __init__(
        self, source: Bundle, backbone: str, evidence: Evidence, folds: int, work: Path, step: Callable[[str], None]
    ) -> None:
        known = source.manifest.models
        self._names = [
            known[i] if i >= 0 else own for i, own in zip(evidence.index, evidence.votes.models, strict=True)
        ]
        self._votes = replace(evidence.votes, models=tuple(self._names), scores=None)
        self._evidence, self._source, self._folds, self._work, self._step = evidence, source, folds, work, step
        text = source.manifest.text
        self._config = TrainConfig(
            name=source.manifest.name,
            data=[Source(path="votes", prompt_weight=None)],
            backbone=backbone,
            family=source.manifest.family,
            max_length=text.max_length,
            cut=text.cut,
            held_out=0.0,
            evaluations=1,
        )

    def judge(self, task: JointTask, choice: Choice, by: Judge, fold: Ids) -> Tuned:
        """What the trained backbone is worth on the prompts of the judged folds, beside the frozen one."""
        started, everything = time.monotonic(), self._evidence.votes.prompts
        coefs, raw_eta = np.full(choice.chosen.coefs.shape, np.nan), np.full(len(fold), np.nan)
        for k in range(self._folds):
            self._step(
                f"training without fold {k + 1} of {int(fold.max()) + 1} ({k + 1} of {self._folds} to be judged)"
            )
            out = fold == k
            checkpoint = self._trained(~out, f"fold-{k}")
            prompts = [turns for turns, left_out in zip(everything, out, strict=True) if left_out]
            coefs[out], eta = scores_of(checkpoint, self._names, prompts)
            raw_eta[out] = 0.0 if eta is None else eta
        judged = fold < self._folds
        found = compared(task, choice, by, judged, coefs, None if task.raw_eta is None else raw_eta)
        return replace(found, folds=self._folds, seconds=round(time.monotonic() - started, 1))

    def bundle(self) -> Bundle:
        """The bundle of a backbone that is trained on all votes: with the rows of the new bundle's models alone."""
        self._step("training on all prompts")
        evidence = self._evidence
        checkpoint = self._trained(np.ones(len(evidence.votes.prompts), np.bool_), "whole")
        rows = [checkpoint.models.index(name) for name in self._names[: evidence.candidates]]
        head = checkpoint.model.head.head
        head.weight = torch.nn.Parameter(head.weight.detach()[rows].clone())
        head.bias = torch.nn.Parameter(head.bias.detach()[rows].clone())
        head.out_features = len(rows)
        checkpoint.models = evidence.models
        checkpoint.training = {**checkpoint.training, "aliases": {}, "ungrounded": []}
        folder = self._work / "whole"
        checkpoint.save(folder)
        return export(folder, self._work / "bundle", self._source.manifest.precision, self._step)

    def _trained(self, keep: Mask, name: str) -> Checkpoint:
        config, folder = self._config, self._work / name
        train(config, self._work, folder, sources=[(config.data[0], self._votes.select(keep))])
        return Checkpoint.load(folder)


def compared(task: JointTask, choice: Choice, by: Judge, judged: Mask, coefs: Array, raw_eta: Array | None) -> Tuned:
    """A trained model beside the chosen fit, on the judged prompts.

    Args:
        judged: (P,); coefs: (P, M); raw_eta: (P,) of the trained model.
    """
    some = task.select(judged)
    own = Judge(by.scores[judged], by.base[judged], by.routed, by.counted[judged[task.prompt]])

    def eta(values: Array | None) -> Array | None:
        return None if values is None else values[judged]

    trained = own.cross_fit(choice.chosen.strength, some, coefs[judged], eta(raw_eta))
    frozen, level = (
        own.cross_fit(fit.strength, some, fit.coefs[judged], eta(fit.raw_eta)) for fit in (choice.chosen, choice.level)
    )
    votes = float(some.weight[own.counted].sum())
    saved, error = frozen.loss - trained.loss, standard_error(frozen.loss - trained.loss)
    over = gain_over(own.scores, own.picks(trained.coefs), own.picks(frozen.coefs))
    worse = over.known and over.mean < -over.stderr
    taken = float(saved.sum()) > CERTAIN * error and tells(trained.gain, level.loss - trained.loss) and not worse
    return Tuned(
        int(judged.sum()),
        float(trained.loss.sum()) / votes,
        float(frozen.loss.sum()) / votes,
        float(saved.sum()) / votes,
        error / votes,
        trained.gain,
        frozen.gain,
        over,
        taken,
    )


def scores_of(
    checkpoint: Checkpoint, names: Sequence[str], prompts: Sequence[Turns]
) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
    """Coefficients (P, M) of the models `names`, and raw_eta (P,) or None."""
    columns = [checkpoint.models.index(name) for name in names]
    ids = checkpoint.encoder.encode(prompts)
    coefs, etas = np.empty((len(prompts), len(columns)), np.float32), np.zeros(len(prompts), np.float32)
    with_eta = checkpoint.model.head.eta_head is not None
    for rows in batches([len(row) for row in ids], RUN_TOKENS):
        input_ids, mask = pad([ids[i] for i in rows], checkpoint.form.pad_id)
        with torch.no_grad():
            found, eta = checkpoint.model.scores(torch.from_numpy(input_ids), torch.from_numpy(mask))
        coefs[rows] = found.numpy()[:, columns]
        if eta is not None:
            etas[rows] = eta.numpy()
    return coefs, etas if with_eta else None


def working_folder(output: Path) -> TemporaryDirectory[str]:
    """A folder for checkpoints beside the new bundle, that ends with the block."""
    output.absolute().parent.mkdir(parents=True, exist_ok=True)
    return TemporaryDirectory(dir=output.absolute().parent, prefix=f".{output.name}-training-")
