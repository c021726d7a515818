"""Writing a detector as a file for another runtime, checked before it is put in place."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from rankdet.engine.files import RunError, write_atomically
from rankdet.export.describe import Description
from rankdet.export.formats import get_format
from rankdet.export.graph import DenseGraph
from rankdet.export.region_graph import RegionGraph
from rankdet.export.suppression import Suppress
from rankdet.export.verify import Agreement, agreement, as_detections, some_images
from rankdet.models.detector import Detector
from rankdet.models.faster_rcnn import FasterRCNN
from rankdet.models.postprocess import PostProcess
from rankdet.models.region_postprocess import RegionPostProcess
from rankdet.structures import Detections


def write_file(
    detector: Detector | FasterRCNN,
    post_process: PostProcess | RegionPostProcess,
    about: Description,
    path: Path,
    *,
    kind: str,
    nms: bool = True,
) -> Agreement:
    """Write a detector and its post-processing as one file, and try it out.

    The file is run on images of another size than it was made with, and compared with the
    detector; only then it is put in place.

    Args:
        detector: on the CPU; it is not changed.
        post_process: of it.
        about: what the file will say of itself; what the format and ``nms`` decide is filled in.
        path: of the file.
        kind: ``"onnx"``, ``"torchscript"`` or ``"pt2"``.
        nms: whether duplicates are removed in the graph; if not, the file returns all candidates.

    Returns:
        How well the file agreed with the detector.

    Raises:
        RunError: the detector or its post-processing cannot be written so, the file does not do
            what the detector does, or it cannot be written to that place.
    """
    form = get_format(kind)
    detector = detector.eval()
    # Rows of pixels may be how the detector was loaded; graphs are made of plain layouts. And what
    # an exporter does to its copy must not be done to what the file is compared with.
    copied = copy.deepcopy(detector).to(memory_format=torch.contiguous_format)
    graph = make_graph(copied, post_process, form.suppress, nms=nms).eval()
    divisor = about.divisor
    about = replace(
        about,
        duplicates="removed" if nms else "left in",
        # PyTorch's exporter takes for granted that a map has more than one place in each direction.
        least_side=2 * divisor if kind == "pt2" else divisor,
    )
    reference = make_graph(detector, post_process, form.suppress, nms=False)

    @torch.no_grad()
    def model(images: Tensor, sizes: Tensor) -> list[Detections]:
        if nms:
            given = (sizes,) if isinstance(detector, FasterRCNN) else ()
            found: list[Detections] = post_process(detector(images, *given), sizes)
            return found
        return as_detections(*reference(images, sizes))

    result: list[Agreement] = []

    def write(made: Path) -> None:
        try:
            form.write(graph, some_images(2, 3 * divisor, 4 * divisor), about, made)
            run = form.run(made)
        except OSError:
            raise
        except Exception as error:
            raise RunError(f"this model cannot be written as {kind}: {_reason(error)}") from error
        found = agreement(model, run, divisor=divisor)
        if not found.good:
            raise RunError(
                f"the {kind} file does not find what the model finds: {found.alone} of "
                f"{found.total} detections differ. It was not put in place; please report this"
            )
        result.append(found)

    write_atomically(path, write)
    return result[0]


def make_graph(
    detector: nn.Module,
    post_process: PostProcess | RegionPostProcess,
    suppress: Suppress,
    *,
    nms: bool,
) -> nn.Module:
    """Return what is written: images and sizes to detections.

    Raises:
        RunError: the post-processing has parts that no runtime knows, or the detector is of
            another kind.
    """
    if nms and post_process.nms != "hard":
        raise RunError(
            "the model was tested with soft NMS (test.nms: soft), which no runtime has. Write it "
            "with --nms none, and remove duplicates outside of the file"
        )
    if isinstance(post_process, PostProcess) and post_process.vote_sigma is not None:
        raise RunError("score voting cannot be written as a graph")
    if isinstance(detector, Detector) and isinstance(post_process, PostProcess):
        return DenseGraph(detector, post_process, suppress if nms else None)
    if isinstance(detector, FasterRCNN) and isinstance(post_process, RegionPostProcess):
        return RegionGraph(detector, post_process, suppress, final=nms)
    raise RunError(f"a {type(detector).__name__} cannot be written as a graph")


def _reason(error: Exception) -> str:
    """Return the first cause in one line; exporters wrap it into pages of advice."""
    while error.__cause__ is not None and isinstance(error.__cause__, Exception):
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300] if lines else ''}"
