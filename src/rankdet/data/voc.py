"""Reading Pascal VOC annotations: one xml per image.

Everingham et al., "The PASCAL Visual Object Classes (VOC) Challenge", IJCV 2010.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np

from rankdet.data.checks import RawBoxes, RawImage, assemble
from rankdet.data.errors import DataError
from rankdet.data.files import Listing, read_file, refuse_many_unreadable, report_missing
from rankdet.data.images import image_size
from rankdet.data.imageset import ImageSet, Problem


class _Object(NamedTuple):
    image: int
    record: str
    name: str
    value: str
    corners: tuple[float, float, float, float]
    difficult: bool


def read_voc(
    xml_files: Sequence[Path],
    image_dir: Path | Sequence[Path],
    *,
    name: str = "train",
    root: Path | None = None,
    listing: Listing | None = None,
) -> ImageSet:
    """Read Pascal VOC annotations.

    The image of an xml is the one of the same name (its ``filename`` is tried next: it is often
    wrong after files were renamed). A size that is absent or zero is taken from the image's
    header. Objects marked ``difficult`` become crowd regions: neither object nor background, as
    in VOC's own evaluation. Files of the challenge itself (``source/database`` is "The VOC2007
    Database" and the like) count pixels from 1, so 1 is taken off their left and upper edges;
    those of annotation tools are taken as they are.

    Args:
        xml_files: the annotations; the images are numbered from 1 in this order.
        image_dir: the folder of the images, or several to search in turn.
        name: of the split.
        root: of the data set; the folder of the first xml by default.
        listing: to share what is known of the folders.

    Returns:
        The image set. Classes are sorted by name, their ids count from 1.

    Raises:
        DataError: If a file cannot be read or is no VOC annotation, if more than a tenth of the
            images is missing, or if no box can be used.
    """
    if not xml_files:
        raise DataError(f"{root or image_dir}: there is no xml file to read")
    listing = listing or Listing()
    folders = [image_dir] if isinstance(image_dir, Path) else list(image_dir)
    images: list[RawImage] = []
    sources: list[Path] = []
    objects: list[_Object] = []
    problems: list[Problem] = []
    missing: list[str] = []
    unreadable: list[Problem] = []
    for number, path in enumerate(xml_files, 1):
        tree = _parse(path)
        image = _find(path, tree, folders, listing)
        if image is None:
            missing.append(_text(tree, "filename") or path.stem)
            continue
        try:
            width, height = _size(tree, image)
        except DataError as fault:
            unreadable.append(Problem(path, "image", "image is left out", str(fault)))
            continue
        objects.extend(_objects(path, tree, len(images), problems))
        images.append(RawImage(image, number, width, height))
        sources.append(path)
    problems.extend(report_missing(missing, len(xml_files), xml_files[0].parent, folders))
    refuse_many_unreadable(unreadable, len(xml_files), xml_files[0].parent)
    problems.extend(unreadable)
    classes = tuple(sorted({entry.name for entry in objects}))
    labels = {entry: label for label, entry in enumerate(classes)}

    def where(place: int) -> tuple[Path, str, str]:
        entry = objects[place]
        return sources[entry.image], entry.record, entry.value

    raw = RawBoxes(
        image=np.array([entry.image for entry in objects], np.int64),
        corners=np.array([entry.corners for entry in objects], np.float64).reshape(-1, 4),
        labels=np.array([labels[entry.name] for entry in objects], np.int64),
        crowd=np.array([entry.difficult for entry in objects], np.bool_),
        areas=np.full(len(objects), np.nan),
        where=where,
    )
    records, faults = assemble(images, raw)
    return ImageSet(
        name=name,
        root=root or xml_files[0].parent,
        records=records,
        classes=classes,
        category_ids=tuple(range(1, len(classes) + 1)),
        problems=(*problems, *faults),
    )


class _NoDoctype(ElementTree.TreeBuilder):
    """Stops at a document type, which may define entities that grow without end."""

    def doctype(self, name: str, *_: object) -> None:
        raise DataError(f"a document type ({name!r}) is not accepted; delete the <!DOCTYPE ...>")


def _parse(path: Path) -> ElementTree.Element:
    content = read_file(path)
    parser = ElementTree.XMLParser(target=_NoDoctype())
    try:
        parser.feed(content)
        tree: ElementTree.Element = parser.close()
    except ElementTree.ParseError as fault:
        line, column = fault.position
        raise DataError(
            f"{path}: no valid xml at line {line}, column {column}: {fault};"
            " it may be cut off: copy or export it again"
        ) from fault
    except (ValueError, LookupError) as fault:
        # An unknown encoding, or the document type refused above.
        raise DataError(f"{path}: {fault}") from fault
    if tree.tag != "annotation":
        raise DataError(
            f"{path}: the outermost element is <{tree.tag}>, expected <annotation>;"
            " this is no Pascal VOC annotation"
        )
    return tree


def _find(
    path: Path, tree: ElementTree.Element, folders: list[Path], listing: Listing
) -> Path | None:
    # Several years of VOC are read as one; each file's own neighbours come first.
    above = path.parent.parent
    for folder in (path.parent, above / "JPEGImages", above / "images", *folders):
        found = listing.images(folder).get(path.stem)
        if found is not None:
            return folder / found
    name = _text(tree, "filename").replace("\\", "/").rpartition("/")[2]
    for folder in folders:
        if name in listing.files(folder):
            return folder / name
    return None


def _size(tree: ElementTree.Element, image: Path) -> tuple[int, int]:
    width, height = (_number(_text(tree, f"size/{key}")) for key in ("width", "height"))
    if 1 <= width < 1e9 and 1 <= height < 1e9:
        return int(width), int(height)
    return image_size(image)


def _objects(
    path: Path, tree: ElementTree.Element, image: int, problems: list[Problem]
) -> list[_Object]:
    database = _text(tree, "source/database")
    first = 1.0 if database.startswith("The VOC") and database.endswith("Database") else 0.0
    found = []
    for index, entry in enumerate(tree.findall("object"), 1):
        name = _text(entry, "name")
        record = f"object {index} ({name})" if name else f"object {index}"
        box = entry.find("bndbox")
        if not name or box is None:
            missing = "name" if not name else "bndbox"
            problems.append(Problem(path, record, f"object has no {missing}; left out"))
            continue
        texts = [_text(box, key) for key in ("xmin", "ymin", "xmax", "ymax")]
        x1, y1, x2, y2 = (_number(text) for text in texts)
        found.append(
            _Object(
                image=image,
                record=record,
                name=name,
                value=f"bndbox {', '.join(text or 'nothing' for text in texts)}",
                corners=(x1 - first, y1 - first, x2, y2),
                difficult=_text(entry, "difficult") == "1",
            )
        )
    return found


def _text(entry: ElementTree.Element, path: str) -> str:
    return (entry.findtext(path) or "").strip()


def _number(text: str) -> float:
    """Return the number in a text; NaN where there is none."""
    try:
        value = float(text)
    except ValueError:
        return math.nan
    return value if math.isfinite(value) else math.nan
