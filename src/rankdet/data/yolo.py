"""Reading YOLO data: one txt per image, and a yaml that says where the images are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import yaml

from rankdet.data.checks import RawBoxes, RawImage, assemble
from rankdet.data.errors import DataError
from rankdet.data.files import (
    Listing,
    is_image,
    read_file,
    refuse_many_unreadable,
    report_missing,
)
from rankdet.data.images import image_size
from rankdet.data.imageset import ImageSet, Problem

_SPLITS = {"train": ("train",), "val": ("val", "valid", "validation", "dev"), "test": ("test",)}
_DEEP = 6


@dataclass(frozen=True)
class YoloConfig:
    """What a data.yaml says."""

    file: Path
    category_ids: tuple[int, ...]
    """The numbers that the label files use."""
    classes: tuple[str, ...]
    splits: dict[str, tuple[Path, ...]]
    """For "train", "val", "test" where given: folders of images, or .txt lists of them."""
    base: Path
    """What paths in lists are relative to."""


def read_yolo_config(path: Path, *, listing: Listing | None = None) -> YoloConfig:
    """Read a data.yaml.

    ``names`` is a list, or a mapping from number to name, gaps allowed. ``train``, ``val`` and
    ``test`` are a folder, a .txt list or a list of these, relative to ``path`` where that is
    given, else to the yaml. What is not there is looked for under the yaml's own folder by the
    last parts of its path: Roboflow writes ``../train/images`` for ``train/images``, and absolute
    paths of another machine are common.

    Args:
        path: of the yaml.
        listing: to share what is known of the folders.

    Raises:
        DataError: If the file cannot be read, has no usable names, or names a folder that is
            not there.
    """
    listing = listing or Listing()
    content = _load(path)
    names = _names(path, content)
    base = path.parent
    declared = content.get("path")
    if isinstance(declared, str) and (base / declared).is_dir():
        base = base / declared
    splits: dict[str, tuple[Path, ...]] = {}
    for split, keys in _SPLITS.items():
        key = next((key for key in keys if content.get(key)), None)
        if key is None:
            continue
        value = content[key]
        entries = value if isinstance(value, list) else [value]
        if not all(isinstance(entry, str) for entry in entries):
            raise DataError(
                f"{path}: {key} is {value!r}; expected a path, or a list of paths, in quotation"
                " marks if need be"
            )
        found = [_resolve(path.parent, base, entry, listing) for entry in entries]
        for entry, place in zip(entries, found, strict=True):
            # A test split is often named and not shipped.
            if place is None and split != "test":
                without = "; delete the line to have images held out" if split == "val" else ""
                raise DataError(
                    f"{path}: {key} names {entry!r}, which is not there (looked below {base}"
                    f"{'' if base == path.parent else f' and {path.parent}'}); correct the path"
                    f"{without}"
                )
        present = tuple(place for place in found if place is not None)
        if present:
            splits[split] = present
    if not splits:
        raise DataError(f"{path}: names neither train nor val nor test; add 'train: train/images'")
    return YoloConfig(path, tuple(names), tuple(names.values()), splits, base)


def list_images(
    config: YoloConfig, split: str, *, listing: Listing | None = None
) -> tuple[list[Path], tuple[Problem, ...]]:
    """Return the images of a split of a data.yaml, and problems with finding them.

    Folders are searched with all below them. The lines of a .txt list are relative to the list
    if that fits, else to the base of the configuration.

    Args:
        config: what the yaml says.
        split: "train", "val" or "test", one of ``config.splits``.
        listing: to share what is known of the folders.

    Raises:
        DataError: If no image is found, or more than a tenth of a list's images is missing.
    """
    listing = listing or Listing()
    images: dict[Path, None] = {}
    problems: list[Problem] = []
    for source in config.splits[split]:
        if source.suffix == ".txt":
            images.update(dict.fromkeys(_listed(source, config.base, listing, problems)))
            continue
        for folder in listing.walk(source, _DEEP):
            names = sorted(name for name in listing.files(folder) if is_image(name))
            images.update((folder / name, None) for name in names)
    if not images:
        sources = ", ".join(map(str, config.splits[split]))
        raise DataError(f"{config.file}: {split} names {sources}, where there is no image")
    return list(images), tuple(problems)


def read_yolo(
    images: Sequence[Path],
    config: YoloConfig,
    *,
    name: str = "train",
    root: Path | None = None,
    listing: Listing | None = None,
) -> ImageSet:
    """Read YOLO labels.

    The labels of ``.../images/x.jpg`` are in ``.../labels/x.txt`` (the last folder of that name
    counts), or beside the image. A line is "class x_centre y_centre width height", relative to
    the image as displayed, or "class x1 y1 x2 y2 x3 y3 ...", a polygon, of which the bounding box
    is taken. An image without a label file, or with an empty one, is an image without objects.

    Args:
        images: numbered from 1 in this order.
        config: whose classes the labels refer to.
        name: of the split.
        root: of the data set; the folder of the yaml by default.
        listing: to share what is known of the folders.

    Returns:
        The image set.

    Raises:
        DataError: If no image has a label file, a label file cannot be read, a class number is
            unknown, boxes are in pixels, or no box can be used.
    """
    listing = listing or Listing()
    problems: list[Problem] = []
    unreadable: list[Problem] = []
    kept: list[RawImage] = []
    sources: list[Path] = []
    rows: list[tuple[int, int, int]] = []
    boxes: list[tuple[float, float, float, float]] = []
    labels = {category_id: label for label, category_id in enumerate(config.category_ids)}
    labelled = 0
    for number, path in enumerate(images, 1):
        source = _label_file(path, listing)
        try:
            width, height = image_size(path)
        except DataError as fault:
            unreadable.append(Problem(path, "image", "image is left out", str(fault)))
            continue
        if source is not None:
            labelled += 1
            for line, words in _lines(source):
                box = _box(words)
                if box is None:
                    message = "line is not 'class x y width height' nor a polygon; left out"
                    problems.append(Problem(source, f"line {line}", message, " ".join(words)[:80]))
                    continue
                rows.append((len(kept), _label(words[0], labels, source, line, config), line))
                boxes.append(box)
        kept.append(RawImage(path, number, width, height))
        sources.append(source or path)
    refuse_many_unreadable(unreadable, len(images), config.file)
    if not labelled:
        example = _label_places(images[0])
        raise DataError(
            f"{config.file}: none of the {len(images)} images of {name} has a label file; for"
            f" {images[0]} looked for {' and '.join(map(str, example))}"
        )
    if not boxes and any(problem.file.suffix == ".txt" for problem in problems):
        raise DataError(f"no line of the label files can be used; the first: {problems[0]}")
    table = np.array(rows, np.int64).reshape(-1, 3)
    sizes = np.array([(image.width, image.height) for image in kept], np.float64).reshape(-1, 2)
    relative = np.array(boxes, np.float64).reshape(-1, 4)

    def where(place: int) -> tuple[Path, str, str]:
        image, _, line = table[place].tolist()
        x1, y1, x2, y2 = boxes[place]
        return sources[image], f"line {line}", f"{x1:g}, {y1:g} to {x2:g}, {y2:g}"

    if len(boxes) and (np.abs(relative) > 2).any(axis=1).mean() > 0.5:
        file, record, value = where(int(np.argmax(np.abs(relative).max(axis=1))))
        raise DataError(
            f"{file}: {record} has the box {value}, and most boxes are like it: YOLO wants"
            " fractions of width and height, these seem to be pixels; divide them"
        )
    raw = RawBoxes(
        image=table[:, 0],
        corners=relative * np.tile(sizes, 2)[table[:, 0]],
        labels=table[:, 1],
        crowd=np.zeros(len(table), np.bool_),
        areas=np.full(len(table), np.nan),
        where=where,
    )
    records, faults = assemble(kept, raw)
    return ImageSet(
        name=name,
        root=root or config.file.parent,
        records=records,
        classes=config.classes,
        category_ids=config.category_ids,
        problems=(*unreadable, *problems, *faults),
    )


def _load(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(read_file(path))
    except (yaml.YAMLError, UnicodeDecodeError) as fault:
        # The text names line and column, over several lines.
        said = " ".join(str(fault).split())
        raise DataError(f"{path}: no valid yaml: {said}; correct the file there") from fault
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected keys like 'train', 'val' and 'names', found {content!r}")
    return content


def _names(path: Path, content: dict[str, Any]) -> dict[int, str]:
    names, count = content.get("names"), content.get("nc")
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not names:
        raise DataError(
            f"{path}: names is {content.get('names')!r}; expected a list of the class"
            " names, or a mapping from class number to name"
        )
    if not all(type(number) is int and number >= 0 for number in names):
        raise DataError(f"{path}: names has the keys {list(names)[:5]}; expected class numbers")
    if type(count) is int and count != len(names):
        raise DataError(
            f"{path}: nc is {count} but there are {len(names)} names; correct one of them"
        )
    texts = {number: str(names[number]).strip() for number in sorted(names)}
    for number, name in texts.items():
        same = [other for other in texts if texts[other] == name]
        if len(same) > 1 or not name:
            raise DataError(
                f"{path}: class {number} has the name {name!r},"
                f" {'as others too' if name else 'an empty one'}; each needs its own"
            )
    return texts


def _resolve(home: Path, base: Path, entry: str, listing: Listing) -> Path | None:
    parts = PurePosixPath(entry.replace("\\", "/")).parts
    steps = [part for part in parts if part not in ("/", "..", ".")]
    ends = [steps[-count:] for count in range(len(steps), 1, -1)] or [steps]
    candidates = [base.joinpath(*parts), home.joinpath(*parts)]
    candidates += [folder.joinpath(*end) for end in ends for folder in (base, home)]
    if len(steps) < len(parts):
        candidates += [base.joinpath(*steps), home.joinpath(*steps)]
    for candidate in candidates:
        if candidate.is_dir() or (candidate.suffix == ".txt" and listing.has(candidate)):
            return candidate
    return None


def _listed(path: Path, base: Path, listing: Listing, problems: list[Problem]) -> list[Path]:
    lines = read_file(path).decode("utf-8", "replace").replace("\\", "/").splitlines()
    names = [line.strip() for line in lines if line.strip()]
    found: list[Path] = []
    missing: list[str] = []
    for name in names:
        places = (path.parent / name, base / name, base / name.removeprefix("../"))
        place = next((place for place in places if listing.has(place)), None)
        if place is None:
            missing.append(name)
        else:
            found.append(place)
    problems.extend(report_missing(missing, len(names), path, (path.parent, base)))
    return found


def _label_places(image: Path) -> list[Path]:
    parts = list(image.with_suffix(".txt").parts)
    places = [image.with_suffix(".txt")]
    if "images" in parts[:-1]:
        last = len(parts) - 2 - parts[:-1][::-1].index("images")
        parts[last] = "labels"
        places.insert(0, Path(*parts))
    return places


def _label_file(image: Path, listing: Listing) -> Path | None:
    return next((place for place in _label_places(image) if listing.has(place)), None)


def _lines(path: Path) -> list[tuple[int, list[str]]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as fault:
        raise DataError(f"{path}: is no text ({fault}); export the labels again") from fault
    except OSError as fault:
        raise DataError(f"{path}: cannot be read ({fault}); allow reading") from fault
    rows = ((number, line.split()) for number, line in enumerate(text.splitlines(), 1))
    return [(number, words) for number, words in rows if words]


def _box(words: list[str]) -> tuple[float, float, float, float] | None:
    """Return the relative corners that a line stands for; None if it is neither form."""
    try:
        numbers = [float(word) for word in words[1:]]
    except ValueError:
        return None
    if len(numbers) == 4:
        x, y, width, height = numbers
        return x - width / 2, y - height / 2, x + width / 2, y + height / 2
    if len(numbers) < 6 or len(numbers) % 2:
        return None
    if not all(map(math.isfinite, numbers)):
        return (math.nan,) * 4
    xs, ys = numbers[::2], numbers[1::2]
    return min(xs), min(ys), max(xs), max(ys)


def _label(word: str, labels: dict[int, int], source: Path, line: int, config: YoloConfig) -> int:
    try:
        value = float(word)
        label = labels.get(int(value)) if value == int(value) else None
    except (ValueError, OverflowError):
        label = None
    if label is None:
        known = ", ".join(map(str, config.category_ids[:20]))
        raise DataError(
            f"{source}: line {line} has the class {word!r}, which {config.file} does not name"
            f" (it names {known}{' ...' if len(labels) > 20 else ''}); correct the line, or add"
            " the name"
        )
    return label
