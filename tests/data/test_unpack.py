"""Zip archives that are whole, damaged, and hostile."""

from __future__ import annotations

import io
import stat
import zipfile
from pathlib import Path

import pytest

from rankdet.data.errors import DataError
from rankdet.data.unpack import unpack


def zipped(members: dict[str, bytes]) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return made.getvalue()


def test_unpacking_writes_what_differs_only(tmp_path: Path) -> None:
    archive, out = tmp_path / "a.zip", tmp_path / "out"
    archive.write_bytes(zipped({"d/": b"", "d/a": b"1" * 50, "d/b": b"22", "e/c": b"3"}))
    calls: list[tuple[int, int | None]] = []

    def wanted(name: str) -> bool:
        return name.startswith("d/")

    assert unpack(archive, out, wanted, progress=lambda *c: calls.append(c)) == 2
    assert calls == [(50, 52), (52, 52)]
    assert unpack(archive, out, wanted) == 0
    assert sorted(path.name for path in out.rglob("*")) == ["a", "b", "d"]
    (out / "d" / "a").write_bytes(b"0" * 50)  # the size alone does not tell
    with pytest.raises(DataError, match=r"d/a: is there with other content"):
        unpack(archive, out, wanted)
    assert unpack(archive, out, wanted, replace=True) == 1
    assert (out / "d" / "a").read_bytes() == b"1" * 50
    with pytest.raises(DataError, match="nothing that is looked for"):
        unpack(archive, out, lambda name: name == "z")


@pytest.mark.parametrize("name", ["../evil", "/evil", "d/../../evil", "d\\..\\evil", "C:evil"])
def test_names_that_lead_out_of_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    archive, out = tmp_path / "a.zip", tmp_path / "in" / "out"
    archive.write_bytes(zipped({"d/good": b"1", name: b"2"}))
    with pytest.raises(DataError, match=r"leads out of the folder.* nothing was unpacked"):
        unpack(archive, out, lambda _name: True)
    assert [path.name for path in tmp_path.rglob("*")] == ["a.zip"]


def test_links_are_refused(tmp_path: Path) -> None:
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as opened:
        link = zipfile.ZipInfo("d/link")
        link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        opened.writestr(link, "/etc")
    with pytest.raises(DataError, match="'d/link', a link"):
        unpack(archive, tmp_path / "out", lambda _name: True)


def test_a_damaged_member_is_found_by_its_crc(tmp_path: Path) -> None:
    archive, out = tmp_path / "a.zip", tmp_path / "out"
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as opened:
        opened.writestr("a", b"right")
    archive.write_bytes(made.getvalue().replace(b"right", b"wrong", 1))
    with pytest.raises(
        DataError, match=r"a\.zip: is cut off, damaged, or no zip archive \(Bad CRC"
    ):
        unpack(archive, out, lambda _name: True)
    assert list(out.iterdir()) == []
    for content in (b"", b"PK", zipped({"a": b"1"})[:-5]):
        archive.write_bytes(content)
        with pytest.raises(DataError, match="is cut off, damaged, or no zip archive"):
            unpack(archive, out, lambda _name: True)
    archive.unlink()
    with pytest.raises(DataError, match=r"a\.zip: cannot be read"):
        unpack(archive, out, lambda _name: True)
