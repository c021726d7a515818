"""Train a model of the DETR family with a ranking loss and the Trainer of transformers.

The model is a small RT-DETR with random weights, and the data are bright rectangles on noise,
drawn as they are needed, so that the example runs as it is. For real use, take a model by
`AutoModelForObjectDetection.from_pretrained` and your own data set; an item has "pixel_values",
an image [3, H, W], and "labels", with "class_labels" and "boxes" (centre, width and height, in
shares of the image's sides), just as the library's image processors give them.

    pip install "./rankdet[transformers]"
    python examples/train_transformers.py --loss rank_sort --steps 100
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import (
    RTDetrConfig,
    RTDetrForObjectDetection,
    RTDetrResNetConfig,
    Trainer,
    TrainingArguments,
)

from rankdet.integrations.transformers import use_ranking_loss

SIZE = 64


class Rectangles(Dataset[dict[str, Any]]):
    """Images with one bright rectangle each, a wide one of class 0 or a high one of class 1."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        """Return the number of images."""
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return an image and what is on it, the same each time."""
        random = torch.Generator().manual_seed(index)
        image = torch.rand(3, SIZE, SIZE, generator=random) / 3
        label = int(torch.randint(0, 2, (), generator=random))
        width, height = (28, 14) if label == 0 else (14, 28)
        x, y = torch.randint(0, SIZE - 28, (2,), generator=random).tolist()
        image[:, y : y + height, x : x + width] += 0.6
        box = torch.tensor([[x + width / 2, y + height / 2, width, height]]) / SIZE
        return {
            "pixel_values": image,
            "labels": {"class_labels": torch.tensor([label]), "boxes": box},
        }


def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a batch: the labels of each image stay apart."""
    return {
        "pixel_values": torch.stack([item["pixel_values"] for item in items]),
        "labels": [item["labels"] for item in items],
    }


def small_rt_detr() -> RTDetrForObjectDetection:
    """Return an RT-DETR of two classes and few channels, with random weights."""
    backbone = RTDetrResNetConfig(
        embedding_size=16,
        hidden_sizes=[16, 32, 32, 32],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )
    config = RTDetrConfig(
        backbone_config=backbone,
        encoder_hidden_dim=32,
        encoder_in_channels=[32, 32, 32],
        encoder_ffn_dim=64,
        decoder_in_channels=[32, 32, 32],
        decoder_ffn_dim=64,
        decoder_layers=2,
        d_model=32,
        num_queries=20,
        num_denoising=10,
        num_labels=2,
    )
    return RTDetrForObjectDetection(config)


def main(arguments: list[str] | None = None) -> float:
    """Train; return the mean loss."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--loss", choices=("alrp", "ap", "rank_sort"), default="alrp")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch", type=int, default=8, help="images of one ranking")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--out", default="rt-detr-ranked")
    options = parser.parse_args(arguments)

    torch.manual_seed(0)
    model = small_rt_detr()
    use_ranking_loss(model, options.loss)  # rankdet: all that is needed

    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=options.out,
            max_steps=options.steps,
            per_device_train_batch_size=options.batch,
            learning_rate=options.lr,
            dataloader_pin_memory=torch.cuda.is_available(),
            remove_unused_columns=False,  # the collator needs them all
            logging_steps=max(1, options.steps // 5),
            save_strategy="no",
            report_to="none",
        ),
        train_dataset=Rectangles(256),
        data_collator=collate,
    )
    loss: float = trainer.train().training_loss
    model.save_pretrained(options.out)  # a model of transformers like any other

    plain = RTDetrForObjectDetection.from_pretrained(options.out).eval()
    with torch.no_grad():
        found = plain(pixel_values=Rectangles(1)[0]["pixel_values"][None])
    # By rank: the scores of a ranking loss are small, and only their order has a meaning.
    best = int(found.logits[0].amax(1).argmax())
    print(f"best query: class {int(found.logits[0, best].argmax())}, box "
          f"{[round(x, 2) for x in found.pred_boxes[0, best].tolist()]}")  # fmt: skip
    return loss


if __name__ == "__main__":
    main()
