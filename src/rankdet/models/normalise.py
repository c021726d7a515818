"""Colours as the network wants them: mean 0 and standard deviation 1 in each channel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rankdet.ops.checks import require_shape

# Of ImageNet, whose weights the backbones start from; red, green, blue, in 0 to 255.
MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)


class Normalise(nn.Module):
    """Subtract the mean of each channel and divide by its standard deviation.

    Mean and deviation are settings of the constructor, so no part of the saved weights; they move
    between devices and precisions like weights.

    Args:
        mean: of the three channels, red, green, blue, in 0 to 255.
        std: likewise, above zero.

    Raises:
        ValueError: mean or std are not three numbers, or std is not above zero.

    Gradient: ordinary derivative.

    Example:
        >>> normalise = Normalise(mean=(96, 96, 96), std=(64, 64, 64))
        >>> normalise(torch.full((1, 3, 1, 1), 160, dtype=torch.uint8)).flatten()
        tensor([1., 1., 1.])
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, *, mean: Sequence[float] = MEAN, std: Sequence[float] = STD) -> None:
        super().__init__()
        for name, numbers in (("mean", mean), ("std", std)):
            if len(numbers) != 3:
                raise ValueError(f"{name} must be three numbers, got {tuple(numbers)}")
        if min(std) <= 0:
            raise ValueError(f"std must be above zero, got {tuple(std)}")
        self.mean, self.std = tuple(mean), tuple(std)
        scale = 1 / torch.tensor(self.std, dtype=torch.float64)
        shift = -torch.tensor(self.mean, dtype=torch.float64) * scale
        default = torch.get_default_dtype()
        self.register_buffer("scale", scale.to(default)[:, None, None], persistent=False)
        self.register_buffer("shift", shift.to(default)[:, None, None], persistent=False)

    @property
    def dtype(self) -> torch.dtype:
        """Of the normalised images."""
        return self.scale.dtype

    def forward(self, images: Tensor) -> Tensor:
        """Return the normalised images, [B, 3, H, W].

        Args:
            images: [B, 3, H, W] RGB, uint8 or floating in 0 to 255.

        Raises:
            ValueError: images have another shape.
        """
        require_shape("images", images, "B", 3, "H", "W")
        return torch.addcmul(self.shift, images.to(self.dtype), self.scale)

    def extra_repr(self) -> str:
        """Show the settings."""
        return f"mean={self.mean}, std={self.std}"
