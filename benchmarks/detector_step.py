"""Whole training steps of a whole detector: ours with aLRP and with focal loss, and torchvision's.

RetinaNet with ResNet-50 and 9 anchors a place, 80 classes, the same images and boxes. All three
have random weights, fixed statistics in batch norms (ours learn their scale and shift), a stem and
a first stage that do not learn, levels above C5 made from C5, and SGD with momentum. Ours are
channels_last, as in our recipes; torchvision's is as it comes, but need not resize the images.

They take turns within one run. A step: images from (page-locked) memory to the device, normalise,
forward, assignment, loss, backward, optimiser. Its parts are measured in a pass of their own, which
waits for the device after each. Scores are those of a fresh network; what a ranking loss costs with
a trained one's, beside focal loss, is in the rows of `benchmarks.losses`.

Examples:
    python -m benchmarks.detector_step --profile step.txt   and where the time of a step goes
    python -m benchmarks.detector_step --compile            and ours with a network compiled
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.resnet import Bottleneck
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from benchmarks import measure, results
from benchmarks.assignment_detectors import CLASSES, SEED, objects
from rankdet.config.build_criterion import build_criterion
from rankdet.config.build_model import build_detector
from rankdet.config.load import load_recipe
from rankdet.models.compiling import compile_network
from rankdet.structures import Targets

ALRP, FOCAL, TORCHVISION = "aLRP, self-balance", "focal + smooth L1", "torchvision RetinaNet"
RECIPES = {
    ALRP: ("retinanet_r50_alrp", ("model.weights=null", "model.anchors.octave_scales=3")),
    FOCAL: ("retinanet_r50_focal", ("model.weights=null",)),
}
COMPILED = f"{ALRP}, compiled"
Loss = Callable[[], Tensor]
PARTS = ("input", "forward", "assignment", "criterion", "backward", "optimizer")
BATCH = {"cuda": 16, "cpu": 2}
PRECISIONS = {"cuda": ("float32", "bf16-autocast"), "cpu": ("float32",)}
WARM_UP, LEAST_ROUNDS, PART_ROUNDS = 2, 3, 10
OBJECTS = 7  # in an image, as on average in COCO
RATE = 1e-5  # so small that the scores stay as they are, however many steps are timed


class Setting(NamedTuple):
    """What all rivals of a row have in common."""

    device: str
    precision: str
    batch: int
    size: int  # side of the images, in pixels
    tf32: bool = True  # in float32 on a GPU, for convolutions and products of matrices


class Clock:
    """Milliseconds of each part of a step; what an inner part takes, the outer one does not."""

    def __init__(self) -> None:
        self._spent: dict[str, float] | None = None  # None: stopped, and nothing waits
        self._open: list[str] = []
        self._since = 0.0

    def run(self, part: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a function as a part; wait for the device before and after."""
        self._count()
        self._open.append(part)
        result = function(*args, **kwargs)
        self._count()
        self._open.pop()
        return result

    def watch(self, part: str, owner: Any, method: str) -> None:
        """Make a part of every call of a method."""
        setattr(owner, method, partial(self.run, part, getattr(owner, method)))

    def times(self, step: Callable[[], object]) -> dict[str, float]:
        """Run a step; return the milliseconds of its parts."""
        self._spent = spent = dict.fromkeys(PARTS, 0.0)
        step()
        self._spent = None
        return spent

    def _count(self) -> None:
        if self._spent is not None:
            now = _now()
            if self._open:
                self._spent[self._open[-1]] += (now - self._since) * 1e3
            self._since = now


class Rival:
    """A network that trains on one batch over and over."""

    def __init__(self, network: nn.Module, loss: Loss, clock: Clock, setting: Setting) -> None:
        self.loss, self.clock, self.setting = loss, clock, setting
        for module in network.modules():
            if isinstance(module, Bottleneck):  # else each would double the variance of its map
                module.bn3.weight.data.fill_(0.2)
        learned = (weight for weight in network.parameters() if weight.requires_grad)
        self.optimizer = torch.optim.SGD(learned, RATE, 0.9, weight_decay=1e-4, fused=True)

    def step(self) -> Tensor:
        """Train on the batch; return the loss."""
        mixed = self.setting.precision == "bf16-autocast"
        with torch.autocast(self.setting.device, torch.bfloat16, enabled=mixed):
            loss = self.loss()
        self.clock.run("backward", loss.backward)
        self.clock.run("optimizer", self.optimizer.step)
        self.clock.run("optimizer", self.optimizer.zero_grad)
        return loss.detach()


def ours(
    name: str, images: Tensor, targets: Targets, setting: Setting, *, compiled: bool = False
) -> Rival:
    """Return a detector of ours by one of the recipes; its network compiled, or not."""
    recipe, clock = load_recipe(*RECIPES[name]), Clock()
    torch.manual_seed(SEED)
    model = build_detector(recipe, CLASSES).to(setting.device).to(memory_format=torch.channels_last)
    if compiled:
        compile_network(model, heads=True)
    criterion = build_criterion(recipe).to(setting.device)
    clock.watch("forward", model, "forward")
    clock.watch("input", model.normalise, "forward")
    clock.watch("criterion", criterion, "forward")
    clock.watch("assignment", criterion, "assigner")

    def loss() -> Tensor:
        given = clock.run("input", images.to, setting.device, non_blocking=True)
        total: Tensor = criterion(model(given), targets).total
        return total

    return Rival(model, loss, clock, setting)


def theirs(images: Tensor, targets: Targets, setting: Setting) -> Rival:
    """Return torchvision's RetinaNet with focal and L1 loss."""
    torch.manual_seed(SEED)
    top = LastLevelP6P7(2048, 256)
    body = resnet_fpn_backbone(  # with frozen batch norms and three stages that learn
        backbone_name="resnet50", weights=None, returned_layers=[2, 3, 4], extra_blocks=top
    )
    sizes = {"min_size": setting.size, "max_size": setting.size, "_skip_resize": True}
    network, clock = RetinaNet(body, CLASSES, **sizes).to(setting.device).train(), Clock()
    boxes = zip(targets.boxes, targets.labels, strict=True)
    listed = [{"boxes": box, "labels": label} for box, label in boxes]
    clock.watch("forward", network, "forward")
    clock.watch("input", network.transform, "forward")
    clock.watch("assignment", network, "compute_loss")  # and within it
    clock.watch("criterion", network.head, "compute_loss")

    def loss() -> Tensor:
        given = clock.run("input", lambda: images.to(setting.device, non_blocking=True) / 255)
        return torch.stack(list(network(list(given), listed).values())).sum()

    return Rival(network, loss, clock, setting)


def rivals(setting: Setting, *, compiled: bool = False) -> dict[str, Rival]:
    """Return all three by name; one more if also compiled."""
    shape = (setting.batch, 3, setting.size, setting.size)
    torch.manual_seed(SEED)
    images = torch.randint(256, shape, dtype=torch.uint8, pin_memory=setting.device == "cuda")
    targets = objects(setting.batch, OBJECTS, setting.size).to(setting.device)
    made = {name: ours(name, images, targets, setting) for name in RECIPES}
    if compiled:
        made[COMPILED] = ours(ALRP, images, targets, setting, compiled=True)
    return {**made, TORCHVISION: theirs(images, targets, setting)}


def rows(setting: Setting, seconds: float, *, compiled: bool = False) -> Iterator[dict[str, Any]]:
    """Train all in turn, for so many seconds each, a few rounds at least; yield their rows.

    Raises:
        ValueError: a loss is not finite, so the times are not those of a training.
    """
    with _tf32(setting.tf32):
        found = rivals(setting, compiled=compiled)
        whole: dict[str, list[float]] = {name: [] for name in found}
        losses = {name: [rival.step() for _ in range(WARM_UP)][-1] for name, rival in found.items()}
        end = time.perf_counter() + seconds * len(found)
        while len(whole[ALRP]) < LEAST_ROUNDS or time.perf_counter() < end:
            for name, rival in found.items():
                begin = _now()
                losses[name] = rival.step()
                whole[name].append((_now() - begin) * 1e3)
        rounds = range(min(len(whole[ALRP]), PART_ROUNDS))
        parts = [{n: rival.clock.times(rival.step) for n, rival in found.items()} for _ in rounds]
        memory = {n: measure.peak_memory(rival.step, setting.device) for n, rival in found.items()}
        del found, rival
        gc.collect()  # what is watched refers to itself
    for name, times in whole.items():
        if not losses[name].isfinite():
            raise ValueError(f"the loss of {name} became {losses[name]:g}: nothing to time")
        row: dict[str, Any] = {"what": name, **setting._asdict(), "steps": len(times)}
        row["tf32"] = str(setting.tf32 and setting.device == "cuda").lower()
        row["step_ms"], row["low_ms"], row["high_ms"] = _quantiles(times)
        row["images_per_s"] = round(setting.batch / row["step_ms"] * 1e3, 3)
        for part in PARTS:
            row[f"{part}_ms"] = _quantiles([each[name][part] for each in parts])[0]
        row["extra_memory_mb"] = round(memory[name], 1)
        row["loss"] = f"{float(losses[name]):.5g}"
        for key, other in (("ratio_focal", FOCAL), ("ratio_alrp", ALRP)):
            # Of each round, not of the medians: the machine is equally fast within a round.
            each = [one / two for one, two in zip(times, whole[other], strict=True)]
            row[key], row[f"{key}_low"], row[f"{key}_high"] = _quantiles(each)
        yield {**row, **measure.origin(setting.device, SEED)}


def show(row: dict[str, Any]) -> str:
    """Return a row as a line for the terminal."""
    parts = " ".join(f"{part} {row[f'{part}_ms']:.1f}" for part in PARTS)
    return (
        f"{row['what']:<30}{row['precision']:<14}{row['images_per_s']:>8.2f} images/s "
        f"{row['step_ms']:>8.1f} ms{row['ratio_alrp']:>8.3f} x aLRP{row['ratio_focal']:>8.3f} x "
        f"focal ({row['ratio_focal_low']:.3f} to {row['ratio_focal_high']:.3f})  [{parts}]"
    )


def profile(setting: Setting) -> str:
    """Return torch.profiler's table of one step with aLRP."""
    by = "self_device_time_total" if setting.device == "cuda" else "self_cpu_time_total"
    with _tf32(setting.tf32):
        rival = rivals(setting)[ALRP]
        for _ in range(WARM_UP + 1):
            rival.step()
        with torch.profiler.profile() as watched:
            rival.step()
            _now()
    table = watched.key_averages().table(sort_by=by, row_limit=50, max_name_column_width=70)
    return f"One step, {ALRP}, {setting}\n{table}\n"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.detector_step",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", choices=list(BATCH), help="default: a GPU if there is one")
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS["cuda"])
    parser.add_argument("--batch", type=int, help="images of a step; default: 16, on a CPU 2")
    parser.add_argument("--size", type=int, default=512, help="of the images; a multiple of 32")
    parser.add_argument("--seconds", type=float, default=20.0, help="for each of them")
    parser.add_argument("--compile", action="store_true", help="aLRP by torch.compile as well")
    parser.add_argument("--tf32", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--profile", type=Path, metavar="FILE", help="of a step with aLRP")
    parser.add_argument("--out", type=Path, default=results.RESULTS, help="folder for the rows")
    given = parser.parse_args(arguments)
    device = given.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        print("--device cuda: PyTorch sees no CUDA device here.", file=sys.stderr)
        return 2
    settings = [
        Setting(device, precision, given.batch or BATCH[device], given.size, given.tf32)
        for precision in given.precision or PRECISIONS[device]
    ]
    for setting in settings:
        for row in rows(setting, given.seconds, compiled=given.compile):
            results.append(given.out / f"train-{device}.csv", [row])
            print(show(row), flush=True)
    if given.profile is not None:
        given.profile.write_text("\n".join(profile(setting) for setting in settings))
    return 0


@contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    """Let TF32 stand for float32 or not, for all alike; put it back afterwards."""
    backends: Any = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [each.allow_tf32 for each in backends]
    try:
        for each in backends:
            each.allow_tf32 = allowed
        yield
    finally:
        for each, was in zip(backends, before, strict=True):
            each.allow_tf32 = was


def _quantiles(values: list[float]) -> list[float]:
    """Return the median, the 20 % and the 80 % quantile."""
    found = torch.tensor(values).quantile(torch.tensor([0.5, 0.2, 0.8])).tolist()
    return [round(each, 4) for each in found]


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    sys.exit(main())
