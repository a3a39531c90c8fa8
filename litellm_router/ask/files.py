"""The files of a run beside its journal: votes or a score matrix, and the answers where they are to be kept."""

from __future__ import annotations

import json
import os
from pathlib import Path

from litellm_router.ask.known import Known
from p2l_plugins.files.tables import replaced_file
from p2l_plugins.votes.output import write_matrix, write_votes
from p2l_plugins.votes.scores import MatrixBuilder
from p2l_plugins.votes.tally import Tally
from p2l_plugins.votes.votes import VoteBuilder


def write_votes_of(known: Known, path: Path) -> int:
    """Writes the votes so far; how many there are. Nothing is written where there are none."""
    builder, count = VoteBuilder(), 0
    for i, question in enumerate(known.questions):
        for one in known.compared(i):
            if one.outcome is not None:
                builder.add(
                    question.turns, one.models, one.outcome, language=question.language, category=question.category
                )
                count += 1
    if count:
        write_votes(path, builder.votes(), Tally())
    return count


def write_scores(known: Known, path: Path) -> int:
    """Writes the score matrix so far, 0 to 1; how many scores there are. Nothing is written where there are none."""
    builder, count = MatrixBuilder(), 0
    for model in known.task.models:
        builder.model(model)
    for i, question in enumerate(known.questions):
        scores = known.scores(i)
        if scores:
            row = builder.row(question.turns, question.category)
            for model, score in scores.items():
                builder.add(row, model, score)
                count += 1
    if count:
        write_matrix(path, builder.matrix(Tally()))
    return count


def write_answers(known: Known, path: Path) -> None:
    """Writes prompt, model and answer of each answer that the journal holds, readable by its owner only."""
    with replaced_file(path) as temporary:
        file = os.open(temporary, os.O_WRONLY | os.O_CREAT, 0o600)
        with os.fdopen(file, "w", encoding="utf-8", newline="\n") as stream:
            for i, question in enumerate(known.questions):
                prompt = question.turns[0] if len(question.turns) == 1 else list(question.turns)
                for model in known.asked(i):
                    found = known.answer(i, model)
                    if found is not None and found.text is not None:
                        row = {"prompt": prompt, "model": model, "answer": found.text}
                        stream.write(json.dumps(row, ensure_ascii=False) + "\n")
