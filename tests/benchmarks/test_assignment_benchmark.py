"""Assignment at scale stays within its memory, and its benchmark runs and says what it ran."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.ops import box_iou

from benchmarks import assignment, results
from benchmarks.assignment_detectors import (
    DENSE,
    LOSSES,
    NAMES,
    REGIMES,
    TWO_STAGE_LOSSES,
    Setting,
    assign,
    drawn_logits,
    leaves,
    objects,
    settings,
)
from rankdet.structures import IGNORED, Assignment, Priors, RegionPredictions, Targets

# MB; the table of all pairs alone, of one float32 each, would be 327.
BOUNDS = {"MaxIoU": 200, "ATSS": 330, "FCOS": 160, "FoveaBox": 160}


@pytest.mark.parametrize("name", BOUNDS)
def test_many_objects_and_priors_need_bounded_memory(name: str) -> None:
    assigner, generator, side = assignment.ASSIGNERS[name]
    priors = generator((side, side), device="cpu", dtype=torch.float32)
    assert len(priors.boxes) > 50_000
    megabytes = assignment.peak(assigner, priors, objects(8, 200, side))
    assert math.isnan(megabytes) or 5 < megabytes < BOUNDS[name]


def test_the_measure_of_memory_sees_a_table_of_all_pairs() -> None:
    _, generator, _ = assignment.ASSIGNERS["MaxIoU"]
    priors = generator((160, 160), device="cpu", dtype=torch.float32)
    targets = objects(8, 200, 160)
    held = []

    def wasteful(priors: Priors, targets: Targets) -> Assignment:
        pairs = targets.boxes[:, :, None, 0] + priors.boxes[:, 0]
        held.append(pairs.shape)
        return Assignment(pairs.argmax(1))

    megabytes = assignment.peak(wasteful, priors, targets)
    assert held == [(1, 1, len(priors.boxes)), (8, 200, len(priors.boxes))]
    expected = 8 * 200 * len(priors.boxes) * 4 / 1e6
    assert math.isnan(megabytes) or megabytes == pytest.approx(expected, rel=0.3)


def test_objects_lie_on_their_images() -> None:
    targets = objects(3, 50, 512)
    low, high = targets.boxes.split(2, -1)
    assert (low >= 0).all()
    assert (high <= 512).all()
    assert (high > low).all()
    sides = (high - low).flatten()
    assert sides.min() < 8
    assert sides.max() > 128
    assert torch.equal(targets.boxes, objects(3, 50, 512).boxes)


def test_a_trained_head_is_sure_of_its_positives_alone() -> None:
    matched, labels = torch.tensor([[0, -1, -2, 1] * 500]), torch.tensor([[3, 5]])
    logits = torch.zeros(1, 2000, 6)
    drawn = drawn_logits(logits, matched, labels, "trained")[0]
    positive = torch.zeros(2000, 6, dtype=torch.bool)
    positive[0::4, 3] = positive[3::4, 5] = True
    for some, mean, spread in ((positive, -1, 2), (~positive, -6, 1.5)):
        assert float(drawn[some].mean()) == pytest.approx(mean, abs=0.3)
        assert float(drawn[some].std()) == pytest.approx(spread, rel=0.1)
    assert torch.equal(drawn_logits(logits, matched, labels, "init"), logits)


def made(name: str, regime: str) -> list[Setting]:
    return list(settings(name, regime, batch=2, count=7, side=64, channels=8, device="cpu"))


def test_a_second_stage_looks_at_objects_and_once_trained_about_them() -> None:
    for regime, least in (("init", 7), ("trained", 7 * 15)):
        both, first, second = made("Faster R-CNN", regime)
        assert (both.priors, first.priors) == (first.priors + second.priors, PRIORS[first.name])
        said = second.predictions
        assert isinstance(said, RegionPredictions)
        logits = said.logits.split(list(said.regions.counts))
        for image, regions in enumerate(said.regions.split()):
            overlaps = box_iou(second.targets.boxes[image], regions)
            assert overlaps.amax(1).min() > 0.999
            near = overlaps.amax(0) >= 0.5
            assert near.sum() >= least
            labels = second.targets.labels[image][overlaps.argmax(0)]
            scores = logits[image].gather(1, labels[:, None])[:, 0]
            assert regime == "init" or abs(scores[near].mean() + 1) < 0.5
        # Where it is trained, positives of either stage are surer than the rest.
        for stage in (first, second):
            criterion = stage.criteria["aLRP, self-balance"]
            terms = criterion(leaves(stage.predictions, frozenset()), stage.targets)
            assert (terms.parts["classification"] < 0.9) == (regime == "trained")


def test_what_is_assigned_is_what_the_criteria_train() -> None:
    for name in NAMES:
        for given in made(name, "trained"):
            for loss, criterion in given.criteria.items():
                needs: Any = criterion.needs
                torch.manual_seed(0)
                terms = criterion(leaves(given.predictions, needs), given.targets)
                torch.manual_seed(0)
                matched = assign(criterion, given.predictions, given.targets)
                counts = [v for k, v in terms.parts.items() if k.endswith("positives")]
                assert sum(counts) == sum((each >= 0).sum() for each in matched) > 0, (name, loss)
                kinds = [image for each in matched for image in each]
                if loss.endswith("sampled") and given.name.endswith("first stage"):
                    assert [(image > IGNORED).sum() for image in kinds] == [256, 256]
                if loss.endswith("sampled") and given.name.endswith("second stage"):
                    assert [(image >= 0).sum() for image in kinds] == [128, 128]


# Of an image of 64 x 64 px; of regions, how many there are depends on what overlaps.
PRIORS = {"RetinaNet": 516, "RetinaNet + ATSS": 172, "FoveaBox": 86, "FCOS": 86,
          "Faster R-CNN, first stage": 1023}  # fmt: skip
STAGES = ("Faster R-CNN", "Faster R-CNN, first stage", "Faster R-CNN, second stage")


def test_the_rows_are_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = "--rounds 1 --batch 2 --size 64 --channels 8 --shrink 10 --out".split()  # noqa: SIM905
    assert assignment.main([*arguments, str(tmp_path)]) == 0
    rows = results.read(tmp_path / "assignment-cpu.csv")
    losses = {
        **{name: (*LOSSES, *detector.losses) for name, detector in DENSE.items()},
        **dict.fromkeys(STAGES, tuple(TWO_STAGE_LOSSES)),
    }
    expected = {
        (detector, regime, loss)
        for detector in losses
        for regime in REGIMES
        for loss in losses[detector]
    }
    found = [(row["detector"], row["regime"], row["loss"]) for row in rows]
    assert set(found) == expected
    assert len(found) == len(expected)
    for row in rows:
        assert row["rival"] == losses[row["detector"]][0]
        assert int(row["priors"]) == PRIORS.get(row["detector"], int(row["priors"]))
        assert int(row["positives"]) > 0
        parts = ("head", "head_backward", *assignment.PARTS)
        assert all(float(row[f"{part}_ms"]) > 0 for part in parts)
        assert float(row["ratio_low"]) <= float(row["criterion_ratio"]) <= float(row["ratio_high"])
        assert all(row[name] for name in ("commit", "machine", "torch", "threads", "seed", "date"))
        if row["loss"] == row["rival"]:
            assert float(row["criterion_ratio"]) == 1
    # They go below those that were measured before.
    published = results.read(results.RESULTS / "assignment-cpu.csv")
    assert list(published[0]) == list(rows[0])
    alone = results.read(tmp_path / "assigners-cpu.csv")
    assert [row["assigner"] for row in alone] == list(assignment.ASSIGNERS)
    assert all(row["batch"] == "8" and row["objects"] == "200" for row in alone)
    printed = capsys.readouterr().out
    assert "x focal + smooth L1" in printed
    assert "x CE + smooth L1, sampled" in printed
    assert "8 x 200 objects" in printed


def test_wrong_settings_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert assignment.main(["--device", "cuda", "--out", str(tmp_path)]) == 2
    assert "no CUDA device" in capsys.readouterr().err
    assert assignment.main(["--rounds", "0", "--out", str(tmp_path)]) == 2
    assert "--rounds must be 1 or more, got 0" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
