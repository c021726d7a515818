"""COCO 2017 from its official archives: fetched, unpacked, verified; goes on where it stopped.

Lin et al., "Microsoft COCO: Common Objects in Context", ECCV 2014; https://cocodataset.org.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from rankdet.data.disk import disk_faults, refuse_full_disk, size_text
from rankdet.data.download import download
from rankdet.data.errors import DataError
from rankdet.data.files import Listing, is_image
from rankdet.data.unpack import unpack

# The site serves plain HTTP: its certificate is for another name. The checksums make up for it.
SOURCE = "http://images.cocodataset.org"

Progress = Callable[[str, int, int | None], None]

_ARCHIVES = "archives"
# Hidden, so that nothing takes it for annotations.
_RECORD = ".rankdet-coco2017"
_BLOCK = 4096


@dataclass(frozen=True)
class Archive:
    """An archive as the server has it."""

    path: str
    """Below the address of the server."""
    size: int
    """In bytes."""
    sha256: str
    """Checksum in hexadecimal."""

    @property
    def name(self) -> str:
        """The name of the file."""
        return PurePosixPath(self.path).name


@dataclass(frozen=True)
class Split:
    """What belongs to a split: ``train2017/`` and ``annotations/instances_train2017.json``."""

    archive: Archive
    """Of the images."""
    images: int
    """How many there are."""
    annotations: int
    """Size of the instances file in bytes."""


@dataclass(frozen=True)
class Release:
    """All that can be fetched."""

    annotations: Archive
    splits: Mapping[str, Split]


# COCO publishes no checksums. These SHA-256 values are alike in two independent places:
# tensorflow/datasets (tensorflow_datasets/url_checksums/coco.txt, which has the sizes too) and
# pytorch/vision (torchvision/prototype/datasets/_builtin/coco.py). The MD5 values that many
# programs carry would do against accidents, but not where the transfer itself is unprotected.
COCO_2017 = Release(
    annotations=Archive(
        "annotations/annotations_trainval2017.zip",
        252_907_541,
        "113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268",
    ),
    splits={
        "train": Split(
            Archive(
                "zips/train2017.zip",
                19_336_861_798,
                "69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929",
            ),
            images=118_287,
            annotations=469_785_474,
        ),
        "val": Split(
            Archive(
                "zips/val2017.zip",
                815_585_330,
                "4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05",
            ),
            images=5_000,
            annotations=19_987_840,
        ),
    },
)


@dataclass(frozen=True)
class Outcome:
    """What became of a split."""

    split: str
    images: int
    """How many its annotations name; all of them are there."""
    fetched: bool
    """False where the split was there already."""


def download_coco(
    out: Path,
    *,
    splits: Collection[str] = ("train", "val"),
    base_url: str = SOURCE,
    keep_archives: bool = False,
    release: Release = COCO_2017,
    progress: Progress | None = None,
    note: Callable[[str], None] | None = None,
) -> list[Outcome]:
    """Fetch, unpack and verify COCO; go on where an earlier call stopped.

    Written are ``train2017/``, ``val2017/``, ``annotations/instances_train2017.json`` and
    ``annotations/instances_val2017.json``, those of ``splits``; `rankdet.data.discover.discover`
    reads the folder. A split that is complete already is left as it is, also where something else
    put it there. Archives lie in ``archives/`` until their images are verified; those that were put
    there by hand are used, if they are right, and never deleted.

    Args:
        out: folder to write to; need not exist.
        splits: of ``release``.
        base_url: server to fetch from, or a mirror with the same archives at the same places.
        keep_archives: do not delete the archives.
        release: what to fetch.
        progress: called with what is being done, bytes done, and bytes in all (None if unknown).
        note: is told a sentence about what happens beside that.

    Returns:
        The splits, in the order of ``release``.

    Raises:
        ValueError: ``release`` has no such split.
        DataError: something cannot be fetched, is not what it should be, or cannot be written; an
            annotation file with other content is there.
    """
    unknown = set(splits) - set(release.splits)
    if unknown:
        raise ValueError(
            f"splits are {', '.join(release.splits)}; got {', '.join(sorted(unknown))}"
        )
    told = note or (lambda _sentence: None)
    shown = progress or (lambda _what, _done, _total: None)
    if out.exists() and not out.is_dir():
        raise DataError(f"{out}: this is a file; name a folder for the data")
    with disk_faults(out):
        out.mkdir(parents=True, exist_ok=True)
    record = _Record.load(out / _RECORD)
    if keep_archives and record.ours:
        record.set_ours(set())
    wanted = [split for split in release.splits if split in splits]
    todo = [split for split in wanted if not _is_complete(out, split, release, record, told)]
    if todo:
        _refuse_full_disk(out, todo, keep_archives, release, told)

    def fetch(archive: Archive) -> Path:
        target = out / _ARCHIVES / archive.name
        if not keep_archives and not target.exists():
            record.set_ours({*record.ours, archive.name})
        download(
            f"{base_url.rstrip('/')}/{archive.path}",
            target,
            size=archive.size,
            sha256=archive.sha256,
            progress=lambda done, total: shown(f"fetching {archive.name}", done, total),
            note=told,
        )
        return target

    def extract(archive: Path, named: Callable[[str], bool], *, replace: bool) -> None:
        what = f"unpacking {archive.name}"
        unpack(
            archive,
            out,
            named,
            replace=replace,
            progress=lambda done, total: shown(what, done, total),
        )

    if todo:
        names = {f"annotations/instances_{split}2017.json" for split in todo}
        extract(fetch(release.annotations), names.__contains__, replace=False)
    for split in todo:
        file = fetch(release.splits[split].archive)
        extract(file, _within(f"{split}2017"), replace=True)
        named, missing = compare_names(out, split)
        if missing:
            raise DataError(
                f"{file}: {len(missing)} of {named} images that the annotations name are not in"
                f" this archive ({', '.join(missing[:3])}); delete the archive, and fetch it from"
                " another server"
            )
        record.mark_finished(split, named)
        _drop(file, record)
    # Also those of a split that an earlier call completed without getting as far as this.
    for archive in (release.annotations, *(release.splits[split].archive for split in wanted)):
        _drop(out / _ARCHIVES / archive.name, record)
    return [Outcome(split, record.finished[split], split in todo) for split in wanted]


def needed_space(
    splits: Collection[str], *, keep_archives: bool = False, release: Release = COCO_2017
) -> tuple[int, int]:
    """Return what splits need on the disk, in bytes, about: while being unpacked, and afterwards.

    >>> peak, after = needed_space(["val"])
    >>> print(size_text(peak), size_text(after))
    1.9 GB 846 MB
    """
    held = peak = release.annotations.size
    for split in (split for split in release.splits if split in splits):
        part = release.splits[split]
        # JPEG does not pack; on the disk each file loses half a block on average.
        unpacked = part.archive.size + part.images * _BLOCK // 2 + part.annotations
        held += part.archive.size + unpacked
        peak = max(peak, held)
        held -= 0 if keep_archives else part.archive.size
    return peak, held if keep_archives else held - release.annotations.size


def compare_names(out: Path, split: str) -> tuple[int, list[str]]:
    """Compare the images that the annotations of a split name with those in its folder.

    Returns:
        The number of names, and those that are not there, sorted.

    Raises:
        DataError: the annotations cannot be read.
    """
    path = out / "annotations" / f"instances_{split}2017.json"

    def slim(entry: dict[str, Any]) -> Any:
        # Of half a gigabyte only the names are wanted.
        return None if "image_id" in entry else entry

    try:
        content = json.loads(path.read_bytes(), object_hook=slim)
        names = {entry["file_name"] for entry in content["images"]}
    except (OSError, ValueError, KeyError, TypeError) as fault:
        raise DataError(
            f"{path}: no COCO annotations ({type(fault).__name__}: {fault}); delete the file and"
            " run the same again"
        ) from fault
    return len(names), sorted(names - Listing().files(out / f"{split}2017"))


def _within(folder: str) -> Callable[[str], bool]:
    return lambda name: name.startswith(f"{folder}/")


@dataclass
class _Record:
    """What was done in a folder, written into it."""

    path: Path
    finished: dict[str, int]
    """Splits that were verified, with their number of images."""
    ours: list[str]
    """Archives that are to be deleted once they are unpacked."""

    @classmethod
    def load(cls, path: Path) -> _Record:
        """Read the record of a folder; an empty one where there is none."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            finished = {str(split): int(images) for split, images in content["finished"].items()}
            return cls(path, finished, [str(name) for name in content["ours"]])
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return cls(path, {}, [])

    def set_ours(self, names: set[str]) -> None:
        """Note which archives are to be deleted."""
        self.ours = sorted(names)
        self._save()

    def mark_finished(self, split: str, images: int) -> None:
        """Note that a split is complete."""
        self.finished[split] = images
        self._save()

    def _save(self) -> None:
        made = self.path.with_name(f"{self.path.name}.part")
        with disk_faults(self.path):
            made.write_text(json.dumps({"finished": self.finished, "ours": self.ours}))
            made.replace(self.path)


def _is_complete(
    out: Path, split: str, release: Release, record: _Record, note: Callable[[str], None]
) -> bool:
    """Whether a split is there, by the record, or else by the names in its annotations."""
    folder, known = out / f"{split}2017", record.finished.get(split)
    there = sum(map(is_image, Listing().files(folder)))
    annotated = (out / "annotations" / f"instances_{split}2017.json").is_file()
    if annotated and known is not None and there >= known:
        return True
    expected = release.splits[split].images
    if annotated and known is None and there >= expected:
        named, missing = compare_names(out, split)
        if named >= expected and not missing:
            note(f"{folder}: all {named} images are there; their content was not compared")
            record.mark_finished(split, named)
            return True
    if known is not None:
        lost = f"{there} of {known} images are there" if annotated else "the annotations are gone"
        note(f"{folder}: was complete, but {lost} now; fetching again what is needed")
    return False


def _refuse_full_disk(
    out: Path,
    todo: list[str],
    keep_archives: bool,
    release: Release,
    note: Callable[[str], None],
) -> None:
    """Say what is needed, and stop if there is no room for it."""
    peak, after = needed_space(todo, keep_archives=keep_archives, release=release)
    names = [release.annotations.name, *(release.splits[split].archive.name for split in todo)]
    files = [out / _ARCHIVES / f"{name}{end}" for name in names for end in ("", ".part")]
    files += [out / "annotations" / f"instances_{split}2017.json" for split in todo]
    with disk_faults(out):
        present = sum(path.stat().st_size for path in files if path.exists())
        for folder in (out / f"{split}2017" for split in todo):
            if folder.is_dir():
                with os.scandir(folder) as entries:
                    present += sum(entry.stat().st_size for entry in entries)
        free = shutil.disk_usage(out).free
    held = f"; {size_text(present)} of it are there" if present else ""
    note(
        f"{out}: {' and '.join(todo)}: {size_text(peak)} of disk needed while unpacking,"
        f" {size_text(after)} afterwards{held}; {size_text(free)} are free"
    )
    refuse_full_disk(out, peak - present, f"COCO 2017 ({' and '.join(todo)})")


def _drop(archive: Path, record: _Record) -> None:
    """Delete an archive that was fetched here and has served."""
    if archive.name not in record.ours:
        return
    with disk_faults(archive):
        for end in ("", ".part", ".part.json"):
            archive.with_name(f"{archive.name}{end}").unlink(missing_ok=True)
        if archive.parent.is_dir() and not any(archive.parent.iterdir()):
            archive.parent.rmdir()
    record.set_ours({*record.ours} - {archive.name})
