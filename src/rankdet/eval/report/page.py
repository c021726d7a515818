"""The page: all sections put together and written as one file."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from string import Template

import numpy as np
from numpy.typing import NDArray

from rankdet import __version__
from rankdet.eval.report import charts, confusion_tables, gallery, numbers, tables
from rankdet.eval.report.markup import Markup, join, significant, tag
from rankdet.eval.report.plot import legend
from rankdet.eval.report.runs import Run, RunForReport, analyse

_BOXES = (
    ("box-right", "right box"),
    ("box-wrong", "false alarm"),
    ("box-missed", "missed object"),
    ("box-object", "object (ground truth)"),
)
# With more classes than this their lines are drawn faintly, without marks until one is chosen.
_MANY = 12
# What the line at the top leads to, where it is there.
_LINKS = (
    ("numbers", "Numbers"),
    ("changes", "Changes"),
    ("pictures", "Pictures"),
    ("classes", "Classes"),
    ("curves", "Curves"),
    ("by-number", "Crowding"),
    ("confusions", "Confusions"),
    ("errors", "Errors"),
)
_ERRORS = (("off", "boxes off"), ("alarm", "false alarms"), ("missed", "missed objects"))


def write_report(
    path: Path,
    runs: Sequence[RunForReport],
    *,
    images: Callable[[int], NDArray[np.uint8] | None] | None = None,
    title: str,
    facts: Mapping[str, str] = {},
) -> None:
    """Write one self-contained HTML file about one run, or about two side by side.

    It opens without a network, can be printed, follows the reader's choice of dark or light, and
    can be read without JavaScript, which only adds the choice of a class. All given text is shown
    as it is, never as markup. The file appears when it is complete, in place of an older one.

    Args:
        path: of the file; missing folders are made.
        runs: one, or two of the same classes; of two, the second is compared with the first.
        images: returns the RGB pixels, uint8 [H, W, 3], of an image id of the ground truth, or
            None for one that cannot be shown. It is asked for about a hundred images at most.
            Without it the report has no pictures.
        title: heading of the page.
        facts: lines of a small table, such as recipe, steps, time, data, command.

    Raises:
        ValueError: not one or two runs; their classes differ; a score is of other data than its
            ground truth and detections; a record is wrong; pixels have another shape.

    Example:
        write_report(
            Path("report.html"),
            [RunForReport("aLRP", score(truth, found), truth, found)],
            images=lambda image_id: read_image(folder / f"{image_id}.png"),
            title="Blood cells",
            facts={"steps": "1600"},
        )
    """
    if len(runs) not in (1, 2):
        raise ValueError(f"a report is about one run or two, got {len(runs)}")
    analysed = [analyse(run) for run in runs]
    _check_same_classes(analysed)
    text = page(analysed, images=images, title=title, facts=facts)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.part")
    # A lone half of a surrogate pair, possible in JSON, has no UTF-8.
    try:
        unfinished.write_text(text, encoding="utf-8", errors="xmlcharrefreplace")
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def page(
    runs: Sequence[Run],
    *,
    images: Callable[[int], NDArray[np.uint8] | None] | None,
    title: str,
    facts: Mapping[str, str],
) -> str:
    """Return the page as text; arguments as of `write_report`."""
    names = runs[0].instances.names
    single = len(names) == 1
    sections = [
        _section("numbers", "Headline", None, tables.headline(runs), numbers.all_numbers(runs)),
        tables.warnings(runs),
        *([_changes(runs)] if len(runs) > 1 else []),
        *([_pictures(runs, images)] if images is not None else []),
        _classes(runs, single),
        *_at_thresholds(runs, single),
        _curves(runs, single),
        _correlation(runs, single),
        _by_number(runs),
        _confusions(runs, single),
        *(_errors(runs, images) if images is not None else []),
        _about(runs),
    ]
    script = _file("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    options = [tag("option", name, value=k) for k, name in enumerate(names)]
    choice = tag(
        "label",
        "Class ",
        tag("select", tag("option", "all classes", value=""), *options, id="class-filter"),
        class_="filter",
    )
    return Template(_file("page.html")).substitute(
        title=join([title]),
        style=_file("page.css"),
        script=script,
        script_hash=digest,
        filter=Markup("") if single else choice,
        links=_links(sections),
        state="filtered" if single else "many" if len(names) > _MANY else "",
        verdict=tables.verdict(runs),
        facts=tables.facts_table(facts),
        sections=join(sections),
        version=join([__version__]),
    )


def _check_same_classes(runs: Sequence[Run]) -> None:
    first = runs[0]
    for run in runs[1:]:
        if run.instances.names != first.instances.names or not np.array_equal(
            run.instances.category_ids, first.instances.category_ids
        ):
            raise ValueError(
                f"runs {first.name!r} and {run.name!r} have other classes: "
                f"{list(first.instances.names)[:10]} and {list(run.instances.names)[:10]}; "
                "score both on the same ground truth"
            )


def _links(sections: Sequence[str]) -> Markup:
    there = [(name, text) for name, text in _LINKS
             if any(made.startswith(f'<section id="{name}">') for made in sections)]  # fmt: skip
    return join(tag("a", text, href=f"#{name}") for name, text in there)


def _section(name: str, heading: str, text: str | None, *inside: str) -> Markup:
    intro = [tag("p", text, class_="intro")] if text else []
    return tag("section", tag("h2", heading), *intro, *inside, id=name)


def _changes(runs: Sequence[Run]) -> Markup:
    return _section(
        "changes",
        "What changed",
        f"AP by class, from {runs[0].name} to {runs[1].name}: what got worse comes first.",
        numbers.class_changes(runs),
    )


def _at_thresholds(runs: Sequence[Run], single: bool) -> list[Markup]:
    sections: list[Markup] = []
    for run in runs:
        made = numbers.at_thresholds(run, single=single)
        if made:
            of = f" of {run.name}" if len(runs) > 1 else ""
            sections.append(
                _section(
                    f"at-threshold-{len(sections)}",
                    f"At the thresholds that were asked for{of}",
                    "What happens with given thresholds instead of the recommended ones. The last "
                    "column is the error that the recommended threshold of the class would leave.",
                    made,
                )
            )
    return sections


def _pictures(runs: Sequence[Run], images: gallery.ImageReader) -> Markup:
    return _section(
        "pictures",
        "Typical pictures",
        "Images from all over the range of results, good ones first, with what the detector "
        "reports at the recommended thresholds.",
        legend(_BOXES),
        gallery.typical_images(runs, images),
        tag("p", "None of the pictures shown here has this class.", class_="no-match"),
    )


def _classes(runs: Sequence[Run], single: bool) -> Markup:
    blocks = []
    for run in runs:
        name = f" of {run.name}" if len(runs) > 1 else ""
        text = json.dumps(run.score.thresholds, indent=2, ensure_ascii=False)
        blocks.append(
            tag("details", tag("summary", f"All thresholds{name} as JSON"), tag("pre", text))
        )
    return _section(
        "classes",
        "Classes and their thresholds",
        "Keep a box if its score is at or above the threshold of its class: there the error of "
        "the class is smallest. The bar is as long as the error; its colours say what would "
        "help most. Classes with the largest error come first.",
        legend(_ERRORS),
        tables.class_table(runs, single=single),
        *blocks,
    )


def _curves(runs: Sequence[Run], single: bool) -> Markup:
    lines = [] if single else [("line-faint", "one class"), ("line-mean", "all classes")]
    return _section(
        "curves",
        "Finding more, or being right more often",
        "Lowering the threshold finds more objects (recall) and lets more false alarms in "
        "(precision). Rings mark the recommended threshold of each class."
        + (
            ""
            if single
            else " The bold line is the mean over classes; on the right it shows what "
            "one threshold for all classes would give. Choose a class above to see it alone."
        ),
        charts.run_legend(runs, *lines),
        tag(
            "div",
            _figure(charts.precision_recall(runs, single=single), "Precision against recall"),
            _figure(charts.lrp_by_threshold(runs, single=single), "LRP error against threshold"),
            class_="charts",
        ),
    )


def _correlation(runs: Sequence[Run], single: bool) -> Markup:
    figures = [
        _figure(
            charts.score_against_iou(run, place, single=single),
            f"{run.name}. {tables.correlation_text(run)}",
        )
        for place, run in enumerate(runs)
    ]
    return _section(
        "correlation",
        "Do better boxes get higher scores?",
        "Each dot is a correct box. The more the dots rise to the right, the better the score "
        "tells how well a box fits, which is what a ranking loss is trained for. The line joins "
        "the medians of ten groups of all classes.",
        tag("div", *figures, class_="charts"),
    )


def _by_number(runs: Sequence[Run]) -> Markup:
    shown = []
    if runs[0].score.by_count:
        shown.append(
            tag(
                "div",
                _figure(charts.by_number(runs, "AP"), "AP"),
                _figure(charts.by_number(runs, "oLRP"), "oLRP"),
                class_="charts",
            )
        )
    return _section(
        "by-number",
        "Crowded images and small objects",
        "How well the detector does on images with few and with many objects, over all classes. "
        f"Pale bars rest on fewer than {runs[0].score.few} objects.",
        charts.run_legend(runs),
        *shown,
        tag("h3", "By the size of the object"),
        tables.size_table(runs),
    )


def _confusions(runs: Sequence[Run], single: bool) -> Markup:
    parts = []
    for place, run in enumerate(runs):
        if len(runs) > 1:
            parts.append(tag("h3", run.name, class_=f"name run-{place}"))
        if not single:
            parts.append(confusion_tables.confusion_table(run))
        parts.append(confusion_tables.outcome_table(run, single=single))
    return _section(
        "confusions",
        "What is taken for what",
        "At the recommended thresholds. Rows of the first table are what is really there, columns "
        "what the detector says; shades are shares of the row. A box counts against an object "
        f"from an IoU of {runs[0].score.tau:g} on.",
        *parts,
    )


def _errors(runs: Sequence[Run], images: gallery.ImageReader) -> list[Markup]:
    parts: list[str] = []
    for place, run in enumerate(runs):
        kinds = gallery.error_pictures(run, images)
        if kinds and len(runs) > 1:
            parts.append(tag("h3", run.name, class_=f"name run-{place}"))
        for heading, text, figures in kinds:
            parts += [tag("h4", heading), tag("p", text, class_="intro"), figures]
    if not parts:
        return []
    return [
        _section(
            "errors",
            "Worst errors",
            "At the recommended thresholds, taking the classes in turn and at most two from one "
            "image. Some of them may be errors of the labels.",
            legend(_BOXES),
            *parts,
        )
    ]


def _about(runs: Sequence[Run]) -> Markup:
    score = runs[0].score
    lines = (
        "AP follows COCO: mean over classes, 101 recalls and ten IoUs from .50 to .95, with at "
        "most 100 boxes for each image and class.",
        f"LRP at a threshold = (Σ (1 - IoU) / {significant(1 - score.tau)} over right boxes + "
        "false alarms + missed objects) / (right boxes + false alarms + missed objects), a box "
        f"being right from an IoU of {score.tau:g} on. oLRP is its smallest value over all "
        "thresholds.",
        "Crowd regions are neither to be found nor wrong to find. Classes without objects take no "
        "part in means.",
        "Thresholds and numbers come from the same images: on new images expect a little less.",
    )
    sources = (
        "Lin et al., Microsoft COCO, ECCV 2014; Oksuz et al., Localization Recall Precision (LRP), "
        "ECCV 2018."
    )
    items = [tag("li", line) for line in (*lines, sources)]
    return tag("section", tag("h2", "How to read this"), tag("ul", *items), id="about")


def _figure(chart: Markup, caption: str) -> Markup:
    return tag("figure", tag("figcaption", caption), chart)


def _file(name: str) -> str:
    return resources.files("rankdet.eval.report").joinpath(name).read_text(encoding="utf-8")
