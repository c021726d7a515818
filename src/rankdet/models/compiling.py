"""Having `torch.compile` make the network of a detector faster."""

from __future__ import annotations

from torch import nn

_TRUNK = ("backbone", "neck")
_HEADS = ("head", "first", "second")


def compile_network(detector: nn.Module, *, heads: bool, backend: str = "inductor") -> None:
    """Compile the parts of a detector in place; they are translated when they are first called.

    Names of weights stay what they were, and copies of the detector are not compiled. What is
    around the network (priors, matching, losses, making detections) is left as it is.

    Args:
        detector: of one or two stages.
        heads: whether heads are compiled too. What differentiates through a head twice, such as
            `rankdet.criteria.GradientBalance`, needs a head that is not: the backward pass of a
            compiled one gives its memory back as it goes.
        backend: of `torch.compile`.
    """
    for name in (*_TRUNK, *(_HEADS if heads else ())):
        part = getattr(detector, name, None)
        if isinstance(part, nn.Module):
            part.compile(backend=backend)
