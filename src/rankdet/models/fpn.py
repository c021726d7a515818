"""Feature pyramid: every level sees what the coarser ones know.

Lin, Dollár, Girshick, He, Hariharan, Belongie, "Feature Pyramid Networks for Object Detection",
CVPR 2017; the levels above C5 as there (for Faster R-CNN), or as in Lin, Goyal, Girshick, He,
Dollár, "Focal Loss for Dense Object Detection", ICCV 2017.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from torch import Tensor, nn
from torch.nn import functional

from rankdet.ops.checks import require_choice, require_positive

Extra = Literal["p5", "c5", "pool"]


class FPN(nn.Module):
    """Maps of equal width, each of twice the stride of the one before.

    The coarsest map of the backbone is passed down level by level, enlarged to the size of the
    finer one and added to it. Levels above C5 come from convolutions of stride 2, each but the
    first after a ReLU; or each is every second place of the one before.

    Args:
        in_channels: numbers of channels of the maps of the backbone: C3, C4 and C5, or C2 too.
        channels: number of channels of all maps returned.
        levels: number of maps returned, at least as many as come in: from stride 8 on, 3 for
            strides 8, 16, 32 and 5 up to 128.
        extra: what the first level above C5 is made from: ``"c5"`` as in RetinaNet,
            ``"p5"`` as in FCOS and ATSS, or ``"pool"``: P5 without convolutions, as in Faster
            R-CNN.
        finest_stride: of the first map of the backbone, in pixels: 8 for C3, 4 for C2.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        channels: int = 256,
        *,
        levels: int = 5,
        extra: Extra = "c5",
        finest_stride: int = 8,
    ) -> None:
        super().__init__()
        require_choice("extra", extra, get_args(Extra))
        require_positive("finest_stride", finest_stride)
        if levels < len(in_channels):
            raise ValueError(f"levels must be {len(in_channels)} or more, got {levels}")
        self.extra = extra
        self.channels = channels
        self.strides = tuple(finest_stride * 2**level for level in range(levels))
        self.lateral = nn.ModuleList(nn.Conv2d(each, channels, 1) for each in in_channels)
        self.output = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, padding=1) for _ in in_channels
        )
        first = in_channels[-1] if extra == "c5" else channels
        self.coarser = nn.ModuleList(
            nn.MaxPool2d(1, stride=2)
            if extra == "pool"
            else nn.Conv2d(channels if level else first, channels, 3, stride=2, padding=1)
            for level in range(levels - len(in_channels))
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Return the maps, P3, P4, P5, ... or from P2 on, finest first.

        Args:
            features: the maps of the backbone, finest first.
        """
        maps = [layer(each) for layer, each in zip(self.lateral, features, strict=True)]
        for fine in reversed(range(len(maps) - 1)):
            size = maps[fine].shape[-2:]
            maps[fine] = maps[fine] + functional.interpolate(maps[fine + 1], size=size)
        maps = [layer(each) for layer, each in zip(self.output, maps, strict=True)]
        above = features[-1] if self.extra == "c5" else maps[-1]
        for level, layer in enumerate(self.coarser):
            rectified = level > 0 and self.extra != "pool"
            above = layer(functional.relu(above) if rectified else above)
            maps.append(above)
        return maps
