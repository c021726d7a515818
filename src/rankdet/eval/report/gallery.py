"""Pictures of the report: typical images, and the worst errors.

Boxes are drawn as SVG over a JPEG, so that they stay sharp and can follow the choice of a class.
"""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rankdet.eval.coco_ap import Bools, Floats, Ints
from rankdet.eval.matching import box_iou
from rankdet.eval.report.confusion import LOOSE, NOTHING, OTHER_CLASS, RIGHT, SECOND
from rankdet.eval.report.markup import Markup, plural, significant, tag
from rankdet.eval.report.runs import Run

Pixels = NDArray[np.uint8]
ImageReader = Callable[[int], "Pixels | None"]

TYPICAL = 12
"""Most typical images."""
_ERRORS = 12  # of each kind
_MOST_ERRORS = 24  # where there are many classes
_PER_IMAGE = 2
_SIDE, _CROP_SIDE = 560, 260  # px, longest side of what is embedded
_LABELLED = 9  # with more boxes than this only the errors are labelled


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


def typical_images(runs: Sequence[Run], images: ImageReader) -> Markup:
    """Return figures of images from all over the range of the first run's results.

    The images with anything in them are put in order of their share of errors; those shown stand
    at equal distances in it, the extremes left out.
    """
    first = runs[0]
    figures: list[Markup] = []
    for image in _typical(first):
        image_id = int(first.instances.image_ids[image])
        pixels = _read(images, image_id)
        if pixels is None:
            continue
        figures.append(_typical_figure(runs, image_id, pixels, len(figures)))
    return tag("div", *figures, class_="pictures runs-2" if len(runs) > 1 else "pictures")


def error_pictures(run: Run, images: ImageReader) -> list[tuple[str, str, Markup]]:
    """Return the worst errors of a run: pairs of heading, explanation, and the figures.

    Kinds without a case, or without a picture that can be read, are left out.
    """
    kinds = (
        ("False alarms", "Wrong boxes that outrank the largest share of right boxes of their "
         "class.", false_alarms(run)),
        ("Missed objects", "The largest objects of each class that no box above the threshold "
         "was right for.", missed_objects(run)),
        ("Boxes off", "Right boxes that overlap least with their object.", poor_boxes(run)),
    )  # fmt: skip
    made = []
    for heading, text, cases in kinds:
        figures = []
        for case in cases:
            pixels = _read(images, int(run.instances.image_ids[case.image]))
            if pixels is not None:
                figures.append(_crop_figure(run, case, pixels))
        if figures:
            none = tag("p", "None of the errors shown here is of this class.", class_="no-match")
            made.append((heading, text, tag("div", *figures, none, class_="crops")))
    return made


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
            Case(int(klass[at]), int(matches.image[done.kept[at]]), _box(run, int(done.kept[at])),
                 truth, "wrong", caption)
        )  # fmt: skip
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
        Case(int(klass[n]), int(matches.image[kept[n]]), _box(run, int(kept[n])),
             int(done.truth[right[n]]), "right",
             f"IoU {done.iou[right[n]]:.2f}. Score {significant(float(matches.score[kept[n]]))}")
        for n in chosen.tolist()
    ]  # fmt: skip


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


def _typical(run: Run) -> list[int]:
    number = len(run.instances.image_ids)
    done = run.outcomes
    right = np.bincount(run.matches.image[done.kept[done.kind == RIGHT]], minlength=number)
    kept = np.bincount(run.matches.image[done.kept], minlength=number)
    objects = np.bincount(run.instances.gt_image[done.sought], minlength=number)
    total = kept + objects - right
    some = np.flatnonzero(total > 0)
    share = 1 - right[some] / total[some]
    order = some[np.lexsort((run.instances.image_ids[some], share))]
    if len(order) <= TYPICAL:
        return [int(n) for n in order]
    places = np.linspace(0.02, 0.9, TYPICAL) * (len(order) - 1)
    return [int(n) for n in order[np.unique(np.round(places).astype(np.int64))]]


def _typical_figure(runs: Sequence[Run], image_id: int, pixels: Pixels, place: int) -> Markup:
    height, width = pixels.shape[:2]
    unit = max(width, height) / 400
    name = f"picture-{place}"
    drawings = []
    classes: set[int] = set()
    for number, run in enumerate(runs):
        image = int(np.searchsorted(run.instances.image_ids, image_id))
        if image >= len(run.instances.image_ids) or run.instances.image_ids[image] != image_id:
            continue
        shapes, present, told = _boxes_of(run, image, unit)
        classes |= present
        picture = (
            tag("image", href=_jpeg(pixels, _SIDE), width=width, height=height, id=name)
            if not drawings
            else tag("use", href=f"#{name}")
        )
        heading = [tag("b", run.name, class_=f"name run-{number}"), ": "] if len(runs) > 1 else []
        drawings.append(
            tag(
                "div",
                tag("svg", tag("title", f"Image {image_id}: {told}"), picture, *shapes,
                    viewBox=f"0 0 {width} {height}", role="img"),
                tag("figcaption", *heading, told),
            )
        )  # fmt: skip
    every = " ".join(str(k) for k in sorted(classes))
    return tag("figure", *drawings, data_class=every)


def _boxes_of(run: Run, image: int, unit: float) -> tuple[list[Markup], set[int], str]:
    """Return the boxes of an image: objects, then right detections, then wrong ones on top."""
    done, instances, matches = run.outcomes, run.instances, run.matches
    truths = np.flatnonzero((instances.gt_image == image) & done.sought)
    here = np.flatnonzero(matches.image[done.kept] == image)
    here = here[np.argsort(done.kind[here] != RIGHT, kind="stable")]
    many = len(truths) + len(here) > 2 * _LABELLED
    shapes = []
    for truth in truths.tolist():
        klass = int(instances.gt_class[truth])
        found = bool(done.found[truth])
        text = instances.names[klass]
        told = text if found else f"missed: {text}"
        label = None if found else told
        style = "object" if found else "missed"
        shapes.append(_shape(instances.gt_boxes[truth], style, told, label, klass, unit))
    for at in here.tolist():
        klass = int(run.class_of[done.kept[at]])
        right = int(done.kind[at]) == RIGHT
        score = significant(float(matches.score[done.kept[at]]))
        told = f"{instances.names[klass]} {score}"
        label = told if not right or not many else None
        style = "right" if right else "wrong"
        shapes.append(_shape(_box(run, int(done.kept[at])), style, told, label, klass, unit))
    present = {int(k) for k in instances.gt_class[truths]}
    present |= {int(k) for k in run.class_of[done.kept[here]]}
    right_here = int((done.kind[here] == RIGHT).sum())
    told = (
        f"{right_here} of {plural(len(truths), 'object', 'objects')} found, "
        f"{plural(len(here) - right_here, 'false alarm', 'false alarms')}"
    )
    return shapes, present, told


def _crop_figure(run: Run, case: Case, pixels: Pixels) -> Markup:
    boxes = [case.box] if case.truth < 0 else [case.box, run.instances.gt_boxes[case.truth]]
    left, top, right, bottom = _window(np.stack(boxes), pixels.shape[1], pixels.shape[0])
    part = pixels[top:bottom, left:right]
    unit = max((right - left) / 240, (bottom - top) / 180)
    offset = np.array([left, top, 0.0, 0.0])
    shapes = []
    if case.truth >= 0 and case.style != "missed":
        truth_class = int(run.instances.gt_class[case.truth])
        shapes.append(_shape(boxes[1] - offset, "object", run.instances.names[truth_class], None,
                             None, unit))  # fmt: skip
    elif case.style == "missed":
        for at in np.flatnonzero(run.matches.image[run.outcomes.kept] == case.image).tolist():
            klass = int(run.class_of[run.outcomes.kept[at]])
            style = "right" if run.outcomes.kind[at] == RIGHT else "wrong"
            shapes.append(_shape(_box(run, int(run.outcomes.kept[at])) - offset, f"{style} faint",
                                 run.instances.names[klass], None, None, unit))  # fmt: skip
    name = run.instances.names[case.klass]
    shapes.append(_shape(case.box - offset, case.style, name, None, None, unit))
    drawing = tag(
        "svg",
        tag("title", f"{name}: {case.caption}"),
        tag("image", href=_jpeg(part, _CROP_SIDE), width=right - left, height=bottom - top),
        *shapes,
        viewBox=f"0 0 {right - left} {bottom - top}",
        role="img",
    )
    text = tag("figcaption", tag("b", name), ": ", case.caption, ". ",
               tag("span", f"Image {run.instances.image_ids[case.image]}", class_="small"))  # fmt: skip
    return tag("figure", drawing, text, data_class=case.klass)


def _window(boxes: Floats, width: int, height: int) -> tuple[int, int, int, int]:
    """Return a part of the image of aspect 4 : 3 around the boxes, where the image allows it."""
    low = np.clip(boxes[:, :2].min(axis=0), 0, [width - 1, height - 1])
    high = np.clip((boxes[:, :2] + boxes[:, 2:]).max(axis=0), low + 1, [width, height])
    centre = (low + high) / 2
    tall = max(1.7 * max((high[1] - low[1]), (high[0] - low[0]) * 0.75), 48.0)
    wide = min(tall * 4 / 3, width)
    tall = min(tall, height)
    left = int(np.clip(centre[0] - wide / 2, 0, width - wide))
    top = int(np.clip(centre[1] - tall / 2, 0, height - tall))
    return left, top, min(left + round(wide), width), min(top + round(tall), height)


def _shape(
    box: Floats, style: str, told: str, label: str | None, klass: int | None, unit: float
) -> Markup:
    """Return a box, dark below and coloured above, that shows on every background."""
    x, y, width, height = (float(v) for v in box)
    frame = {"x": x, "y": y, "width": max(width, 0.0), "height": max(height, 0.0)}
    parts = [tag("rect", class_="under", **frame), tag("rect", **frame)]
    if label is not None:
        above = y > 14 * unit
        parts.append(
            tag("text", label, x=max(x, 2 * unit), y=y - 4 * unit if above else y + 12 * unit,
                font_size=11 * unit, stroke_width=3 * unit)
        )  # fmt: skip
    return tag("g", tag("title", told), *parts, class_=f"box {style}", data_class=klass)


def _jpeg(pixels: Pixels, side: int) -> str:
    picture = Image.fromarray(pixels)
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    written = io.BytesIO()
    picture.save(written, "JPEG", quality=80, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(written.getvalue()).decode("ascii")


def _read(images: ImageReader, image_id: int) -> Pixels | None:
    pixels = images(image_id)
    if pixels is None:
        return None
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise ValueError(
            f"images({image_id}) must return RGB pixels, uint8 [height, width, 3], or None; "
            f"got {pixels.dtype} {list(pixels.shape)}"
        )
    return np.ascontiguousarray(pixels)


def _box(run: Run, place: int) -> Floats:
    box: Floats = run.instances.dt_boxes[run.matches.source[place]]
    return box


def _overlap(boxes: Floats, box: Floats) -> Floats:
    no_crowd: Bools = np.zeros(len(boxes), dtype=np.bool_)
    return box_iou(boxes, np.broadcast_to(box, boxes.shape), no_crowd)
