"""`p2l adopt`: a bundle of exactly a configuration's models, their rows fitted together to votes. No torch here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from onnx_export.adopt_figures import (
    Figures,
    Setting,
    Tuned,
    cost_curve,
    forecasts,
    judge,
    learning_curve,
    policies,
    prompts_to_tell,
)
from onnx_export.adopt_votes import Evidence
from onnx_export.anchored import begun
from onnx_export.edit import write_changed
from onnx_export.head import find_head, load_graph, read_states, replace_head, scale_eta
from onnx_export.joint import JointProblem, JointRows, JointTask, Known
from onnx_export.past import Past
from onnx_export.shrinkage import Choice, Judge, choose_strength
from onnx_export.verify import verify_rows
from p2l_plugins.errors import DataError
from p2l_plugins.files.tables import replaced_folder
from p2l_plugins.outcomes import Array, Ids, has_eta
from p2l_plugins.scoring.bundle import Bundle
from p2l_plugins.scoring.scorer import P2L
from p2l_plugins.votes.support import support


@dataclass(frozen=True)
class Adoption:
    """What an adoption found.

    Attributes:
        evidence: the votes.
        choice: how far they moved the rows.
        figures: what that is worth.
        best: the model of the highest level, which a bundle that does not route always takes.
        coefs: (P, C) of the new bundle on the prompts of the votes; raw_eta: (P,) or None.
        apart_coefs, apart_raw_eta: the same of the fit of the lowest log loss, by which the report says where models
            differ.
        counted_weight: of the votes that log losses are means over.
        saved: the bundle routes for the costs' sake: the gain in score is not certain.
        floating: models whose level nothing ties to P(usable).
        past: what the bundle keeps of the votes on its models.
        by, fold: what fits are judged by; (P,) fold of each prompt.
        tuned: what fine-tuning the backbone is worth; None: not tried.
    """

    evidence: Evidence
    choice: Choice
    figures: Figures
    best: str
    coefs: Array
    raw_eta: Array | None
    apart_coefs: Array
    apart_raw_eta: Array | None
    counted_weight: float = 1.0
    saved: bool = False
    floating: tuple[str, ...] = ()
    past: Past | None = None
    by: Judge | None = None
    fold: Ids | None = None
    tuned: Tuned | None = None

    @property
    def trained(self) -> bool:
        """Whether the bundle has the fine-tuned backbone."""
        return self.tuned is not None and self.tuned.taken

    @property
    def kind(self) -> str:
        """What the bundle does: `routes` by prompt, `saves` (the same quality for less), or `single`."""
        if self.trained:
            return "routes"
        if not self.choice.routes:
            return "single"
        return "saves" if self.saved else "routes"


class Tuning(Protocol):
    """Fine-tunes a bundle's backbone (`adopt_trained.FineTuning`)."""

    def judge(self, task: JointTask, choice: Choice, by: Judge, fold: Ids) -> Tuned:
        """What it is worth on prompts that it has not seen."""

    def bundle(self) -> Bundle:
        """The bundle of one that is trained on all votes."""


def adopt(
    bundle: Bundle,
    evidence: Evidence,
    output: Path,
    name: str,
    aliases: Mapping[str, str] | None = None,
    costs: Array | None = None,
    write: Callable[[Adoption, Path], None] = lambda found, folder: None,
    step: Callable[[str], None] = lambda message: None,
    progress: Callable[[int], None] | None = None,
    tuning: Tuning | None = None,
) -> tuple[Bundle, Adoption]:
    """Fits the rows of a configuration's models to votes, and writes the bundle that has them alone.

    Args:
        bundle: gives the states and the prior.
        evidence: from `adopt_votes.gather`.
        name: of the new bundle.
        aliases: further names → models of the new bundle.
        costs: (P, C) USD per request of the new bundle's models on the votes' prompts; NaN: no price.
        write: called with what was found and the folder, to add reports to it.
        step: called with a line at the start of each step; progress: with the number of prompts that each run finished.
        tuning: trains the backbone, which is taken where it is better.

    Raises:
        DataError: the output folder holds something, or the votes are on one prompt; nothing is written then.
        BundleError: the bundle's head can't be changed.
    """
    manifest = bundle.manifest
    if len(evidence.votes.prompts) < 2:
        raise DataError(
            "all votes that can be used are on one prompt, but what they say of others can't be judged by one; ask "
            "some hundred prompts with p2l votes ask"
        )
    with replaced_folder(output) as folder:
        model = load_graph(bundle.folder)
        head = find_head(model, bundle.folder)
        step(f"scoring {len(evidence.votes.prompts)} prompts")
        states, _, raw_eta = read_states(bundle, evidence.votes.prompts, progress)
        task = JointTask.of(manifest.family, evidence.votes, states, raw_eta)
        known = Known.of(head.weight, head.bias, evidence.index)
        found, rows = fit(evidence, task, known, costs, step)
        found = replace(found, floating=evidence.floating(manifest))
        if tuning is not None and found.by is not None and found.fold is not None:
            found = replace(found, tuned=tuning.judge(task, found.choice, found.by, found.fold))
        names = {**manifest.aliases, **(aliases or {})}
        update = {
            "name": name,
            "models": evidence.models,
            "aliases": {a: t for a, t in names.items() if t in evidence.models and a not in evidence.models},
            "ungrounded": found.floating,
            "quality": {},
        }
        votes = support([evidence.votes])
        before = {manifest.models[i]: to for to, i in zip(evidence.models, evidence.index, strict=False) if i >= 0}
        if tuning is not None and found.trained:
            tuned = tuning.bundle()
            found = _of_trained(found, tuned)
            write_changed(tuned, folder, update, _change(found, rows), votes=votes)
        else:
            n = evidence.candidates
            replace_head(model, head, rows.weight[:n], rows.bias[:n])
            if has_eta(manifest.family):
                scale_eta(model, rows.slope, rows.shift)
            step("checking the new bundle")
            past = None if found.past is None else found.past.to_bytes()
            new = write_changed(
                bundle, folder, update, _change(found, rows), model, past=past, votes=votes, renamed=before
            )
            verify_rows(bundle, new, head, rows, n)
        write(found, folder)
    return Bundle.open(output), found


def fit(
    evidence: Evidence,
    task: JointTask,
    known: Known,
    costs: Array | None = None,
    step: Callable[[str], None] = lambda message: None,
) -> tuple[Adoption, JointRows]:
    """The rows, with the strength that cross-validation chose, and its figures."""
    family = task.family
    setting = Setting.of(evidence, family)
    by = judge(evidence, task, setting)
    choice = choose_strength(task, known, setting.parts.judged, by, step)
    curve, saves, saved = None, None, False
    if costs is not None:
        curve, saves = cost_curve(evidence, setting, choice.promising, costs, family)
        if saves is not None and not choice.routes and choice.promising is not choice.level:
            choice, saved = replace(choice, chosen=choice.promising), True
        elif not choice.routes:
            saves = None
    step("following the learning curve")
    points = learning_curve(task, known, setting, by, choice)
    fits = {"adopted bundle": choice.chosen}
    if choice.chosen is not choice.promising:
        fits["routing by prompt, not adopted"] = choice.promising
    step(f"fitting {task.models} rows to {len(task.prompt)} votes")
    problem = JointProblem(task, known)
    rows, theta = problem.solve(choice.chosen.strength)
    apart = rows
    if choice.lowest is not choice.chosen:
        apart = problem.solve(choice.lowest.strength, (choice.chosen.strength, theta))[0]
    line = (rows.slope, rows.shift)
    past = begun(problem, evidence.votes.models, choice.chosen.strength, theta, line, evidence.votes.newest)
    n = evidence.candidates
    level = rows.weight @ task.features.mean(axis=0) + rows.bias
    best = int(np.argmax(level[:n]))
    figures = Figures(
        prompts=len(task.features),
        votes=len(evidence.votes),
        best_single=evidence.models[best],
        forecasts=tuple(forecasts(evidence, setting, fits, family)),
        policies=tuple(policies(evidence, setting, fits)),
        curve=tuple(points),
        more=prompts_to_tell(points, len(task.features)),
        costs=curve,
        saves=saves,
    )
    found = Adoption(
        evidence,
        choice,
        figures,
        evidence.models[best],
        rows.coefs(task.features)[:, :n],
        rows.raw_eta(task.raw_eta),
        apart.coefs(task.features)[:, :n],
        apart.raw_eta(task.raw_eta),
        float(task.weight[by.counted].sum()),
        saved,
        past=past.of(evidence.models, rows.weight[:n], rows.bias[:n]),
        by=by,
        fold=setting.parts.judged,
    )
    return found, rows


def _of_trained(found: Adoption, bundle: Bundle) -> Adoption:
    """The adoption with what the fine-tuned backbone says of its prompts; the frozen one's figures are named so."""
    scores = P2L(bundle).score_turns(found.evidence.votes.prompts)
    coefs = np.asarray(scores.coefs, np.float64)
    raw_eta = None if scores.raw_eta is None else np.asarray(scores.raw_eta, np.float64)
    figures = found.figures
    named = {"adopted bundle": "frozen backbone, not adopted"}
    figures = replace(
        figures,
        forecasts=tuple(replace(one, name=named.get(one.name, one.name)) for one in figures.forecasts),
        policies=tuple(replace(one, name=named.get(one.name, one.name)) for one in figures.policies),
        saves=None,
    )
    best = found.evidence.models[int(coefs.mean(axis=0).argmax())]
    return replace(
        found,
        figures=figures,
        best=best,
        coefs=coefs,
        raw_eta=raw_eta,
        apart_coefs=coefs,
        apart_raw_eta=raw_eta,
        past=None,
    )


def _change(found: Adoption, rows: JointRows) -> dict[str, Any]:
    """What the manifest notes of an adoption."""
    evidence, strength = found.evidence, found.choice.chosen.strength
    tuned = {} if found.tuned is None else {"tuned": found.tuned.record()}
    return {
        "change": "adopt",
        "does": found.kind,
        "models": list(evidence.models),
        "evidence_models": list(evidence.others),
        "left_out_votes": evidence.left_out_votes,
        "strength": {"own_rows": strength.own, "differ": strength.differ, "common": strength.common},
        "raw_eta": {"slope": round(rows.slope, 6), "shift": round(rows.shift, 6)},
        **found.figures.record(),
        **tuned,
    }
