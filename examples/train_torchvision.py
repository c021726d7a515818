"""Train a detector of torchvision with a ranking loss.

The loop is that of torchvision's own reference for detection (`references/detection`): SGD with a
linear warm-up over the first epoch, the losses of the model added up, a check that they are
finite. What differs is marked with "rankdet". The data are drawn as they are needed: bright
rectangles of two kinds on noise. Put your own data set in the place of `Rectangles`; its items are
what torchvision wants, an image in [0, 1] and a dictionary of "boxes" and "labels".

    python examples/train_torchvision.py --model fcos_resnet50_fpn --loss alrp --epochs 2
"""

from __future__ import annotations

import argparse
import math
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.models import detection

from rankdet.integrations.torchvision import end_epoch, ranking_loss_of, use_ranking_loss

Item = tuple[Tensor, dict[str, Tensor]]
MODELS = ("retinanet_resnet50_fpn", "fcos_resnet50_fpn", "fasterrcnn_resnet50_fpn")


class Rectangles(Dataset[Item]):
    """Images with one to three bright rectangles, wide ones of class 1 and high ones of class 2.

    Class 0 is the background of Faster R-CNN; RetinaNet and FCOS just never see it.
    """

    def __init__(self, count: int, size: int) -> None:
        self.count, self.size = count, size

    def __len__(self) -> int:
        """Return the number of images."""
        return self.count

    def __getitem__(self, index: int) -> Item:
        """Return an image and what is on it, the same each time."""
        random = torch.Generator().manual_seed(index)
        image = torch.rand(3, self.size, self.size, generator=random) / 3
        boxes, labels = [], []
        for _ in range(int(torch.randint(1, 4, (), generator=random))):
            long, short = self.size // 3, self.size // 6
            label = int(torch.randint(1, 3, (), generator=random))
            width, height = (long, short) if label == 1 else (short, long)
            x, y = torch.randint(0, self.size - long, (2,), generator=random).tolist()
            image[:, y : y + height, x : x + width] += 0.6
            boxes.append([x, y, x + width, y + height])
            labels.append(label)
        return image, {
            "boxes": torch.tensor(boxes, dtype=torch.float32),
            "labels": torch.tensor(labels),
        }


def collate(items: list[Item]) -> tuple[tuple[Any, ...], ...]:
    """Return images and targets apart, as torchvision's reference does."""
    return tuple(zip(*items, strict=True))


def train_one_epoch(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    loader: DataLoader[Item],
    device: torch.device,
    epoch: int,
) -> float:
    """Train for one epoch; return the mean loss."""
    model.train()
    warmup = None
    if epoch == 0:
        steps = max(1, min(1000, len(loader) - 1))
        warmup = torch.optim.lr_scheduler.LinearLR(
            optimizer, start_factor=1 / 1000, total_iters=steps
        )
    total = 0.0
    for images, targets in loader:
        images = [image.to(device) for image in images]
        targets = [{k: v.to(device) for k, v in t.items()} for t in targets]
        losses = torch.stack(list(model(images, targets).values())).sum()
        if not math.isfinite(losses.item()):
            raise SystemExit(f"the loss is {losses.item()}")
        optimizer.zero_grad()
        losses.backward()
        optimizer.step()
        if warmup is not None:
            warmup.step()
        total += losses.item()
    end_epoch(model)  # rankdet: the balance of localisation and classification
    return total / len(loader)


def main(arguments: list[str] | None = None) -> None:
    """Train, save and load."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", choices=MODELS, default=MODELS[0])
    parser.add_argument("--loss", choices=("alrp", "ap", "rank_sort"), default="alrp")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--size", type=int, default=128, help="sides of the images, in pixels")
    parser.add_argument("--batch", type=int, default=4, help="images of one ranking")
    parser.add_argument("--lr", type=float, default=0.002)
    parser.add_argument("--out", default="checkpoint.pt")
    options = parser.parse_args(arguments)

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    make = getattr(detection, options.model)
    settings = {"num_classes": 3, "min_size": options.size, "max_size": options.size}
    model = make(weights=None, weights_backbone=None, **settings).to(device)
    use_ranking_loss(model, options.loss)  # rankdet: all that is needed

    loader = DataLoader(
        Rectangles(options.images, options.size),
        batch_size=options.batch,
        shuffle=True,
        collate_fn=collate,
    )
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=options.lr, momentum=0.9, weight_decay=1e-4)
    for epoch in range(options.epochs):
        mean = train_one_epoch(model, optimizer, loader, device, epoch)
        print(f"epoch {epoch}: mean loss {mean:.3f}")

    # rankdet: the state of the balance beside that of the model, to train on from here.
    state = {"model": model.state_dict(), "loss": ranking_loss_of(model).state_dict()}
    torch.save(state, options.out)

    # The weights go into a plain model. It must not throw low scores away.
    threshold = "box_score_thresh" if "fasterrcnn" in options.model else "score_thresh"
    settings[threshold] = 0.0
    plain = make(weights=None, weights_backbone=None, **settings).to(device).eval()
    plain.load_state_dict(torch.load(options.out, map_location=device)["model"])
    with torch.no_grad():
        (found,) = plain([Rectangles(1, options.size)[0][0].to(device)])
    print(f"best of {len(found['scores'])} detections: class {found['labels'][0].item()}")


if __name__ == "__main__":
    main()
