"""A detector: backbone, neck, head and priors put together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from rankdet.models.heads import DenseHead
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
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        neck: nn.Module,
        head: DenseHead,
        priors: Callable[..., Priors],
        coder: BoxCoder,
        *,
        mean: Sequence[float] = (123.675, 116.28, 103.53),
        std: Sequence[float] = (58.395, 57.12, 57.375),
    ) -> None:
        super().__init__()
        for name, numbers in (("mean", mean), ("std", std)):
            if len(numbers) != 3:
                raise ValueError(f"{name} must be three numbers, got {tuple(numbers)}")
        if min(std) <= 0:
            raise ValueError(f"std must be above zero, got {tuple(std)}")
        self.backbone = backbone
        self.neck = neck
        self.head = head
        self.priors = priors
        self.coder = coder
        self.mean, self.std = tuple(mean), tuple(std)
        scale = 1 / torch.tensor(self.std, dtype=torch.float64)
        shift = -torch.tensor(self.mean, dtype=torch.float64) * scale
        default = torch.get_default_dtype()
        # Settings of the constructor, so no part of the saved weights.
        self.register_buffer("scale", scale.to(default)[:, None, None], persistent=False)
        self.register_buffer("shift", shift.to(default)[:, None, None], persistent=False)

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
        if images.dim() != 4 or images.shape[1] != 3:
            raise ValueError(f"images must have shape [B, 3, H, W], got {list(images.shape)}")
        normalised = torch.addcmul(self.shift, images.to(self.scale.dtype), self.scale)
        outputs = self.head(self.neck(self.backbone(normalised)))
        size = (images.shape[2], images.shape[3])
        dtype = torch.promote_types(self.scale.dtype, torch.float32)
        priors = self.priors(size, device=images.device, dtype=dtype)
        if priors.boxes.shape[0] != outputs.logits.shape[1]:
            raise ValueError(
                f"the head predicts for {outputs.logits.shape[1]} priors, but there are "
                f"{priors.boxes.shape[0]}: its levels, the strides and the priors per place must "
                f"agree"
            )
        return Predictions(outputs.logits, outputs.codes, priors, self.coder, outputs.branches)
