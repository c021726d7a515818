"""Writing the built-in data set to a folder, whole or not at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from rankdet.data.digits import CLASSES, SPLITS, check_settings, generate, sources_digest
from rankdet.data.errors import DataError

_VERSION = 1
_MAKER = "rankdet data digits"


def write_digits(
    out: Path,
    *,
    train: int = 4000,
    val: int = 300,
    size: int = 128,
    seed: int = 0,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> bool:
    """Write the data set in COCO's layout, whole or not at all.

    ``annotations/train.json``, ``annotations/val.json``, ``images/*.png``, and ``digits.json``
    with the settings. A folder that already holds the set with these settings is left as it is; an
    earlier set with other settings is replaced. The set is built in ``out`` + ``.partial`` first.

    Args:
        out: folder to write to; need not exist.
        train: number of training images, 1 or more.
        val: number of validation images, 1 or more.
        size: side of the images in pixels, 64 .. 1024.
        seed: 0 or more.
        overwrite: put the set into a folder that holds something else. What is called like a part
            of the set is replaced there, everything else stays.
        progress: called with the number of images done and their total, after each.

    Returns:
        Whether the set was written; False where it was there already.

    Raises:
        ValueError: a setting is out of its range.
        DataError: ``out`` holds something else, or cannot be written to.
    """
    check_settings(size=size, seed=seed)
    for name, images in (("train", train), ("val", val)):
        if images < 1:
            raise ValueError(f"{name} must be at least 1, got {images}")
    settings = {"train": train, "val": val, "size": size, "seed": seed}
    marker = {"made_by": _MAKER, "version": _VERSION, **settings, "sources": sources_digest()}
    if _is_complete(out, marker):
        return False
    partial = out.with_name(out.name + ".partial")
    for folder, allowed in ((out, overwrite), (partial, False)):
        _refuse_foreign(folder, allowed)
    try:
        if partial.exists():
            shutil.rmtree(partial)
        partial.mkdir(parents=True)
        try:
            _write_json(partial / "digits.json", {**marker, "complete": False})
            _fill(partial, settings, progress)
            _write_json(partial / "digits.json", {**marker, "complete": True})
            _move(partial, out)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    except PermissionError as fault:
        raise DataError(
            f"{out}: no permission to write the digits ({fault}); allow writing to {out.parent}, or"
            " name another folder"
        ) from fault
    except (NotADirectoryError, FileExistsError) as fault:
        raise DataError(
            f"{out}: a part of this path is a file; name another folder for the digits"
        ) from fault
    except OSError as fault:
        raise DataError(
            f"{out}: the digits cannot be written ({fault}); they need about"
            f" {(train + val) * size * size * 3 // 1_000_000 + 1} MB. Make room, or name another"
            " folder"
        ) from fault
    return True


def _fill(
    folder: Path, settings: dict[str, int], progress: Callable[[int, int], None] | None
) -> None:
    """Write images and annotations of both splits."""
    (folder / "images").mkdir()
    (folder / "annotations").mkdir()
    size, done, total = settings["size"], 0, settings["train"] + settings["val"]
    for split in SPLITS:
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for index in range(settings[split]):
            drawn = generate(split, index, size=size, seed=settings["seed"])
            name = f"{split}_{index:06}.png"
            # Noise hardly packs: more effort takes time and saves little.
            Image.fromarray(drawn.image).save(folder / "images" / name, compress_level=1)
            images.append({"id": index + 1, "file_name": name, "width": size, "height": size})
            for box, label in zip(drawn.boxes.tolist(), drawn.labels.tolist(), strict=True):
                x0, y0, x1, y1 = (int(side) for side in box)
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": index + 1,
                        "category_id": label + 1,
                        "bbox": [x0, y0, x1 - x0, y1 - y0],
                        "area": (x1 - x0) * (y1 - y0),
                        "iscrowd": 0,
                    }
                )
            done += 1
            if progress is not None:
                progress(done, total)
        content = {
            "info": {"description": f"handwritten digits on photographs, {_MAKER}"},
            "images": images,
            "annotations": annotations,
            "categories": [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)],
        }
        _write_json(folder / "annotations" / f"{split}.json", content)


def _is_complete(out: Path, marker: dict[str, Any]) -> bool:
    """Whether a folder holds the whole set with these settings."""
    if _marker(out) != {**marker, "complete": True}:
        return False
    names = {path.name for path in (out / "images").glob("*.png")}
    return all((out / "annotations" / f"{split}.json").is_file() for split in SPLITS) and all(
        f"{split}_{index:06}.png" in names for split in SPLITS for index in range(marker[split])
    )


def _marker(folder: Path) -> dict[str, Any] | None:
    """What `digits.json` of a folder says, if there is one of ours."""
    try:
        content = json.loads((folder / "digits.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    ours = isinstance(content, dict) and content.get("made_by") == _MAKER
    return content if ours else None


def _refuse_foreign(folder: Path, allowed: bool) -> None:
    """Raise if there is something that was not made here."""
    try:
        if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
            return
    except OSError as fault:
        raise DataError(f"{folder}: cannot be read ({fault}); name another folder") from fault
    if not folder.is_dir():
        raise DataError(f"{folder}: this is a file; name a folder for the digits")
    if _marker(folder) is None and not allowed:
        raise DataError(
            f"{folder}: the folder holds something that `{_MAKER}` did not make; name another"
            " folder, or overwrite what is there"
        )


def _move(partial: Path, out: Path) -> None:
    """Put a finished set in its place; what else lies there stays."""
    if not out.exists():
        partial.rename(out)
        return
    # Until the last step the folder says itself that it is not complete.
    _write_json(out / "digits.json", {"made_by": _MAKER, "complete": False})
    for name in ("annotations", "images"):
        old = out / name
        if old.is_dir() and not old.is_symlink():
            shutil.rmtree(old)
        else:
            old.unlink(missing_ok=True)
        (partial / name).rename(old)
    (partial / "digits.json").replace(out / "digits.json")
    partial.rmdir()


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, separators=(",", ":")), encoding="utf-8")
