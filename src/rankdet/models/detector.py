"""A detector: backbone, neck, head and priors put together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from rankdet.models.heads import DenseHead, HeadOutputs
from rankdet.models.normalise import MEAN, STD, Normalise
from rankdet.structures import BoxCoder, Predictions

if TYPE_CHECKING:
    from rankdet.structures import Priors


class Detector(nn.Module):
    """From images to predictions; knows no loss.

    Args:
        backbone: normalised images [B, 3, H, W] -> list of feature maps.
        neck: these -> feature maps for the head, finest first.
        head: these -> logits, codes and branches.
        priors: called with (height, width) of the batch, and ``device`` and ``dtype``; in the
            order of the head.
        coder: what the codes mean.
        mean: of the three channels, red, green, blue, in 0 to 255; subtracted.
        std: likewise, above zero; divided by.

    Raises:
        ValueError: mean or std are not three numbers, or std is not above zero.
    """

    def __init__(
        self,
        backbone: nn.Module,
        neck: nn.Module,
        head: DenseHead,
        priors: Callable[..., Priors],
        coder: BoxCoder,
        *,
        mean: Sequence[float] = MEAN,
        std: Sequence[float] = STD,
    ) -> None:
        super().__init__()
        self.normalise = Normalise(mean=mean, std=std)
        self.backbone = backbone
        self.neck = neck
        self.head = head
        self.priors = priors
        self.coder = coder

    @property
    def classes(self) -> int:
        """C, the number of classes."""
        return self.head.classes

    @property
    def branches(self) -> frozenset[str]:
        """Names of the branches beyond logits and codes."""
        return self.head.branches

    def forward(self, images: Tensor) -> Predictions:
        """Return the predictions of a batch.

        Args:
            images: [B, 3, H, W] RGB, uint8 or floating in 0 to 255.

        Raises:
            ValueError: images have another shape, or the priors do not fit the head.
        """
        features = self.neck(self.backbone(self.normalise(images)))
        size = (images.shape[2], images.shape[3])
        return dense_predictions(
            self.head(features),
            self.priors,
            self.coder,
            size,
            dtype=self.normalise.dtype,
            shared=features if self.training else (),
        )


def dense_predictions(
    outputs: HeadOutputs,
    priors: Callable[..., Priors],
    coder: BoxCoder,
    size: tuple[int, int],
    *,
    dtype: torch.dtype,
    head: str = "the head",
    shared: Sequence[Tensor] = (),
) -> Predictions:
    """Return what a head says, together with the priors that it says it of.

    Args:
        outputs: of B images and A priors.
        priors: called with ``size``, and ``device`` and ``dtype``; in the order of the head.
        coder: what the codes mean.
        size: height and width of the batch, in pixels.
        dtype: of the network; the priors are float32 at least.
        head: what a message calls it.
        shared: what the outputs were made from.

    Raises:
        ValueError: there are not A priors.
    """
    dtype = torch.promote_types(dtype, torch.float32)
    made = priors(size, device=outputs.logits.device, dtype=dtype)
    if len(made.boxes) != outputs.logits.shape[1]:
        raise ValueError(
            f"{head} predicts for {outputs.logits.shape[1]} priors, but there are "
            f"{len(made.boxes)}: its levels, the strides and the priors per place must agree"
        )
    return Predictions(
        outputs.logits, outputs.codes, made, coder, outputs.branches, shared=tuple(shared)
    )
