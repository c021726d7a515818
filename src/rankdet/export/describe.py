"""What an exported file says of itself: all that using it takes."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

FORMAT = "rankdet-export-1"

_HOW = """\
Read the image upright, as RGB. scale = min(shorter / its shorter side, longer / its longer side); \
new sides = max(1, floor(side * scale + 0.5)). Resize bilinearly with antialiasing, as Pillow's \
BILINEAR does, to whole numbers of 0 to 255. Pad on the right and below with the colour fill until \
both sides are multiples of divisor, and at least least_side. Input images: uint8 [B, 3, H, W]; \
sizes: int64 [B, 2], height and width of each image before padding. Colours are normalised inside. \
Outputs, best first: boxes float32 [B, D, 4], xyxy in pixels of the resized image (x times \
original width / new width, y likewise, gives pixels of the original); scores float32 [B, D]; \
labels int64 [B, D], places in classes, -1 where nothing was found. {duplicates}Keep what scores \
at least the threshold of its class; null keeps all."""
_LEFT = (
    "Duplicates are left in: after that remove, within each class and from the best score down, "
    "what overlaps a box that stays by an IoU above nms_iou, and keep the best max_detections. "
)


@dataclass(frozen=True)
class Description:
    """What stands in the metadata of a file, each field as JSON."""

    classes: tuple[str, ...]
    """C names, in the order of the labels."""
    category_ids: tuple[int, ...]
    """What the annotations call these classes."""
    thresholds: tuple[float | None, ...]
    """For each class the least score to keep; None for all."""
    shorter: int
    """The shorter side of a resized image, in pixels ..."""
    longer: int
    """... unless the longer one would exceed this."""
    divisor: int
    """Of the sides of the padded batch."""
    fill: tuple[int, int, int]
    """RGB of the padding, in 0 to 255."""
    max_detections: int
    """Per image."""
    nms_iou: float
    """Overlap above which a box of the same class is a duplicate."""
    duplicates: str = "removed"
    """Or ``"left in"``."""
    least_side: int = 1
    """The sides of the padded batch must not be smaller, in pixels."""
    recipe: str = ""
    """Of the training, as YAML."""
    version: str = ""
    """Version of rankdet that wrote the file."""

    def entries(self) -> dict[str, str]:
        """Return the metadata: the fields, the name of this format, and how to use the file."""
        how = _HOW.format(duplicates=_LEFT if self.duplicates == "left in" else "")
        values = {"format": FORMAT, **asdict(self), "how": how}
        return {name: json.dumps(value, ensure_ascii=False) for name, value in values.items()}

    def text(self) -> str:
        """Return the same as one JSON object."""
        values = {name: json.loads(text) for name, text in self.entries().items()}
        return json.dumps(values, ensure_ascii=False, indent=1)
