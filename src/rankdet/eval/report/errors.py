"""Which errors are the worst, and what to say about each."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from rankdet.eval.instances import Bools, Floats, Ints
from rankdet.eval.matching import box_iou
from rankdet.eval.report.confusion import LOOSE, NOTHING, OTHER_CLASS, RIGHT, SECOND
from rankdet.eval.report.markup import significant
from rankdet.eval.report.runs import Run

_ERRORS = 12  # of each kind
_MOST_ERRORS = 24  # where there are many classes
_PER_IMAGE = 2


@dataclass(frozen=True)
class Case:
    """One error to show."""

    klass: int
    image: int
    """Index of the image."""
    box: Floats
    """[4] x, y, width, height of the detection, or of a missed object."""
    truth: int
    """Index of the object that it is about, or -1."""
    style: str
    """"wrong", "missed" or "right": how the box is drawn."""
    caption: str


def false_alarms(run: Run) -> list[Case]:
    """Return the worst false positives: those that outrank most right ones of their class."""
    done, matches = run.outcomes, run.matches
    klass, score = run.class_of[done.kept], matches.score[done.kept]
    right = done.kind == RIGHT
    wrong = np.flatnonzero(~right)
    outranked = np.zeros(len(wrong))
    for k in np.unique(klass[wrong]).tolist():
        good = np.sort(score[right & (klass == k)])
        here = klass[wrong] == k
        below = np.searchsorted(good, score[wrong[here]])
        outranked[here] = below / len(good) if len(good) else 1.0
    names = run.instances.names
    cases = []
    chosen = _choose(klass[wrong], -outranked, matches.image[done.kept[wrong]], len(names))
    for n in chosen.tolist():
        at = int(wrong[n])
        kind, truth = int(done.kind[at]), int(done.truth[at])
        other = names[run.instances.gt_class[truth]] if truth >= 0 else ""
        why = {
            OTHER_CLASS: f"the object is: {other}",
            SECOND: f"an object that has its box already ({other})",
            LOOSE: f"box too far off: IoU {done.iou[at]:.2f}",
            NOTHING: "nothing there",
        }[kind]
        caption = (
            f"{why}. Score {significant(float(score[at]))}, above {outranked[n]:.0%} of the right "
            "boxes"
        )
        cases.append(
            Case(
                int(klass[at]),
                int(matches.image[done.kept[at]]),
                box_of(run, int(done.kept[at])),
                truth,
                "wrong",
                caption,
            )
        )
    return cases


def missed_objects(run: Run) -> list[Case]:
    """Return the worst misses: the largest objects of each class."""
    done, instances = run.outcomes, run.instances
    missed = np.flatnonzero(done.sought & ~done.found)
    klass = instances.gt_class[missed]
    area = instances.gt_boxes[missed, 2] * instances.gt_boxes[missed, 3]
    chosen = _choose(klass, -area, instances.gt_image[missed], len(instances.names))
    return [_missed(run, int(missed[n])) for n in chosen.tolist()]


def poor_boxes(run: Run) -> list[Case]:
    """Return the right detections with the smallest overlap."""
    done, matches = run.outcomes, run.matches
    right = np.flatnonzero(done.kind == RIGHT)
    kept = done.kept[right]
    klass = run.class_of[kept]
    chosen = _choose(klass, done.iou[right], matches.image[kept], len(run.instances.names))
    return [
        Case(
            int(klass[n]),
            int(matches.image[kept[n]]),
            box_of(run, int(kept[n])),
            int(done.truth[right[n]]),
            "right",
            f"IoU {done.iou[right[n]]:.2f}. Score {significant(float(matches.score[kept[n]]))}",
        )
        for n in chosen.tolist()
    ]


def _missed(run: Run, truth: int) -> Case:
    done, instances = run.outcomes, run.instances
    image, klass = int(instances.gt_image[truth]), int(instances.gt_class[truth])
    box = instances.gt_boxes[truth]
    if done.taken_for[truth] >= 0:
        caption = f"taken for: {instances.names[done.taken_for[truth]]}"
    else:
        near = np.flatnonzero((run.matches.image == image) & (run.class_of == klass))
        overlap = _overlap(instances.dt_boxes[run.matches.source[near]], box)
        threshold = run.score.per_class[klass].threshold
        if len(near) and overlap.max() >= 0.1:
            best = int(overlap.argmax())
            score = significant(float(run.matches.score[near[best]]))
            caption = f"nearest box: IoU {overlap[best]:.2f}, score {score}"
            caption += f" (threshold {significant(threshold)})" if threshold is not None else ""
        else:
            caption = "no box of this class anywhere near"
    return Case(klass, image, box, truth, "missed", caption)


def _choose(klass: Ints, badness: Floats, image: Ints, classes: int) -> Ints:
    """Return the places of the worst cases (smallest value), taking the classes in turn.

    Few from one image, so that one strange image does not fill the page.
    """
    order = np.argsort(badness, kind="stable")
    turn = np.zeros(len(order), dtype=np.int64)
    seen: Counter[int] = Counter()
    per_image: Counter[int] = Counter()
    fits = np.zeros(len(order), dtype=np.bool_)
    for n in order.tolist():
        if per_image[int(image[n])] >= _PER_IMAGE:
            continue
        fits[n] = True
        turn[n] = seen[int(klass[n])]
        seen[int(klass[n])] += 1
        per_image[int(image[n])] += 1
    order = order[fits[order]]
    order = order[np.argsort(turn[order], kind="stable")]
    return order[: min(max(_ERRORS, classes), _MOST_ERRORS)]


def box_of(run: Run, place: int) -> Floats:
    """Return the box of a detection by its place in the matches: [4] x, y, width, height."""
    box: Floats = run.instances.dt_boxes[run.matches.source[place]]
    return box


def _overlap(boxes: Floats, box: Floats) -> Floats:
    no_crowd: Bools = np.zeros(len(boxes), dtype=np.bool_)
    return box_iou(boxes, np.broadcast_to(box, boxes.shape), no_crowd)
