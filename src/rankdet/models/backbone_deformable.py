"""Deformable convolution: each point of the kernel looks where the network tells it to.

Zhu, Hu, Lin, Dai, "Deformable ConvNets v2: More Deformable, Better Results", CVPR 2019.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.ops import deform_conv2d


class DeformableConv(nn.Module):
    """A convolution whose kernel points move and fade from place to place.

    With w_k the weights of kernel point k, p_k its place, and Δp_k, m_k what an ordinary
    convolution over the same window says at p (equation 1):

        y(p) = Σ_k w_k · x(p + p_k + Δp_k) · 2 sigmoid(m_k)

    The values between pixels are bilinear, those outside of the map 0.

    That convolution starts from zero, and so this one starts as the one it is made from: trained
    weights do unchanged what they did before. The factor 2 is ours. As published the modulation
    is sigmoid(m_k), which starts at 1/2 and so halves what the next layer expects to see; the
    weights learn to make up for it. Published weights of a deformable convolution, halved, do
    the same here.

    Args:
        conv: its weights are taken over, not copied.

    Gradient: ordinary derivative.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
            raise ValueError(f"the convolution must be padded with given numbers of zeros: {conv}")
        self.weight = conv.weight
        self.bias = conv.bias
        self.stride, self.padding, self.dilation = conv.stride, conv.padding, conv.dilation
        self.points = conv.kernel_size[0] * conv.kernel_size[1]
        self.offsets = nn.Conv2d(
            conv.in_channels,
            3 * self.points,  # of each point: y and x, after all of these the modulation
            conv.kernel_size,  # type: ignore[arg-type]
            stride=conv.stride,  # type: ignore[arg-type]
            padding=conv.padding,  # type: ignore[arg-type]
            dilation=conv.dilation,  # type: ignore[arg-type]
        ).to(conv.weight)
        nn.init.zeros_(self.offsets.weight)
        assert self.offsets.bias is not None
        nn.init.zeros_(self.offsets.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return the map.

        Args:
            x: [B, channels, H, W].
        """
        offsets, modulation = self.offsets(x).split((2 * self.points, self.points), 1)
        # In float32 at least: places in 16 bits would be a few hundredths of a pixel off, and
        # torchvision knows no bfloat16 everywhere.
        dtype = torch.promote_types(x.dtype, torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            found: Tensor = deform_conv2d(
                x.to(dtype),
                offsets.to(dtype),
                self.weight.to(dtype),
                None if self.bias is None else self.bias.to(dtype),
                stride=self.stride,
                padding=self.padding,
                dilation=self.dilation,
                mask=2 * modulation.to(dtype).sigmoid(),
            )
        return found.to(offsets.dtype)

    def extra_repr(self) -> str:
        """Show the settings."""
        return f"stride={self.stride}, padding={self.padding}, dilation={self.dilation}"


def make_deformable(stage: nn.Module) -> list[str]:
    """Replace the convolution ``conv2`` of each residual block by a deformable one.

    It is the only 3x3 convolution of a bottleneck, as published, and the second of a basic block.

    Args:
        stage: changed in place.

    Returns:
        The names of the weights that were added to it.

    Raises:
        ValueError: there is no such convolution.
    """
    added = []
    for name, block in list(stage.named_modules()):
        conv = getattr(block, "conv2", None)
        if isinstance(conv, nn.Conv2d):
            block.conv2 = DeformableConv(conv)
            prefix = f"{name}.conv2.offsets" if name else "conv2.offsets"
            added += [f"{prefix}.weight", f"{prefix}.bias"]
    if not added:
        raise ValueError("there is no residual block with a convolution 'conv2' to make deformable")
    return added
