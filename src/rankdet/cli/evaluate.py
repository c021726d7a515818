"""`rankdet evaluate`: how good is a model on a split?"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rankdet.cli.common import add_device, add_tta, path_text, plain
from rankdet.wording import counted

EXAMPLES = """\
examples:
  rankdet evaluate runs/photos-1/best.safetensors --data photos/
  rankdet evaluate runs/photos-1 --data photos/ --split test --out report/
"""


def add_to(verbs: Any) -> None:
    """Add the verb to the command."""
    parser = verbs.add_parser(
        "evaluate",
        help="print COCO's numbers and LRP of a model on a split",
        description="Detect on every image of a split, print AP and LRP, and write "
        "detections.json, score.json and a report. No score threshold is used, only the best "
        "detections of each image.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "model", type=path_text, metavar="CKPT", help="best.safetensors of a run, or its folder"
    )
    parser.add_argument("--data", required=True, type=path_text, metavar="DIR")
    parser.add_argument("--split", default="val", help="train, val or test (val)")
    parser.add_argument(
        "--out", type=path_text, metavar="DIR", help="default: evaluation-SPLIT beside the model"
    )
    parser.add_argument(
        "--keep-thresholds",
        action="store_true",
        help="do not write the LRP-optimal thresholds of this split into the model",
    )
    add_tta(parser)
    add_device(parser)
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Evaluate."""
    import time

    import torch
    from rich.progress import track

    from rankdet.cli.common import Voice, device_of, find_data, load, pick_split, relabel
    from rankdet.cli.reporting import write_report
    from rankdet.cli.running import is_run, splits
    from rankdet.config.assemble import Hardware, testing_loader, workers_for
    from rankdet.config.build_model import build_post_process
    from rankdet.data.imageset import to_coco
    from rankdet.engine.detecting import detect, to_results
    from rankdet.engine.files import RunError, write_json
    from rankdet.eval.score import score
    from rankdet.eval.table import table

    voice = Voice()
    if given.out and given.split != "val" and is_run(Path(given.out)):
        raise RunError(
            f"--out {given.out} is the folder of a run, whose numbers are those of its validation "
            f"images; give another for split {given.split}"
        )
    if given.out and Path(given.out).is_file():
        raise RunError(f"--out {given.out} is a file; name a folder")
    device = device_of(given)
    model = load(Path(given.model), device)
    found = find_data(given.data, voice)
    if given.split == "val" and "val" not in found.splits:
        # The same images that training held out.
        images = splits(found, model.recipe, voice)[1]
    else:
        images = pick_split(found, given.split, given.data)
    images = relabel(images, model.card, given.data)
    loader = testing_loader(
        model.recipe, images, workers=workers_for(model.recipe, Hardware(accelerator=device))
    )
    began = time.monotonic()
    results = [
        result
        for image_id, detections in track(
            detect(
                model.detector,
                build_post_process(model.recipe),
                loader,
                device=torch.device(device),
                look=model.look() if given.tta else None,
            ),
            "detecting",
            total=len(images),
            console=voice.console,
            transient=True,
        )
        for result in to_results(image_id, detections, model.card.category_ids)
    ]
    spent = time.monotonic() - began
    result = score(to_coco(images), results)
    out = Path(given.out) if given.out else model.path.parent / f"evaluation-{given.split}"
    write_json(out / "detections.json", results)
    write_json(out / "score.json", result.to_json(), indent=1)
    voice.show(table(result))
    voice.say(
        f"{counted(len(images), 'image')} in {spent:.1f} s ({len(images) / spent:.1f} images/s)"
    )
    if given.split == "val" and not given.keep_thresholds:
        _keep_thresholds(model, result)
        voice.say(f"thresholds of this split written into {plain(model.path)}")
    facts = {
        "model": str(model.path),
        "recipe": f"{model.recipe.name}: {model.recipe.description}",
        "data": f"{given.data}, split {given.split}",
        "steps": str(model.card.step),
    }
    report = write_report(
        out,
        images,
        result,
        title=f"{model.recipe.name} on {Path(given.data).resolve().name}, {given.split}",
        facts=facts,
    )
    voice.say(f"report      {plain(report)}")
    voice.say(f"detections  {plain(out / 'detections.json')}")
    return 0


def _keep_thresholds(model: Any, result: Any) -> None:
    from rankdet.engine.checkpoint import load_model, save_model
    from rankdet.engine.trainer import headline, thresholds_of

    weights, card = load_model(model.path)
    card = card.with_scores(thresholds_of(result, card.category_ids), headline(result))
    save_model(model.path, weights, card)
