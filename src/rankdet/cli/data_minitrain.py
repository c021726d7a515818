"""`rankdet data minitrain`: a part of COCO that stands for the whole."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rankdet.cli.common import path_text

if TYPE_CHECKING:
    from rankdet.data.files import Listing
    from rankdet.data.layouts import CocoFile
    from rankdet.data.minitrain_files import Candidates, Split
    from rankdet.data.minitrain_json import ImageId, Instances
    from rankdet.data.minitrain_report import Choice

EXAMPLES = """\
examples:
  rankdet data minitrain --coco coco/ --out minitrain/        25000 images of train2017
  rankdet data minitrain --coco coco/ --out mini5k/ --images 5000 --seed 1
  rankdet data minitrain --coco coco/ --out original/ --annotations instances_minitrain2017.json
  rankdet data minitrain --coco coco/ --out mine/ --ids images.txt
  rankdet train --data minitrain/                             train on it
"""
IMAGES, DRAWS = 25_000, 1000


def add_to(actions: Any) -> None:
    """Add the action to the verb `data`."""
    parser = actions.add_parser(
        "minitrain",
        help="draw a part of COCO with the whole's classes and sizes",
        description="Draw a part of the training images in which classes, sizes, and sizes of each "
        "class are as frequent as in the whole: the best of many random draws by the worst ratio, "
        "then improved by exchanging images. Images without an object are not drawn. The same "
        "seed gives the same images on every machine. DIR is left as it is: the new folder holds "
        "links to its images, and minitrain.json says how well everything matches.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--coco",
        required=True,
        type=path_text,
        metavar="DIR",
        help="holds annotations/instances_train2017.json and train2017/",
    )
    parser.add_argument("--out", type=path_text, required=True, metavar="DIR", help="new folder")
    parser.add_argument(
        "--images", type=int, metavar="N", help=f"images to draw ({IMAGES}, as COCO minitrain)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--draws",
        type=int,
        default=DRAWS,
        metavar="N",
        help=f"random draws to begin with ({DRAWS})",
    )
    given = parser.add_mutually_exclusive_group()
    given.add_argument(
        "--ids",
        type=path_text,
        metavar="FILE",
        help="take these images instead: an id or file name on each line, or a JSON list",
    )
    given.add_argument(
        "--annotations",
        type=path_text,
        metavar="FILE",
        help="take the images of this COCO file instead, such as the original "
        "instances_minitrain2017.json",
    )
    parser.add_argument(
        "--copy", action="store_true", help="copy the images; default: link to their folder"
    )
    parser.set_defaults(run=run_minitrain)


def run_minitrain(given: argparse.Namespace) -> int:
    """Choose the images, write the folder, say how well it matches."""
    from rich.markup import escape

    from rankdet.cli.common import Voice
    from rankdet.data.files import Listing
    from rankdet.data.minitrain_files import absent_images, candidates, find_splits, place_split
    from rankdet.data.minitrain_report import build_report

    voice = Voice()
    root, out = Path(given.coco), Path(given.out)
    _check(given)
    _refuse(out, root)
    listing = Listing()
    files = find_splits(root, listing)
    source = _read(files["train"].path, voice)
    train = place_split(files["train"], [name for _, name in source.images], listing)
    absent = absent_images(source, train, listing)
    pool = candidates(source, absent)
    if absent:
        voice.warn(
            f"{len(absent)} of {len(source.images)} images are not in"
            f" {escape(str(train.image_dir))} and are not drawn; a complete folder would give"
            " another subset"
        )
    choice = _choose(given, source, pool, absent, voice)
    splits, names = [train], [[name for key, name in source.images if key in choice.ids]]
    for split, listed in _validation(files, listing, voice):
        splits.append(split)
        names.append(listed)
    report = build_report(
        choice,
        source,
        pool,
        absent=len(absent),
        file=train.annotations,
        seed=given.seed,
        given=Path(given.ids or given.annotations).name if given.ids or given.annotations else None,
    )
    _write(out, source, report, choice, splits, names if given.copy else None, listing, voice)
    _say(out, report, splits, voice)
    return 0


def _check(given: argparse.Namespace) -> None:
    """Refuse numbers that make no sense."""
    from rankdet.engine.files import RunError

    listed = given.ids or given.annotations
    if given.images is not None and listed:
        raise RunError(
            f"--images {given.images}: how many images there are is said by {listed}; leave one"
            " of the two options out"
        )
    for name, value in (("images", given.images), ("draws", given.draws)):
        if value is not None and value < 1:
            raise RunError(f"--{name} must be at least 1, got {value}")


def _refuse(out: Path, root: Path) -> None:
    """Refuse a folder that is not ours to write, before anything takes time."""
    from rankdet.engine.files import RunError

    if out.resolve().is_relative_to(root.resolve()):
        raise RunError(
            f"--out {out} lies in --coco {root}, where its annotations would be taken for those"
            " of COCO; name a folder beside it"
        )
    try:
        free = not out.exists() or (out.is_dir() and not any(out.iterdir())) or _is_ours(out)
    except OSError as error:
        raise RunError(f"--out {out} cannot be read ({error}); name another folder") from error
    if not free or out.is_symlink():
        raise RunError(
            f"--out {out} holds something that `rankdet data minitrain` did not make; name"
            " another folder"
        )


def _is_ours(folder: Path) -> bool:
    import json

    try:
        content = json.loads((folder / "minitrain.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("made_by") == "rankdet data minitrain"


def _read(path: Path, voice: Any) -> Instances:
    from rich.progress import Progress

    from rankdet.data.minitrain_json import read_instances

    with Progress(console=voice.console, transient=True, disable=_hidden(voice)) as progress:
        task = progress.add_task(f"reading {path.name}", total=None)
        return read_instances(
            path,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )


def _choose(
    given: argparse.Namespace,
    source: Instances,
    pool: Candidates,
    absent: set[ImageId],
    voice: Any,
) -> Choice:
    """Draw and improve, or take what was asked for and draw for comparison."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from rankdet.data.minitrain import compare, set_target, statistics
    from rankdet.data.minitrain_report import Choice
    from rankdet.data.minitrain_search import draw_best, improve

    taken = _listed(given, source, absent, voice)
    total = len(pool.ids)
    if taken is None:
        count = _wanted(given, source, total)
    else:
        count = int(pool.mask(taken).sum())
        if count == 0:
            from rankdet.data.errors import DataError

            raise DataError(
                f"{given.ids or given.annotations}: none of the {len(taken)} images has an object"
            )
    target = set_target(statistics(pool.table), chosen=count, images=total)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(
        *columns, console=voice.console, transient=True, disable=_hidden(voice)
    ) as progress:
        drawing = progress.add_task("random draws", total=given.draws)

        def drawn(done: int, worst: float) -> None:
            said = f"random draws: {done}, worst ratio {worst:.3f}"
            progress.update(drawing, completed=done, description=said)

        best = draw_best(
            pool.table, count, target, draws=given.draws, seed=given.seed, progress=drawn
        )
        if taken is not None:
            match = compare(statistics(pool.table, pool.mask(taken)), target)
            return Choice(taken, count, target, match, best.match, best.worsts, None)
        swapping = progress.add_task("swaps", total=None)

        def swapped(done: int, worst: float) -> None:
            said = f"swaps: {done}, worst ratio {worst:.3f} (limit {target.limit:.3f})"
            progress.update(swapping, description=said)

        found = improve(pool.table, best.chosen, target, progress=swapped)
    ids = {image_id for image_id, use in zip(pool.ids, found.chosen.tolist(), strict=True) if use}
    return Choice(ids, count, target, found.match, best.match, best.worsts, found.swaps)


def _wanted(given: argparse.Namespace, source: Instances, total: int) -> int:
    from rankdet.data.errors import DataError

    count: int = IMAGES if given.images is None else given.images
    if count > total:
        raise DataError(
            f"{source.path}: {count} images are asked for, but only {total} of"
            f" {len(source.images)} are there and have an object; --images {total} takes them all"
        )
    return count


def _listed(
    given: argparse.Namespace, source: Instances, absent: set[ImageId], voice: Any
) -> set[ImageId] | None:
    """Return the images that were asked for by a list, if one was given."""
    from rich.markup import escape

    from rankdet.data.errors import DataError
    from rankdet.data.minitrain_files import match_images, read_list, resolve

    if given.ids:
        path = Path(given.ids)
        entries = read_list(path)
        taken = resolve(entries, source, path)
        if len(taken) < len(entries):
            voice.warn(f"{len(entries) - len(taken)} entries of {escape(given.ids)} repeat others")
    elif given.annotations:
        taken = match_images(_read(Path(given.annotations), voice), source)
    else:
        return None
    gone = sorted(name for image_id, name in source.images if image_id in taken & absent)
    if gone:
        few = ", ".join(gone[:5]) + (", ..." if len(gone) > 5 else "")
        raise DataError(
            f"{given.ids or given.annotations}: {len(gone)} of {len(taken)} images are listed in"
            f" {source.path} but not on the disk: {few}; fetch them, or take them off the list"
        )
    return taken


def _validation(
    files: dict[str, CocoFile], listing: Listing, voice: Any
) -> list[tuple[Split, list[str]]]:
    """Return the validation split and the names of its images, if there is one with images."""
    from rich.markup import escape

    from rankdet.data.errors import DataError
    from rankdet.data.minitrain_files import absent_images, place_split

    if "val" not in files:
        voice.warn(
            "there is no validation split; `rankdet train` will hold out a fifth of the subset"
        )
        return []
    try:
        source = _read(files["val"].path, voice)
        names = [name for _, name in source.images]
        split = place_split(files["val"], names, listing)
        absent_images(source, split, listing)
    except DataError as error:
        voice.warn(f"the validation split is left out: {escape(str(error))}")
        return []
    return [(split, names)]


def _write(
    out: Path,
    source: Instances,
    report: dict[str, Any],
    choice: Choice,
    splits: list[Split],
    copied: list[list[str]] | None,
    listing: Listing,
    voice: Any,
) -> None:
    """Write the folder under another name beside its place, and rename it when it is whole."""
    import shutil
    import tempfile

    from rankdet.data.minitrain_folder import check_readable, link_splits, put_in_place
    from rankdet.data.minitrain_json import subset_text
    from rankdet.engine.files import RunError, write_atomically, write_json

    def write(path: Path) -> None:
        with path.open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(subset_text(source, choice.ids))

    made: Path | None = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
        made.chmod(0o755)
        write_atomically(made / splits[0].annotations, write)
        if copied is None:
            try:
                link_splits(made, out, splits)
            except OSError as error:
                raise RunError(
                    f"{out}: no links can be made there ({error.strerror or error}); copy the"
                    " images (--copy), or name another folder with --out"
                ) from error
        else:
            _copy(made, splits, copied, listing, voice)
        write_json(made / "minitrain.json", report, indent=1)
        check_readable(made, out, splits)
        put_in_place(made, out)
        made = None
    except OSError as error:
        raise RunError(
            f"cannot write {out}: {error.strerror or error}. Make room, or name another folder"
            " with --out"
        ) from error
    finally:
        if made is not None:
            shutil.rmtree(made, ignore_errors=True)


def _copy(
    made: Path, splits: list[Split], names: list[list[str]], listing: Listing, voice: Any
) -> None:
    from rich.progress import Progress

    from rankdet.data.minitrain_folder import copy_splits

    with Progress(console=voice.console, transient=True, disable=_hidden(voice)) as progress:
        task = progress.add_task("copying images", total=sum(map(len, names)))
        copy_splits(
            made,
            splits,
            names,
            listing,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )


def _hidden(voice: Any) -> bool:
    """Whether bars would only leave empty lines, as in a log file."""
    return not voice.console.is_terminal


def _say(out: Path, report: dict[str, Any], splits: list[Split], voice: Any) -> None:
    """Say how well it matches and where everything is."""
    from rich.markup import escape

    from rankdet.data.minitrain_report import remarks, render

    subset, source = report["subset"], report["source"]
    share = subset["images_with_objects"] / source["images_with_objects"]
    voice.say(
        f"[bold]{escape(str(out))}[/bold]: {subset['images']:,} images with"
        f" {subset['objects']:,} objects, of {source['images_with_objects']:,} images with"
        f" {source['objects']:,} objects ({share:.1%} of the images)"
    )
    voice.show(render(report))
    for remark in remarks(report):
        voice.say(escape(remark))
    for split in splits:
        places = f"{split.annotations}, {split.folder}/ from {split.image_dir}"
        voice.say(f"  {escape(places)}")
    voice.say("  minitrain.json: seed, settings, every statistic")
    voice.say(f"next: rankdet train --data {escape(str(out))}")
