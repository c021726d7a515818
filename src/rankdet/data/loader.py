"""From records on the disk to batches for the network, in this process or in others.

A training sample depends on the seed of the run, the epoch and the image, and on nothing else: not
on the process that makes it, nor on what was made before. So runs can be resumed and repeated.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from rankdet.data.batches import Sample, TestSample, collate, collate_test
from rankdet.data.errors import DataError
from rankdet.data.images import read_image_as
from rankdet.data.imageset import ImageSet, Record
from rankdet.data.sampling import Key, StepSampler, mix
from rankdet.data.transforms import TestResize, Transform


class TrainingSet(Dataset[Sample]):
    """The augmented images of a set, addressed by epoch and index.

    Decoded images are kept in memory as long as they fit. A process that only loads data keeps
    none of its own: it shares what `preload` read before it was started.

    Args:
        image_set: records to read.
        augment: what is done to each image; its random choices come from torch's generator.
        seed: of the run.
        cache_bytes: memory for decoded images, 0 or more.
    """

    def __init__(
        self, image_set: ImageSet, augment: Transform, *, seed: int, cache_bytes: int = 1 << 30
    ) -> None:
        if cache_bytes < 0:
            raise ValueError(f"cache_bytes must be 0 or more, got {cache_bytes}")
        self.image_set = image_set
        self.augment = augment
        self.seed = seed
        self.cache_bytes = cache_bytes
        self._cache: dict[int, Tensor] = {}
        self._cached = 0

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.image_set)

    def __getitem__(self, key: Key) -> Sample:
        """Return the sample of an epoch (0 or more) and an index (0 .. len - 1).

        Raises:
            IndexError: there is no such image.
            DataError: the image cannot be read.
        """
        epoch, index = key
        if not 0 <= index < len(self):
            raise IndexError(f"index must be in 0 .. {len(self) - 1}, got {index}")
        record = self.image_set.records[index]
        image = self._cache.get(index)
        if image is None:
            image = _read(record)
            if get_worker_info() is None:
                self._keep(index, image)
        boxes = torch.tensor(record.boxes, dtype=torch.float32).reshape(-1, 4)
        labels = torch.tensor(record.labels, dtype=torch.int64)
        crowd = torch.tensor(record.crowd, dtype=torch.bool)
        with _reproducible(mix(self.seed, epoch, index)):
            return Sample(self.augment(image, boxes, labels, crowd), record.id)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the decoded images behind; they would be copied to every process."""
        return {**self.__dict__, "_cache": {}, "_cached": 0}

    def preload(self) -> bool:
        """Decode all images now, if together they fit into the memory for them.

        Returns:
            Whether they did.

        Raises:
            DataError: an image cannot be read.
        """
        records = self.image_set.records
        if sum(record.width * record.height * 3 for record in records) > self.cache_bytes:
            return False
        missing = [index for index in range(len(records)) if index not in self._cache]
        with ThreadPoolExecutor(_available_cpus()) as pool:
            images = pool.map(lambda index: _read(records[index]), missing)
            for index, image in zip(missing, images, strict=True):
                self._keep(index, image)
        return True

    def _keep(self, index: int, image: Tensor) -> None:
        if self._cached + image.numel() <= self.cache_bytes:
            self._cache[index] = image
            self._cached += image.numel()


class TestSet(Dataset[TestSample]):
    """The images of a set, resized, in their order.

    Args:
        image_set: records to read; their boxes are not used.
        resize: what is done to each image.
    """

    __test__ = False

    def __init__(self, image_set: ImageSet, resize: TestResize) -> None:
        self.image_set = image_set
        self.resize = resize

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.image_set)

    def __getitem__(self, index: int) -> TestSample:
        """Return an image by its index.

        Raises:
            DataError: the image cannot be read.
        """
        record = self.image_set.records[index]
        with _one_thread():
            image, scale = self.resize(_read(record))
        return TestSample(image, record.id, scale, (record.height, record.width))


class Loader(DataLoader[Any]):
    """A data loader whose faults are told as `DataError`, without the traces of its processes."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override] # torch: a private class
        """Yield the batches.

        Raises:
            DataError: an image cannot be read, or a process that reads them died.
        """
        batches = super().__iter__()
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except RuntimeError as fault:
                explained = explain_worker_death(fault)
                if explained is None:
                    raise
                raise explained from fault
            if isinstance(batch, DataError):
                raise batch
            yield batch


def training_loader(
    training_set: TrainingSet,
    sampler: StepSampler,
    *,
    workers: int,
    divisor: int = 32,
    pin_memory: bool = False,
) -> Loader:
    """Return the batches of a run, one for each step that the sampler has left.

    With workers, the images are decoded first of all, if they fit into the training set's memory.

    Args:
        training_set: the samples.
        sampler: which of them each step has.
        workers: processes that make samples; 0 makes them in this one. More than the machine has
            cores for are not started.
        divisor: height and width of a batch become multiples of this.
        pin_memory: page-locked memory, for faster copies to a GPU.

    Returns:
        A loader of `Batch`.

    Raises:
        ValueError: the sampler is for another number of images, or workers is negative.
        DataError: an image cannot be read.
    """
    if sampler.length != len(training_set):
        raise ValueError(
            f"the sampler is for {sampler.length} images, the training set has {len(training_set)}"
        )
    if workers > 0:
        training_set.preload()
    return _loader(training_set, partial(collate, divisor=divisor), workers, pin_memory,
                   batch_sampler=sampler)  # fmt: skip


def test_loader(
    image_set: ImageSet,
    resize: TestResize,
    *,
    batch: int,
    workers: int,
    divisor: int = 32,  # noqa: PT028 - no test, for all its name
    pin_memory: bool = False,  # noqa: PT028 - the same
) -> Loader:
    """Return the images of a set in their order, each once.

    Args:
        image_set: records to read.
        resize: what is done to each image.
        batch: images of a batch, at least 1; the last one may be smaller.
        workers: as for `training_loader`.
        divisor: height and width of a batch become multiples of this.
        pin_memory: page-locked memory, for faster copies to a GPU.

    Returns:
        A loader of `TestBatch`.

    Raises:
        ValueError: batch is below 1, or workers is negative.
    """
    if batch < 1:
        raise ValueError(f"batch must be at least 1, got {batch}")
    return _loader(TestSet(image_set, resize), partial(collate_test, divisor=divisor), workers,
                   pin_memory, batch_size=batch)  # fmt: skip


def explain_worker_death(fault: BaseException) -> DataError | None:
    """Say in a user's words that a process of a data loader died.

    torch notices it at any time, also between two batches, and raises where the main program is
    just then: whoever runs a training asks here about a `RuntimeError` from anywhere.

    Args:
        fault: any error.

    Returns:
        What to tell, or None if the error is about something else.
    """
    text = str(fault)
    if not isinstance(fault, RuntimeError) or not text.startswith("DataLoader worker"):
        return None
    return DataError(
        f"a process that loads images died ({text.splitlines()[0]}). Most often memory ran out, or"
        " shared memory (/dev/shm; in a container: --shm-size): use fewer workers, a smaller batch"
        " or smaller images. With 0 workers images are loaded in the main process, which tells"
        " other causes"
    )


class _Guarded(Dataset[Any]):
    """A set that returns a `DataError` rather than raise it.

    Raised in another process, an error arrives as a text with that process's trace.
    """

    def __init__(self, source: Dataset[Any]) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)  # type: ignore[arg-type] # ours all have one

    def __getitem__(self, key: Any) -> Any:
        try:
            return self.source[key]
        except DataError as fault:
            return fault


def _collate_guarded(samples: Sequence[Any], *, collate: Callable[[Sequence[Any]], Any]) -> Any:
    return next((s for s in samples if isinstance(s, DataError)), None) or collate(samples)


def _loader(
    source: Dataset[Any],
    collate: Callable[[Sequence[Any]], Any],
    workers: int,
    pin_memory: bool,
    **sampling: Any,
) -> Loader:
    if workers < 0:
        raise ValueError(f"workers must be 0 or more, got {workers}")
    workers = min(workers, _available_cpus())
    # Forked processes share the decoded images; elsewhere forking is not safe. They end with the
    # iteration: those kept for the next one would be killed at exit and leave sockets in /tmp.
    context = "fork" if workers and sys.platform == "linux" else None
    return Loader(
        _Guarded(source),
        collate_fn=partial(_collate_guarded, collate=collate),
        num_workers=workers,
        pin_memory=pin_memory,
        worker_init_fn=_start_worker if workers else None,
        multiprocessing_context=context,
        # Its own: a loader draws a number at each start, which would change the main program's.
        generator=torch.Generator(),
        **sampling,
    )


def _start_worker(_: int) -> None:
    torch.set_num_threads(1)
    # Ctrl-C reaches every process of a terminal; only the main one knows what to do then.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _read(record: Record) -> Tensor:
    """Return the image of a record: [3, H, W] uint8, a view of rows of RGB pixels."""
    image = read_image_as(record.path, record.width, record.height)
    return torch.from_numpy(np.array(image, order="C", copy=None)).permute(2, 0, 1)


@contextmanager
def _reproducible(seed: int) -> Iterator[None]:
    """Seed torch's generator of the CPU for a while, and compute in one thread.

    Means over an image are added up in another order by several threads.
    """
    state = torch.default_generator.get_state()
    torch.default_generator.manual_seed(seed)
    try:
        with _one_thread():
            yield
    finally:
        torch.default_generator.set_state(state)


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    if threads != 1:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if threads != 1:
            torch.set_num_threads(threads)


def _available_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
