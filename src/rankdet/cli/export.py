"""`rankdet export`: write a model for another runtime."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rankdet.cli.common import path_text, plain

EXAMPLES = """\
examples:
  rankdet export runs/photos-1                          -> runs/photos-1/best.onnx
  rankdet export runs/photos-1/best.safetensors --out detector.onnx
  rankdet export runs/photos-1 --format torchscript     for libtorch with torchvision
  rankdet export runs/photos-1 --nms none               duplicates are left to the caller
"""


def add_to(verbs: Any) -> None:
    """Add the verb to the command."""
    parser = verbs.add_parser(
        "export",
        help="write a model as ONNX, TorchScript or pt2",
        description="Write a model as one file for another runtime: from resized images to boxes, "
        "scores and labels, for any number and size of images. Classes, thresholds and how images "
        "are to be resized are in the file. It is run once and compared with the model before it "
        "is put in place.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "model", type=path_text, metavar="CKPT", help="best.safetensors of a run, or its folder"
    )
    parser.add_argument(
        "--format",
        default="onnx",
        choices=("onnx", "torchscript", "pt2"),
        help="onnx (needs the extra `export`), torchscript or pt2, PyTorch's newer format",
    )
    parser.add_argument("--out", type=path_text, metavar="FILE", help="default: beside the model")
    parser.add_argument(
        "--nms",
        default="hard",
        choices=("hard", "none"),
        help="whether duplicates are removed in the file (hard)",
    )
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Export."""
    from rankdet import __version__
    from rankdet.cli.common import Voice, load
    from rankdet.config.assemble import divisor_of
    from rankdet.config.build import build_test_resize
    from rankdet.config.build_model import build_post_process
    from rankdet.data.transforms import MEAN_COLOUR
    from rankdet.engine.files import RunError
    from rankdet.export.describe import Description
    from rankdet.export.formats import get_format
    from rankdet.export.write import write_file

    voice = Voice()
    model = load(Path(given.model), "cpu")
    form = get_format(given.format)
    out = Path(given.out) if given.out else model.path.with_suffix(form.suffix)
    if out.is_dir():
        raise RunError(f"--out {out} is a folder; name the file")
    if out.resolve() == model.path.resolve():
        raise RunError(f"--out {out} is the model itself; name another file")
    resize = build_test_resize(model.recipe)
    settings = build_post_process(model.recipe)
    classes = model.card.classes
    about = Description(
        classes=classes,
        category_ids=model.card.category_ids,
        thresholds=model.card.thresholds or (None,) * len(classes),
        shorter=resize.shorter,
        longer=resize.longer,
        divisor=divisor_of(model.recipe),
        fill=MEAN_COLOUR,
        max_detections=settings.max_detections,
        nms_iou=settings.nms_iou,
        recipe=model.card.recipe,
        version=__version__,
    )
    voice.say(f"writing {plain(model.recipe.name)} as {given.format}, then comparing it ...")
    found = write_file(
        model.detector, settings, about, out, kind=given.format, nms=given.nms == "hard"
    )
    if not found.total:
        voice.warn("neither the file nor the model finds anything in the images of the check")
    voice.say(
        f"the file finds what the model finds: {found.total - found.alone} of {found.total} "
        f"detections, coordinates to {found.box:.1g} pixels, scores to {found.score:.1g}"
    )
    if not any(value is not None for value in about.thresholds):
        voice.warn("the model carries no thresholds; `rankdet evaluate` finds them")
    voice.say(f"{out.stat().st_size / 2**20:.1f} MB -> {plain(out)}")
    return 0
