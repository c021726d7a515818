"""Files of PyTorch's own formats, run where rankdet is not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from exported import DETECTORS, detections_of, images, make

from rankdet.export.verify import as_detections, compare
from rankdet.export.write import write_file

SCRIPT = """
import json, sys, warnings
warnings.simplefilter("ignore")
sys.modules["rankdet"] = None  # not to be had
import torch, torchvision
given = torch.load(sys.argv[2])
notes = {"rankdet.json": ""}
if sys.argv[1].endswith("pt2"):
    module = torch.export.load(sys.argv[1], extra_files=notes).module()
else:
    module = torch.jit.load(sys.argv[1], _extra_files=notes)
note = json.loads(notes["rankdet.json"])
with torch.no_grad():
    found = [tuple(module(*each)) for each in given]
torch.save((note, found), sys.argv[3])
"""


@pytest.mark.parametrize(
    ("kind", "name"),
    [*(("torchscript", name) for name in DETECTORS), ("pt2", "demo"), ("pt2", DETECTORS[-1])],
)
def test_a_file_finds_what_the_model_finds(kind: str, name: str, tmp_path: Path) -> None:
    detector, post_process, about = make(name)
    path = tmp_path / f"model.{kind}"
    before = {key: value.clone() for key, value in detector.state_dict().items()}
    result = write_file(detector, post_process, about, path, kind=kind)
    assert result.total > 100
    assert result.alone == 0
    assert [each.name for each in tmp_path.iterdir()] == [path.name], "nothing else is left there"
    assert all(torch.equal(before[key], value) for key, value in detector.state_dict().items())

    side = about.divisor
    sizes = [(1, 2 * side, 2 * side), (2, 3 * side, 2 * side), (4, 2 * side, 4 * side)]
    if kind == "torchscript":
        sizes.append((1, side, 2 * side))
    given = [images(*size) for size in sizes]
    torch.save(given, tmp_path / "given.pt")
    subprocess.run(
        [sys.executable, "-c", SCRIPT, path, tmp_path / "given.pt", tmp_path / "found.pt"],
        check=True,
    )
    note, found = torch.load(tmp_path / "found.pt")
    assert note["classes"] == list(about.classes)
    assert note["thresholds"] == [None, *[0.2] * 6]
    assert note["least_side"] == (side if kind == "torchscript" else 2 * side)
    json.dumps(note)
    for batch, outputs in zip(given, found, strict=True):
        wanted = detections_of(detector, post_process, *batch)
        agreement = compare(wanted, as_detections(*outputs), side=4 * side)
        assert agreement.total > 50
        assert agreement.alone == 0
        # Rounding: up to 2e-6 was seen, and it differs from CPU to CPU.
        assert agreement.score < 1e-5
        assert agreement.box < 1e-3
