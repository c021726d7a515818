"""Loading: the same samples wherever they are made, batches as described, faults told."""

from __future__ import annotations

import multiprocessing
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from rankdet.data import loader as loading
from rankdet.data.batches import Batch, Sample, TestBatch, collate
from rankdet.data.errors import DataError
from rankdet.data.images import read_image_as
from rankdet.data.imageset import ImageSet, Record
from rankdet.data.loader import TestSet, TrainingSet, explain_worker_death
from rankdet.data.sampling import StepSampler
from rankdet.data.transforms import (
    MEAN_COLOUR,
    Example,
    LightAugment,
    PlainResize,
    SSDAugment,
    TestResize,
)

SIZES = [(40, 60), (64, 64), (70, 30), (33, 47), (50, 50), (64, 20)]  # width and height


@pytest.fixture(autouse=True)
def _enough_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    # Two processes, whatever the machine has; torch itself would warn on a single core.
    monkeypatch.setattr(loading, "_available_cpus", lambda: 2)
    if len(os.sched_getaffinity(0)) < 2:
        warnings.filterwarnings("ignore", message="This DataLoader will create")


@pytest.fixture
def images(tmp_path: Path) -> ImageSet:
    rng = np.random.default_rng(0)
    records = []
    for index, (width, height) in enumerate(SIZES):
        path = tmp_path / f"{index}.png"
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
        count = index % 4
        boxes = np.array([[2, 3, 20, 15], [5, 1, 12, 14], [0, 0, 20, 18]], np.float32)[:count]
        records.append(
            Record(
                path=path,
                id=100 + index,
                width=width,
                height=height,
                boxes=boxes,
                labels=np.arange(count, dtype=np.int64),
                crowd=np.arange(count) == 2,
                areas=(boxes[:, 2] * boxes[:, 3]).astype(np.float64),
            )
        )
    return ImageSet("train", tmp_path, tuple(records), ("a", "b", "c"), (1, 2, 3))


def same(first: Batch, second: Batch) -> bool:
    return first.ids == second.ids and all(
        torch.equal(a, b)
        for a, b in (
            (first.images, second.images),
            (first.targets.boxes, second.targets.boxes),
            (first.targets.labels, second.targets.labels),
            (first.targets.crowd, second.targets.crowd),
            (first.targets.sizes, second.targets.sizes),
        )
    )


@pytest.mark.parametrize("augment", [LightAugment(48), SSDAugment(48)])
def test_batches_are_the_same_in_any_number_of_processes(
    images: ImageSet, augment: LightAugment | SSDAugment
) -> None:
    sampler = StepSampler(len(images), 2, steps=7, seed=1)
    torch.manual_seed(123)
    state = torch.get_rng_state()
    results = []
    for workers, cache in ((0, 1 << 20), (1, 1 << 20), (2, 0), (0, 10_000)):
        training = TrainingSet(images, augment, seed=1, cache_bytes=cache)
        results.append(list(loading.training_loader(training, sampler, workers=workers)))
    assert [len(batches) for batches in results] == [7] * 4
    for batches in results[1:]:
        assert all(same(a, b) for a, b in zip(results[0], batches, strict=True))
    # The main program's own random numbers are left alone.
    assert torch.equal(torch.get_rng_state(), state)
    threads = torch.get_num_threads()
    rest = StepSampler(len(images), 2, steps=7, seed=1, start_step=4)
    resumed = list(loading.training_loader(training, rest, workers=0))
    assert all(same(a, b) for a, b in zip(results[0][4:], resumed, strict=True))
    assert torch.get_num_threads() == threads


def test_samples_depend_on_seed_epoch_and_image_alone(images: ImageSet) -> None:
    first = TrainingSet(images, LightAugment(48), seed=1)
    wanted = first[3, 1].example
    for key in ((0, 0), (0, 1), (3, 2), (3, 1)):
        torch.rand(3)
        again = first[key].example
    assert torch.equal(wanted.image, again.image)
    assert torch.equal(wanted.boxes, again.boxes)
    # No sample changes the decoded image that is kept.
    assert torch.equal(wanted.image, TrainingSet(images, LightAugment(48), seed=1)[3, 1][0].image)
    others = [first[2, 1], TrainingSet(images, LightAugment(48), seed=2)[3, 1]]
    assert not any(torch.equal(wanted.image, other.example.image) for other in others)


def test_images_are_decoded_once_as_long_as_they_fit(
    images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    decode = read_image_as

    def counted(path: Path, width: int, height: int) -> Any:
        read.append(path.name)
        return decode(path, width, height)

    monkeypatch.setattr(loading, "read_image_as", counted)
    training = TrainingSet(images, PlainResize(32), seed=0)
    for epoch in range(3):
        for index in range(len(images)):
            training[epoch, index]
    assert len(read) == len(images)

    read.clear()
    first = SIZES[0][0] * SIZES[0][1] * 3
    small = TrainingSet(images, PlainResize(32), seed=0, cache_bytes=first)
    assert not small.preload()
    for _ in range(2):
        small[0, 0], small[0, 1]
    assert read == ["0.png", "1.png", "1.png"]

    read.clear()
    assert training.preload()
    assert read == []
    whole = TrainingSet(images, PlainResize(32), seed=0)
    assert whole.preload()
    assert sorted(read) == [record.path.name for record in images.records]
    assert whole.__getstate__()["_cache"] == {}


def test_an_epoch_has_each_image_once(images: ImageSet) -> None:
    training = TrainingSet(images, PlainResize(32), seed=0)
    sampler = StepSampler(len(images), 4, steps=3, seed=0)
    ids = [i for batch in loading.training_loader(training, sampler, workers=0) for i in batch.ids]
    assert sorted(ids[:6]) == sorted(ids[6:]) == [record.id for record in images.records]


def test_collate_pads_with_the_mean_and_counts_objects() -> None:
    def sample(number: int, height: int, width: int, objects: int) -> Sample:
        boxes = torch.tensor([[0.0, 0.0, 2.0, 3.0]]).repeat(objects, 1)
        image = torch.full((3, height, width), number, dtype=torch.uint8)
        labels = torch.arange(objects)
        return Sample(Example(image, boxes, labels, labels == 1, (height, width)), number)

    batch = collate([sample(7, 20, 35, 2), sample(9, 33, 10, 0)], divisor=16)
    assert batch.images.shape == (2, 3, 48, 48)
    assert batch.ids == (7, 9)
    assert batch.targets.sizes.tolist() == [[20, 35], [33, 10]]
    assert batch.targets.labels.tolist() == [[0, 1], [-1, -1]]
    assert batch.targets.crowd.tolist() == [[False, True], [False, False]]
    mean = torch.tensor(MEAN_COLOUR)[:, None, None]
    for place, (number, height, width) in zip(
        batch.images, ((7, 20, 35), (9, 33, 10)), strict=True
    ):
        assert (place[:, :height, :width] == number).all()
        assert (place[:, height:] == mean).all()
        assert (place[:, :, width:] == mean).all()
    none = collate([sample(1, 32, 32, 0)])
    assert none.targets.boxes.shape == (1, 0, 4)
    assert none.to("cpu").images.shape == (1, 3, 32, 32)
    with pytest.raises(ValueError, match="divisor"):
        collate([sample(1, 32, 32, 0)], divisor=0)


@pytest.mark.parametrize("workers", [0, 1])
def test_test_batches_lead_back_to_the_originals(images: ImageSet, workers: int) -> None:
    resize = TestResize(24, 40)
    batches: list[TestBatch] = list(
        loading.test_loader(images, resize, batch=4, workers=workers, divisor=8)
    )
    assert [len(batch.ids) for batch in batches] == [4, 2]
    singles = [TestSet(images, resize)[index] for index in range(len(images))]
    place = 0
    for batch in batches:
        assert batch.images.shape[-1] % 8 == batch.images.shape[-2] % 8 == 0
        for row in range(len(batch.ids)):
            single, (width, height) = singles[place], SIZES[place]
            tall, wide = batch.sizes[row].tolist()
            assert batch.ids[row] == single.id == 100 + place
            assert torch.equal(batch.images[row, :, :tall, :wide], single.image)
            assert batch.originals[row].tolist() == [height, width]
            assert batch.scales[row].tolist() == [wide / width, tall / height]
            place += 1
    moved = batches[0].to("cpu")
    assert torch.equal(moved.images, batches[0].images)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_told_by_name(images: ImageSet, workers: int) -> None:
    images.records[4].path.write_bytes(images.records[4].path.read_bytes()[:60])
    sampler = StepSampler(len(images), 3, steps=2, seed=0)
    training = TrainingSet(images, PlainResize(32), seed=0, cache_bytes=0)
    with pytest.raises(DataError, match=r"4\.png") as fault:
        list(loading.training_loader(training, sampler, workers=workers))
    assert "Traceback" not in str(fault.value)
    with pytest.raises(DataError, match=r"4\.png"):
        list(loading.test_loader(images, TestResize(8, 8), batch=2, workers=workers))
    # With memory for the images it is told before the first batch.
    if workers:
        with pytest.raises(DataError, match=r"4\.png"):
            loading.training_loader(
                TrainingSet(images, PlainResize(32), seed=0), sampler, workers=workers
            )


def test_a_dead_worker_is_told(images: ImageSet) -> None:
    def die(image: Tensor, boxes: Tensor, labels: Tensor, crowd: Tensor) -> Example:
        os._exit(3)

    sampler = StepSampler(len(images), 2, steps=3, seed=0)
    batches: Iterator[Batch] = iter(
        loading.training_loader(TrainingSet(images, die, seed=0), sampler, workers=1)
    )
    with pytest.raises(DataError, match=r"a process that loads images died.*fewer workers"):
        next(batches)


@pytest.mark.parametrize("through", [True, False])
def test_workers_end_with_the_iteration(images: ImageSet, through: bool) -> None:
    # What multiprocessing makes in /tmp for a process stays there if it is killed at exit.
    training = TrainingSet(images, PlainResize(32), seed=0)
    sampler = StepSampler(len(images), 2, steps=8, seed=0)
    loader = loading.training_loader(training, sampler, workers=2)
    others = set(multiprocessing.active_children())  # of other tests, whose faults hold them
    batches = iter(loader)
    next(batches)
    assert len(set(multiprocessing.active_children()) - others) == 2
    if through:
        list(batches)
    else:
        batches.close()  # type: ignore[attr-defined] # a generator
    assert set(multiprocessing.active_children()) <= others


def test_only_dead_workers_are_explained() -> None:
    assert explain_worker_death(RuntimeError("CUDA out of memory")) is None
    assert explain_worker_death(ValueError("DataLoader worker")) is None
    killed = RuntimeError("DataLoader worker (pid 12) is killed by signal: Bus error. It is ...")
    explained = explain_worker_death(killed)
    assert explained is not None
    assert "Bus error" in str(explained)
    assert "--shm-size" in str(explained)


def test_errors_of_a_program_are_not_hidden(images: ImageSet) -> None:
    def fail(image: Tensor, boxes: Tensor, labels: Tensor, crowd: Tensor) -> Example:
        raise RuntimeError("a bug")

    sampler = StepSampler(len(images), 2, steps=1, seed=0)
    with pytest.raises(RuntimeError, match="a bug"):
        list(loading.training_loader(TrainingSet(images, fail, seed=0), sampler, workers=0))


def test_more_workers_than_cores_are_not_started(images: ImageSet) -> None:
    sampler = StepSampler(len(images), 2, steps=1, seed=0)
    training = TrainingSet(images, PlainResize(32), seed=0)
    assert loading.training_loader(training, sampler, workers=64).num_workers == 2


def test_misuse_is_refused_by_name(images: ImageSet) -> None:
    training = TrainingSet(images, PlainResize(32), seed=0)
    for index in (-1, 6):
        with pytest.raises(IndexError, match="index"):
            training[0, index]
    with pytest.raises(ValueError, match="7 images"):
        loading.training_loader(training, StepSampler(7, 1, steps=1, seed=0), workers=0)
    with pytest.raises(ValueError, match="workers"):
        loading.training_loader(training, StepSampler(6, 1, steps=1, seed=0), workers=-1)
    with pytest.raises(ValueError, match="batch"):
        loading.test_loader(images, TestResize(8, 8), batch=0, workers=0)
    with pytest.raises(ValueError, match="cache_bytes"):
        TrainingSet(images, PlainResize(32), seed=0, cache_bytes=-1)
