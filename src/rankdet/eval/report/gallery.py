"""Pictures of the report: typical images, and the worst errors.

Boxes are drawn as SVG over a JPEG, so that they stay sharp and can follow the choice of a class.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rankdet.eval.instances import Floats
from rankdet.eval.report.confusion import RIGHT
from rankdet.eval.report.errors import Case, box_of, false_alarms, missed_objects, poor_boxes
from rankdet.eval.report.markup import Markup, plural, significant, tag
from rankdet.eval.report.runs import Run

Pixels = NDArray[np.uint8]
ImageReader = Callable[[int], "Pixels | None"]

TYPICAL = 12
"""Most typical images."""
_SIDE, _CROP_SIDE = 560, 260  # px, longest side of what is embedded
_LABELLED = 9  # with more boxes than this only the errors are labelled


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
        (
            "False alarms",
            "Wrong boxes that outrank the largest share of right boxes of their class.",
            false_alarms(run),
        ),
        (
            "Missed objects",
            "The largest objects of each class that no box above the threshold was right for.",
            missed_objects(run),
        ),
        ("Boxes off", "Right boxes that overlap least with their object.", poor_boxes(run)),
    )
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
    # Half as wide in a pair, so letters are larger.
    unit = max(width, height) / (340 if len(runs) == 1 else 250)
    name = f"picture-{place}"
    drawings: list[Markup] = []
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
                tag(
                    "svg",
                    tag("title", f"Image {image_id}: {told}"),
                    picture,
                    *shapes,
                    viewBox=f"0 0 {width} {height}",
                    role="img",
                ),
                tag("figcaption", *heading, told),
            )
        )
    every = " ".join(str(k) for k in sorted(classes))
    return tag("figure", *drawings, data_class=every)


def _boxes_of(run: Run, image: int, unit: float) -> tuple[list[Markup], set[int], str]:
    """Return the boxes of an image: objects, then right detections, then wrong ones on top."""
    done, instances, matches = run.outcomes, run.instances, run.matches
    truths = np.flatnonzero((instances.gt_image == image) & done.sought)
    here = np.flatnonzero(matches.image[done.kept] == image)
    here = here[np.argsort(done.kind[here] != RIGHT, kind="stable")]
    many = len(truths) + len(here) > 2 * _LABELLED
    shapes, labels = [], []
    for truth in truths.tolist():
        klass = int(instances.gt_class[truth])
        found = bool(done.found[truth])
        text = instances.names[klass]
        told = text if found else f"missed: {text}"
        style = "object" if found else "missed"
        shapes.append(_shape(instances.gt_boxes[truth], style, told, klass))
        if not found:
            labels.append(_label(instances.gt_boxes[truth], text, klass, unit))
    for at in here.tolist():
        klass = int(run.class_of[done.kept[at]])
        right = int(done.kind[at]) == RIGHT
        score = significant(float(matches.score[done.kept[at]]))
        told = f"{instances.names[klass]} {score}"
        style = "right" if right else "wrong"
        box = box_of(run, int(done.kept[at]))
        shapes.append(_shape(box, style, told, klass))
        if not (right and many):
            labels.append(_label(box, told, klass, unit))
    present = {int(k) for k in instances.gt_class[truths]}
    present |= {int(k) for k in run.class_of[done.kept[here]]}
    right_here = int((done.kind[here] == RIGHT).sum())
    told = (
        f"{right_here} of {plural(len(truths), 'object', 'objects')} found, "
        f"{plural(len(here) - right_here, 'false alarm', 'false alarms')}"
    )
    return shapes + labels, present, told


def _crop_figure(run: Run, case: Case, pixels: Pixels) -> Markup:
    boxes = [case.box] if case.truth < 0 else [case.box, run.instances.gt_boxes[case.truth]]
    left, top, right, bottom = _window(np.stack(boxes), pixels.shape[1], pixels.shape[0])
    part = pixels[top:bottom, left:right]
    offset = np.array([left, top, 0.0, 0.0])
    shapes = []
    if case.truth >= 0 and case.style != "missed":
        truth_class = int(run.instances.gt_class[case.truth])
        shapes.append(_shape(boxes[1] - offset, "object", run.instances.names[truth_class]))
    elif case.style == "missed":
        for at in np.flatnonzero(run.matches.image[run.outcomes.kept] == case.image).tolist():
            klass = int(run.class_of[run.outcomes.kept[at]])
            style = "right" if run.outcomes.kind[at] == RIGHT else "wrong"
            shapes.append(
                _shape(
                    box_of(run, int(run.outcomes.kept[at])) - offset,
                    f"{style} faint",
                    run.instances.names[klass],
                )
            )
    name = run.instances.names[case.klass]
    shapes.append(_shape(case.box - offset, case.style, name))
    drawing = tag(
        "svg",
        tag("title", f"{name}: {case.caption}"),
        tag("image", href=_jpeg(part, _CROP_SIDE), width=right - left, height=bottom - top),
        *shapes,
        viewBox=f"0 0 {right - left} {bottom - top}",
        role="img",
    )
    text = tag(
        "figcaption",
        tag("b", name),
        ": ",
        case.caption,
        ". ",
        tag("span", f"Image {run.instances.image_ids[case.image]}", class_="small"),
    )
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


def _shape(box: Floats, style: str, told: str, klass: int | None = None) -> Markup:
    """Return a box, dark below and coloured above, that shows on every background."""
    x, y, width, height = (float(v) for v in box)
    frame = {"x": x, "y": y, "width": max(width, 0.0), "height": max(height, 0.0)}
    under, over = tag("rect", class_="under", **frame), tag("rect", **frame)
    return tag("g", tag("title", told), under, over, class_=f"box {style}", data_class=klass)


def _label(box: Floats, text: str, klass: int, unit: float) -> Markup:
    """Return a text above a box, or inside where there is no room above."""
    x, y = float(box[0]), float(box[1])
    down = y - 4 * unit if y > 14 * unit else max(y, 0.0) + 12 * unit
    return tag(
        "text",
        text,
        x=max(x, 2 * unit),
        y=down,
        font_size=11 * unit,
        stroke_width=3 * unit,
        class_="box label",
        data_class=klass,
    )


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
