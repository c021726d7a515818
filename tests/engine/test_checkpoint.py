"""Model files: what they hold, and what is refused."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from rankdet.engine import checkpoint
from rankdet.engine.checkpoint import (
    AtomicCheckpointIO,
    ModelCard,
    load_model,
    load_state,
    load_weights,
    save_model,
)
from rankdet.engine.files import RunError

CARD = ModelCard(
    classes=("red cell", "Plättchen"),
    category_ids=(1, 90),
    recipe="name: x\n",
    thresholds=(0.25, None),
    metrics={"AP": 0.5, "oLRP": None},
    step=7,
    version="0",
)


def test_a_model_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    weights = {"a": torch.randn(3, 4)[:, ::2], "b": torch.arange(3)}
    save_model(tmp_path / "m.safetensors", weights, CARD)
    found, card = load_model(tmp_path / "m.safetensors")
    assert card == CARD
    torch.testing.assert_close(found, weights, rtol=0, atol=0)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"m\.safetensors does not exist"):
        load_model(tmp_path / "m.safetensors")


@pytest.mark.parametrize("keep", [0, 3, 100, -4])
def test_a_truncated_file_is_refused(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "m.safetensors"
    save_model(path, {"a": torch.randn(100)}, CARD)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(RunError, match="cannot be read"):
        load_model(path)


class Bomb:
    """Leaves a trace if it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.trace,)


def test_a_header_of_any_length_is_no_pickle(tmp_path: Path) -> None:
    """The first byte of a file is that of the header's length, and 0x80 begins a pickle."""
    seen = set()
    for length in range(0, 512, 8):
        card = ModelCard(("cat",), (1,), "#" * length, (0.5,))
        save_model(tmp_path / "m.safetensors", {"w": torch.ones(2)}, card)
        seen.add((tmp_path / "m.safetensors").read_bytes()[0])
        assert load_model(tmp_path / "m.safetensors")[1].recipe == card.recipe
    assert 0x80 in seen


@pytest.mark.parametrize("by", ["pickle", "torch"])
def test_a_pickle_is_refused_and_not_run(tmp_path: Path, by: str) -> None:
    path, trace = tmp_path / "m.safetensors", tmp_path / "trace"
    if by == "pickle":
        path.write_bytes(pickle.dumps(Bomb(trace)))
    else:
        torch.save({"a": Bomb(trace)}, path)
    with pytest.raises(RunError, match="is a pickle"):
        load_model(path)
    with pytest.raises(RunError, match="cannot be read as the state"):
        load_state(path)
    assert not trace.exists()


def test_a_safetensors_file_of_others_is_refused(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "m.safetensors")
    with pytest.raises(RunError, match="did not write"):
        load_model(tmp_path / "m.safetensors")


@pytest.mark.parametrize("spoilt", [{"classes": "[1"}, {"step": "7", "recipe": None}])
def test_metadata_that_cannot_be_read_are_named(
    tmp_path: Path, spoilt: dict[str, str | None]
) -> None:
    path = tmp_path / "m.safetensors"
    given = {"format": checkpoint.FORMAT, "recipe": '"x"', "category_ids": "[1]", **spoilt}
    metadata = {key: value for key, value in given.items() if value is not None}
    save_file({"a": torch.zeros(1)}, path, metadata=metadata)
    with pytest.raises(RunError, match="metadata cannot be read"):
        load_model(path)


def test_weights_of_another_class_count_are_named() -> None:
    model, other = nn.Linear(4, 10), nn.Linear(4, 3)
    with pytest.raises(RunError, match=r"bias: \[3\] in the file, \[10\] in the model"):
        load_weights(model, other.state_dict(), Path("m.safetensors"))
    with pytest.raises(RunError, match="more is unknown"):
        load_weights(model, {**model.state_dict(), "more": torch.zeros(1)}, Path("m"))


def test_a_full_disk_keeps_the_model_that_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.safetensors"
    save_model(path, {"a": torch.zeros(1)}, CARD)
    before = path.read_bytes()

    def full(*_: object, **__: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(RunError, match="disk is full"):
        save_model(path, {"a": torch.ones(1)}, CARD)
    assert path.read_bytes() == before


def test_the_state_of_a_run_comes_back(tmp_path: Path) -> None:
    state = {"global_step": 3, "state_dict": {"a": torch.randn(2)}}
    files = AtomicCheckpointIO()
    files.save_checkpoint(state, tmp_path / "last.ckpt")
    torch.testing.assert_close(files.load_checkpoint(tmp_path / "last.ckpt"), state)
    (tmp_path / "cut.ckpt").write_bytes((tmp_path / "last.ckpt").read_bytes()[:-20])
    with pytest.raises(RunError, match="cut off"):
        load_state(tmp_path / "cut.ckpt")
