"""Two kinds of files: a model to use, and the state of a run to go on with.

A model is a safetensors file: tensors and text, nothing that runs. Its metadata holds all that
using it takes: classes, recipe, preprocessing and thresholds. The state of a run (`last.ckpt`) is
read with PyTorch's weights-only loader. A pickle is never loaded.
"""

from __future__ import annotations

import json
import pickle
import textwrap
import warnings
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import CheckpointIO
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rankdet.engine.files import RunError, write_atomically

FORMAT = "rankdet-model-1"


@dataclass(frozen=True)
class ModelCard:
    """What a file of weights says of itself."""

    classes: tuple[str, ...]
    """Names, in the order of the labels 0 .. C-1."""
    category_ids: tuple[int, ...]
    """What the annotations call these classes."""
    recipe: str
    """The whole recipe, as YAML."""
    thresholds: tuple[float | None, ...] = ()
    """For each class the LRP-optimal score threshold on the validation split; None where the
    split could not tell. Empty: never evaluated."""
    metrics: dict[str, float | None] | None = None
    """Headline numbers on the validation split."""
    step: int = 0
    """Optimiser steps behind these weights."""
    version: str = ""
    """Version of rankdet that wrote the file."""

    def with_scores(
        self, thresholds: tuple[float | None, ...], metrics: dict[str, float | None]
    ) -> ModelCard:
        """Return the card with what an evaluation found."""
        return replace(self, thresholds=thresholds, metrics=metrics)


def save_model(path: Path, weights: dict[str, Tensor], card: ModelCard) -> None:
    """Write weights and card to one safetensors file, atomically.

    Raises:
        RunError: the file cannot be written.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    metadata = {key: json.dumps(value) for key, value in asdict(card).items()}
    metadata["format"] = FORMAT

    def write(made: Path) -> None:
        try:
            save_file(tensors, made, metadata=metadata)
        except SafetensorError as error:
            # The library wraps the system's error; its text still tells a full disk apart.
            if "os error 28" in str(error):
                raise OSError(28, "No space left on device") from error
            raise OSError(f"{error}") from error

    write_atomically(path, write)


def load_model(path: Path) -> tuple[dict[str, Tensor], ModelCard]:
    """Read a file that `save_model` wrote.

    Raises:
        RunError: the file is missing, cut off, of another format, or not a safetensors file; a
            pickle is refused without being read.
    """
    if not path.is_file():
        raise RunError(f"{path} does not exist; give the best.safetensors of a run")
    if _is_pickle(path):
        raise RunError(
            f"{path} is a pickle, which can run code when it is loaded; rankdet refuses it. Give "
            f"the best.safetensors of a run instead"
        )
    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise RunError(
                    f"{path} is a safetensors file that rankdet did not write (format "
                    f"{metadata.get('format')!r}, expected {FORMAT!r})"
                )
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dict
    except (SafetensorError, OSError) as error:
        raise RunError(
            f"{path} cannot be read: {error}. It may have been cut off; copy it again"
        ) from error
    known = {f.name for f in fields(ModelCard)} & metadata.keys()
    try:
        values = {name: json.loads(metadata[name]) for name in known}
        for name in ("classes", "category_ids", "thresholds"):
            values[name] = tuple(values.get(name, ()))
        return weights, ModelCard(**values)
    except (ValueError, TypeError) as error:
        raise RunError(
            f"{path} does not say what it holds: its metadata cannot be read ({error}). Give the "
            f"best.safetensors of a run as it was written"
        ) from error


def load_weights(model: torch.nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    """Put weights into a model that must fit them exactly.

    Raises:
        RunError: names or shapes differ; the message names the first few.
    """
    own = model.state_dict()
    missing = sorted(own.keys() - weights.keys())
    unknown = sorted(weights.keys() - own.keys())
    other = [
        f"{name}: {list(weights[name].shape)} in the file, {list(own[name].shape)} in the model"
        for name in own.keys() & weights.keys()
        if weights[name].shape != own[name].shape
    ]
    if missing or unknown or other:
        found = [f"{n} is missing" for n in missing] + [f"{n} is unknown" for n in unknown]
        listed = "; ".join((sorted(other) + found)[:4])
        raise RunError(
            f"the weights of {path} do not fit the model: {listed}. Another number of classes or "
            f"another recipe would do this"
        )
    model.load_state_dict(weights)


class AtomicCheckpointIO(CheckpointIO):
    """Writes the state of a run atomically, and reads it without running any code in it."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """Replace the file by the new state, or leave it as it is."""
        assert storage_options is None

        def write(made: Path) -> None:
            try:
                torch.save(checkpoint, made)
            except RuntimeError as error:
                # PyTorch's zip writer reports a failed write so, without the system's reason.
                raise OSError(28, "No space left on device") from error

        write_atomically(Path(path), write)

    def load_checkpoint(
        self, path: Any, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read the state of a run; always weights only."""
        del weights_only
        return load_state(Path(path), map_location)

    def remove_checkpoint(self, path: Any) -> None:
        """Delete the file."""
        Path(path).unlink(missing_ok=True)


def load_state(path: Path, map_location: Any | None = "cpu") -> dict[str, Any]:
    """Read the state of a run that `AtomicCheckpointIO` wrote.

    Raises:
        RunError: the file is missing, cut off, or holds more than tensors and plain values.
    """
    if not path.is_file():
        raise RunError(f"{path} does not exist; nothing to go on from")
    try:
        with warnings.catch_warnings():  # PyTorch 2.11 warns of a file that it refuses next
            warnings.simplefilter("ignore", UserWarning)
            state: dict[str, Any] = torch.load(path, map_location=map_location, weights_only=True)
    except (
        RuntimeError,
        EOFError,
        pickle.UnpicklingError,
        ValueError,
        OSError,
        SafetensorError,
    ) as error:  # PyTorch reads a file named .safetensors by that library
        reason = textwrap.shorten(str(error), 100, placeholder=" ...")
        raise RunError(
            f"{path} cannot be read as the state of a run: it was cut off, or holds more than "
            f"weights and is refused ({reason}). Copy it again; a run whose last.ckpt is removed "
            "begins again from the start"
        ) from error
    return state


def _is_pickle(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(9)
    # A safetensors file begins with the length of its header, in 8 bytes, the least of which may be
    # any, and the header with a brace.
    if start[5:] == b"\0\0\0{":
        return False
    # A bare pickle begins with its protocol; PyTorch's own files are zip archives of one.
    return start[:1] == b"\x80" or start[:4] == b"PK\x03\x04"
