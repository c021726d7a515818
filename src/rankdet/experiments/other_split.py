"""Finished runs on another split than the one they were validated on.

Whoever chooses by the validation images, be it between losses or between settings, has made them a
little better than they are. Images that nothing was chosen on tell by how much.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rankdet.eval.files import EvaluationFileError, read_score
from rankdet.eval.score import Score
from rankdet.experiments.collect import Evaluation, Result
from rankdet.experiments.folders import SCORE, Images, Place
from rankdet.experiments.run import Command
from rankdet.experiments.table import Table

_NUMBERS = ("AP", "oLRP", "oLRP_loc", "oLRP_fp", "oLRP_fn")


@dataclass(frozen=True)
class OtherSplit:
    """A split of the data that runs are judged on."""

    name: str
    images: int
    objects: int
    """Without crowd."""

    @property
    def said(self) -> str:
        """The split in words."""
        return f"split {self.name}: {self.images} images with {self.objects} objects"

    def folder(self, run: Path) -> Path:
        """Return where the evaluation of a run goes: where `rankdet evaluate` would put it."""
        return run / f"evaluation-{self.name}"

    def left(self, places: Iterable[Place]) -> list[Place]:
        """Return the runs that are not evaluated on these images yet."""
        return [place for place in places if self._score(place.folder) is None]

    def command(self, images: Images) -> Command:
        """Return the command that evaluates a run: `rankdet evaluate`, as a user would type it."""

        def command(place: Place) -> list[str]:
            return [
                sys.executable, "-m", "rankdet.cli.main", "evaluate", str(place.folder),
                "--data", str(images.source), "--split", self.name,
                "--keep-thresholds", "--out", str(self.folder(place.folder)),
            ]  # fmt: skip

        return command

    def judged(self, result: Result) -> Result | None:
        """Return what a run measured, with the numbers of these images in place of its own.

        None where it is not evaluated on them.
        """
        score = self._score(result.folder)
        if score is None:
            return None
        found = {name: getattr(score, name) for name in _NUMBERS}
        # To six digits, as a run itself notes them.
        numbers = {
            name: float(f"{value:.6g}") for name, value in found.items() if value is not None
        }
        metrics = result.metrics
        end = Evaluation(metrics.steps, numbers)
        return replace(result, score=score, metrics=replace(metrics, evaluations=(end,)))

    def _score(self, run: Path) -> Score | None:
        """Return the score of a run on these images, None where it has none."""
        try:
            score = read_score(self.folder(run) / SCORE)
        except EvaluationFileError:
            return None
        return score if (score.images, score.objects) == (self.images, self.objects) else None


def of_the_end(table: Table, split: OtherSplit) -> Table:
    """Return a table without what is measured on the way: there is one model of each run."""
    measures = tuple(measure for measure in table.measures if measure.share == 1)
    return replace(table, title=f"{table.title}; judged on {split.said}", measures=measures)


def note_of_the_models(results: Sequence[Result]) -> list[str]:
    """Say which models were not those of the end; results as the runs themselves measured them."""
    chosen = [result.run.name for result in results if not result.score_is_of_the_end]
    if not chosen:
        return []
    return [
        f"Of the model that was best on the validation images, not the last: {', '.join(chosen)}."
    ]
