"""Weights of backbones: from a file, or downloaded by torchvision."""

from __future__ import annotations

import http.client
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models

_FILES = (".safetensors", ".pth", ".pt")


def load_weights(
    body: nn.Module, name: str, weights: str, *, optional: frozenset[str] = frozenset()
) -> None:
    """Fill a network with weights from a file or from torchvision; the classifier is left out.

    Args:
        body: what is filled, with torchvision's names of weights.
        name: torchvision's name of the network, or ``"tiny"``.
        weights: a path of a .safetensors or .pth file, or a name that torchvision knows.
        optional: names of weights that stay as they are if all of them are missing.

    Raises:
        ValueError: there are no weights of that name, or they do not fit.
        FileNotFoundError: there is no such file.
        ConnectionError: the weights cannot be downloaded.
    """
    values = read_weights(Path(weights)) if is_file(weights) else _download(name, weights)
    values = {key: value for key, value in values.items() if not key.startswith("fc.")}
    if optional.isdisjoint(values):
        have = body.state_dict()
        values |= {key: have[key] for key in optional}
    try:
        body.load_state_dict(values)
    except RuntimeError as error:
        raise ValueError(
            f"weights {weights!r} do not fit the backbone {name!r}: {first_lines(error)}. The "
            f"file must hold the weights of this very network under torchvision's names"
        ) from error


def is_file(weights: str) -> bool:
    """Return whether weights are meant as a path rather than a name."""
    path = Path(weights)
    return path.suffix in _FILES or len(path.parts) > 1


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file by their names; no code of the file is run.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds something else.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no file of weights {path} (looked for {path.absolute()}): give the path of "
            f"a .safetensors or .pth file, the name of published weights, or none"
        )
    try:
        loaded = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pth(path)
    except ImportError:
        raise
    # Each library has its own errors for a file that is none of its kind.
    except Exception as error:
        raise ValueError(
            f"cannot read weights from {path}: {first_lines(error)}. It must be a complete "
            f".safetensors file, or a .pth file that holds tensors by name and nothing else"
        ) from error
    if not isinstance(loaded, Mapping) or not all(isinstance(v, Tensor) for v in loaded.values()):
        raise ValueError(
            f"{path} holds a {type(loaded).__name__} that is not tensors by name: save the "
            f"state_dict of the network alone"
        )
    return dict(loaded)


def first_lines(error: BaseException) -> str:
    """Return the beginning of an error's message, on one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:300] + " ..."


def _read_safetensors(path: Path) -> object:
    from safetensors.torch import load_file  # a library that only such files need

    return load_file(path)


def _read_pth(path: Path) -> object:
    return torch.load(path, map_location="cpu", weights_only=True)


def _download(name: str, weights: str) -> dict[str, Tensor]:
    known: dict[str, Any] = {}
    if name != "tiny":
        known = dict(models.get_model_weights(name).__members__)
    if weights not in known:
        choices = ", ".join(repr(key) for key in known) or "none by name"
        raise ValueError(
            f"weights of the backbone {name!r} must be one of {choices}, the path of a "
            f".safetensors or .pth file, or none; got {weights!r}"
        )
    url: str = known[weights].url
    try:
        return torch.hub.load_state_dict_from_url(
            url, map_location="cpu", check_hash=True, weights_only=True
        )
    except (OSError, RuntimeError, http.client.HTTPException, pickle.UnpicklingError) as error:
        place = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
        raise ConnectionError(
            f"cannot get the weights {weights!r} of the backbone {name!r} from {url}: "
            f"{first_lines(error)}. Download that file on a machine with a network and put it at "
            f"{place}, or give its path as weights, or train without (weights: null)"
        ) from error
