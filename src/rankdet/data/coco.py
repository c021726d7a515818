"""Reading COCO instances files.

Lin et al., "Microsoft COCO: Common Objects in Context", ECCV 2014; the format is described at
https://cocodataset.org/#format-data.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from rankdet.data.checks import ROUNDING, RawBoxes, RawImage, assemble
from rankdet.data.errors import DataError
from rankdet.data.files import (
    MISSING_ALLOWED,
    Listing,
    read_file,
    refuse_many_unreadable,
    report_missing,
)
from rankdet.data.images import image_size
from rankdet.data.imageset import ImageSet, Problem

# Large, and of no use to a box detector.
_UNUSED_KEYS = ("segmentation", "keypoints", "caption")
# A folder is that of the images if it has this share of them.
_GOOD_SHARE = 1 - MISSING_ALLOWED
_ENTRIES = ("images", "annotations", "categories")


def read_coco(
    json_path: Path,
    image_dir: Path | Sequence[Path],
    *,
    name: str = "train",
    root: Path | None = None,
    listing: Listing | None = None,
) -> ImageSet:
    """Read a COCO instances file.

    Boxes are [x, y, width, height] in the file. Faulty ones are left out or clipped, see
    `rankdet.data.checks.check_boxes`. Images without annotations stay, as images without objects.
    Image and category ids may have gaps; classes are ordered by category id. Width and height that
    the file lacks are taken from the image's header. A category without boxes that is merely the
    super-category of all others (as Roboflow writes) is left out.

    Args:
        json_path: the annotations.
        image_dir: the folder that ``file_name`` is relative to, or several to choose from: the
            first that holds nine tenths of the images, else the one that holds most.
        name: of the split.
        root: of the data set; the folder of the json by default.
        listing: to share what is known of the folders.

    Returns:
        The image set; records in the order of the file.

    Raises:
        DataError: If the file cannot be read, is cut off or no instances file; if a category is
            unknown or two share an id; if more than a tenth of the images is missing, or as many
            annotations point to missing image ids; if boxes are given as corners.
    """
    listing = listing or Listing()
    folders = [image_dir] if isinstance(image_dir, Path) else list(image_dir)
    content = _load(json_path)
    problems: list[Problem] = []
    category_ids, classes = _categories(json_path, content, problems)
    images, places = _images(json_path, content["images"], folders, listing, problems)
    raw = _boxes(json_path, content, images, places, category_ids, problems)
    _refuse_corners(json_path, raw, images)
    records, faults = assemble(images, raw)
    return ImageSet(
        name=name,
        root=root or json_path.parent,
        records=records,
        classes=classes,
        category_ids=category_ids,
        problems=(*problems, *faults),
    )


def _load(path: Path) -> dict[str, Any]:
    raw = read_file(path)

    def slim(entry: dict[str, Any]) -> dict[str, Any]:
        for key in _UNUSED_KEYS:
            entry.pop(key, None)
        return entry

    try:
        content = json.loads(raw, object_hook=slim)
    except json.JSONDecodeError as fault:
        cut = len(fault.doc.rstrip()) - fault.pos < 5 or fault.msg.startswith("Unterminated")
        hint = "the file seems to be cut off; copy it again" if cut else "correct the file there"
        raise DataError(
            f"{path}: no valid json at line {fault.lineno}, column {fault.colno}"
            f" (character {fault.pos}): {fault.msg}; {hint}"
        ) from fault
    except (UnicodeDecodeError, RecursionError) as fault:
        raise DataError(f"{path}: no valid json: {fault}; export it again as UTF-8") from fault
    if not isinstance(content, dict):
        kind = "a list, perhaps of detections" if isinstance(content, list) else repr(content)[:40]
        raise DataError(
            f"{path}: expected an object with {', '.join(_ENTRIES)}, found {kind};"
            " a COCO instances file is needed"
        )
    for key in _ENTRIES:
        value = content.get(key)
        if not isinstance(value, list):
            found = "nothing" if value is None else type(value).__name__
            raise DataError(
                f"{path}: expected a list '{key}', found {found}; a COCO instances file has"
                f" {', '.join(_ENTRIES)}"
            )
        for index, entry in enumerate(value):
            if not isinstance(entry, dict):
                raise DataError(
                    f"{path}: {key}[{index}] is {str(entry)[:40]!r}, expected an object"
                )
    return content


def _categories(
    path: Path, content: dict[str, Any], problems: list[Problem]
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    names: dict[int, str] = {}
    parents: dict[int, object] = {}
    for index, entry in enumerate(content["categories"]):
        category_id, name = entry.get("id"), entry.get("name")
        if type(category_id) is not int:
            raise DataError(
                f"{path}: categories[{index}] has the id {category_id!r}; a whole number is needed"
            )
        if not isinstance(name, str) or not name.strip():
            raise DataError(
                f"{path}: category {category_id} has the name {name!r}; a text is needed"
            )
        name = name.strip()
        if category_id in names and names[category_id] != name:
            raise DataError(
                f"{path}: category id {category_id} is given to {names[category_id]!r} and to"
                f" {name!r}; give each class its own id"
            )
        if category_id in names:
            problems.append(Problem(path, f"category {category_id}", "category is listed twice"))
        names[category_id] = name
        parents[category_id] = entry.get("supercategory")
    annotations = content["annotations"]
    if not names and annotations:
        raise DataError(
            f"{path}: 'categories' is empty but there are {len(annotations)} annotations;"
            " add a category with id and name for each class"
        )
    used = {entry.get("category_id") for entry in annotations}
    for category_id, name in list(names.items()):
        others = [parent for other, parent in parents.items() if other != category_id]
        if category_id not in used and others and all(parent == name for parent in others):
            problems.append(
                Problem(path, f"category {category_id}", "super-category without boxes; left out")
            )
            del names[category_id]
    names = _same_name_once(path, names, used, problems)
    ids = tuple(sorted(names))
    return ids, tuple(names[category_id] for category_id in ids)


def _same_name_once(
    path: Path, names: dict[int, str], used: set[Any], problems: list[Problem]
) -> dict[int, str]:
    # The one with boxes stays; sorting puts it first.
    first: dict[str, int] = {}
    for category_id in sorted(names, key=lambda key: (key not in used, key)):
        name = names[category_id]
        if name in first and category_id in used:
            raise DataError(
                f"{path}: categories {first[name]} and {category_id} are both named {name!r} and"
                " both have boxes; rename one, or give their boxes the same category id"
            )
        if name in first:
            message = "name of another category, without boxes; left out"
            problems.append(Problem(path, f"category {category_id}", message, repr(name)))
        first.setdefault(name, category_id)
    return {category_id: name for name, category_id in first.items()}


def _images(
    path: Path,
    entries: list[dict[str, Any]],
    folders: list[Path],
    listing: Listing,
    problems: list[Problem],
) -> tuple[list[RawImage], dict[int | str, int]]:
    """Return the images there are, and the place of each id in them (-1 where it was left out)."""
    wanted: dict[int | str, tuple[str, dict[str, Any]]] = {}
    for index, entry in enumerate(entries):
        image_id, name = entry.get("id"), entry.get("file_name")
        if type(image_id) is not int and not isinstance(image_id, str):
            raise DataError(
                f"{path}: images[{index}] has the id {image_id!r}; a whole number is needed"
            )
        if not isinstance(name, str) or not name:
            raise DataError(
                f"{path}: image {image_id!r} has the file_name {name!r}; a text is needed"
            )
        # Some tools on Windows write the path as it is there.
        name = name.replace("\\", "/")
        if image_id in wanted and wanted[image_id][0] != name:
            raise DataError(
                f"{path}: image id {image_id!r} is given to {wanted[image_id][0]} and to {name},"
                " so it is unknown whose boxes are whose; give each image its own id"
            )
        if image_id in wanted:
            problems.append(Problem(path, f"image {image_id}", "image is listed twice"))
        wanted[image_id] = name, entry
    folder = _choose(folders, [name for name, _ in wanted.values()], listing)
    numbered = all(type(image_id) is int for image_id in wanted)
    if not numbered:
        problems.append(Problem(path, "images", "image ids are texts; numbered from 1 instead"))
    images: list[RawImage] = []
    places: dict[int | str, int] = {}
    by_path: dict[Path, int] = {}
    missing: list[str] = []
    unreadable: list[Problem] = []
    for number, (image_id, (name, entry)) in enumerate(wanted.items(), 1):
        found = _find(folder, name, listing)
        places[image_id] = -1
        if found is None:
            missing.append(name)
            continue
        if found in by_path:
            places[image_id] = by_path[found]
            problems.append(
                Problem(path, f"image {image_id}", "file has two image ids; boxes joined", name)
            )
            continue
        try:
            width, height = _size(entry, found)
        except DataError as fault:
            unreadable.append(Problem(path, f"image {name}", "image is left out", str(fault)))
            continue
        places[image_id] = by_path[found] = len(images)
        record_id = image_id if numbered and isinstance(image_id, int) else number
        images.append(RawImage(found, record_id, width, height))
    problems.extend(report_missing(missing, len(wanted), path, folders))
    refuse_many_unreadable(unreadable, len(wanted), path)
    problems.extend(unreadable)
    return images, places


def _choose(folders: list[Path], names: list[str], listing: Listing) -> Path:
    best, most = folders[0], -1
    sample = names[:: max(1, len(names) // 500)]
    for folder in folders:
        hits = sum(_find(folder, name, listing) is not None for name in sample)
        if hits >= _GOOD_SHARE * len(sample):
            return folder
        if hits > most:
            best, most = folder, hits
    return best


def _find(folder: Path, name: str, listing: Listing) -> Path | None:
    parent, _, last = name.rpartition("/")
    for candidate in (folder / parent, folder) if parent else (folder,):
        if last in listing.files(candidate):
            return candidate / last
    return None


def _size(entry: dict[str, Any], path: Path) -> tuple[int, int]:
    width, height = entry.get("width"), entry.get("height")
    if _is_number(width) and _is_number(height) and width >= 1 and height >= 1:
        return int(width), int(height)
    return image_size(path)


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and abs(value) < 1e300


def _boxes(
    path: Path,
    content: dict[str, Any],
    images: list[RawImage],
    places: dict[int | str, int],
    category_ids: tuple[int, ...],
    problems: list[Problem],
) -> RawBoxes:
    entries = content["annotations"]
    labels = {category_id: label for label, category_id in enumerate(category_ids)}
    chosen: list[int] = []
    image: list[int] = []
    label: list[int] = []
    strays: list[str] = []
    for index, entry in enumerate(entries):
        key = entry.get("image_id")
        known = isinstance(key, int | str)
        place = places.get(key) if known else None
        if place is None:
            strays.append(f"annotation {entry.get('id', index)}: image_id {key!r}")
            continue
        category = entry.get("category_id")
        number = labels.get(category) if type(category) is int else None
        if number is None:
            ids = ", ".join(map(str, category_ids[:20])) + (" ..." if len(labels) > 20 else "")
            raise DataError(
                f"{path}: annotation {entry.get('id', index)} has the category_id {category!r},"
                f" which is not among the categories ({ids}); add the category, or correct the"
                " annotation"
            )
        if place >= 0:
            chosen.append(index)
            image.append(place)
            label.append(number)
    if len(strays) > MISSING_ALLOWED * len(entries):
        raise DataError(
            f"{path}: {len(strays)} of {len(entries)} annotations point to images that the file"
            f" does not list (the first: {strays[0]}); annotations and images belong to different"
            " files, or image ids were changed"
        )
    for stray in strays:
        record, _, value = stray.partition(": ")
        problems.append(Problem(path, record, "image id is not in the file; left out", value))
    areas = [entries[index].get("area") for index in chosen]
    numbers = [value if _is_number(value) else np.nan for value in areas]
    # Some tools write numbers as texts, and "0" is true to Python.
    crowd = [entries[index].get("iscrowd", 0) in (1, "1", "true", "True") for index in chosen]
    corners = _corners([entries[index].get("bbox") for index in chosen])

    def where(place: int) -> tuple[Path, str, str]:
        index = chosen[place]
        entry = entries[index]
        record = f"annotation {entry.get('id', index)} of {images[image[place]].path.name}"
        if entry.get("bbox") is None:
            return path, record, "bbox is missing (a segmentation alone is not read)"
        value = str(entry["bbox"])
        return path, record, f"bbox {value if len(value) <= 80 else value[:77] + '...'}"

    return RawBoxes(
        image=np.array(image, np.int64),
        corners=corners,
        labels=np.array(label, np.int64),
        crowd=np.array(crowd, np.bool_),
        areas=np.array(numbers, np.float64),
        where=where,
    )


def _corners(boxes: list[Any]) -> NDArray[np.float64]:
    """Return [N, 4] corners; what is not four numbers becomes NaN."""
    try:
        values = np.array(boxes, np.float64).reshape(-1, 4)
        regular = len(values) == len(boxes)
    except (ValueError, TypeError, OverflowError):
        regular = False
    if not regular:
        values = np.array([_four_numbers(box) for box in boxes], np.float64).reshape(-1, 4)
    with np.errstate(over="ignore", invalid="ignore"):
        return np.concatenate([values[:, :2], values[:, :2] + values[:, 2:]], axis=1)


def _four_numbers(box: Any) -> list[float]:
    # As numpy reads a whole file: some tools write numbers as texts.
    try:
        numbers = [float(value) for value in box]
    except (TypeError, ValueError, OverflowError):
        return [np.nan] * 4
    return numbers if isinstance(box, list) and len(numbers) == 4 else [np.nan] * 4


def _refuse_corners(path: Path, raw: RawBoxes, images: list[RawImage]) -> None:
    sizes = np.array([(image.width, image.height) for image in images], np.float64).reshape(-1, 2)
    finite = np.flatnonzero(np.isfinite(raw.corners).all(axis=1))
    first, limit = raw.corners[finite, :2], sizes[raw.image[finite]] + ROUNDING
    second = raw.corners[finite, 2:] - first
    beyond = np.flatnonzero((raw.corners[finite, 2:] > limit).any(axis=1))
    fits = ((second > first) & (second <= limit)).all(axis=1)
    # Real [x, y, width, height] rarely leave their images, and hardly ever have x < width and
    # y < height throughout.
    if len(beyond) < max(3, 0.3 * len(finite)) or fits.sum() < 0.95 * len(finite):
        return
    place = int(finite[beyond[0]])
    _, record, value = raw.where(place)
    image = images[int(raw.image[place])]
    raise DataError(
        f"{path}: {len(beyond)} of {len(finite)} boxes leave their images if read as"
        f" [x, y, width, height], but fit as corners [x1, y1, x2, y2] (for instance {record},"
        f" {value}, in an image of {image.width} x {image.height}). COCO wants"
        " [x1, y1, x2 - x1, y2 - y1]; convert them"
    )
