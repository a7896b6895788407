"""Batches whose content depends on (seed, epoch) alone: a run can stop and go on anywhere."""

import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cvt.data.image import BadImage
from cvt.data.image_set import ImageSet
from cvt.data.seeding import generators_kept, seed_all
from cvt.data.transforms import Transform
from cvt.errors import UserError


@dataclass(frozen=True)
class Batch:
    """The good pictures of a batch, B of them, and a sentence about each bad one.

    Args:
        images: float32, shape (B, C, H, W); B is 0 if every picture is bad.
        labels: int64, shape (B,).
        indices: Position of each picture in the image set, int64, shape (B,).
        bad: One sentence for each picture that was skipped.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor
    bad: tuple[str, ...] = ()

    def pin_memory(self) -> "Batch":
        """Returns a copy in page-locked memory; the DataLoader calls this."""
        pinned = (each.pin_memory() for each in (self.images, self.labels, self.indices))
        return Batch(*pinned, self.bad)


def make_loader(
    image_set: ImageSet,
    transform: Transform,
    *,
    batch_size: int,
    shuffle: bool,
    seed: int = 0,
    epoch: int = 0,
    start_batch: int = 0,
    num_workers: int = 0,
    drop_last: bool = False,
) -> DataLoader:
    """Returns a loader over one epoch that yields a `Batch` at a time.

    The order depends on (seed, epoch) alone, and what a random transform does to a picture on
    (seed, epoch, index) alone: neither the number of workers, nor where the epoch starts, nor a
    bad picture changes any other. The global generators are left as they were.

    Args:
        start_batch: Batches to leave out at the start of the epoch; they are not loaded.
        num_workers: Processes that load; 0 loads in this one.
        drop_last: Leave out a last batch that is not full.

    Raises:
        UserError: A number is out of range, or there are too few pictures for one batch.
    """
    numbers = {"seed": seed, "epoch": epoch, "start_batch": start_batch, "num_workers": num_workers}
    for name, value in numbers.items():
        if value < 0:
            raise UserError(f"Got {name} {value}, expected 0 or more.")
    if batch_size < 1:
        raise UserError(f"Got batch_size {batch_size}, expected 1 or more.")
    samples = _Samples(image_set, transform, seed, epoch)
    order = _order(len(image_set), shuffle, seed, epoch)
    batches = _batches(order, batch_size, drop_last)
    if not batches:
        raise UserError(
            f"Got {len(image_set)} images and batch_size {batch_size}, expected at least one full "
            "batch; make the batch smaller."
        )
    return DataLoader(
        samples,
        batch_sampler=batches[start_batch:],
        collate_fn=samples.collate,
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_prepare_worker,
        # The loader draws a number when iteration begins: not from the global generator.
        generator=torch.Generator(),
    )


def _order(count: int, shuffle: bool, seed: int, epoch: int) -> list[int]:
    if not shuffle:
        return list(range(count))
    return np.random.default_rng((seed, epoch)).permutation(count).tolist()


def _batches(order: list[int], batch_size: int, drop_last: bool) -> list[list[int]]:
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    return batches[:-1] if drop_last and len(order) % batch_size else batches


def _prepare_worker(worker: int) -> None:
    """Ctrl-C reaches every process of the terminal; the main one ends its workers itself.

    If it stops while a batch is being handed over, the worker's end of the pipe breaks: nothing
    that the user should read about. Errors in loading travel another way and are still reported.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.excepthook = _report_all_but_broken_pipes


def _report_all_but_broken_pipes(kind: Any, error: BaseException, trace: Any) -> None:
    if not isinstance(error, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, trace)


@dataclass(frozen=True)
class _Samples(Dataset):
    image_set: ImageSet
    transform: Transform
    seed: int
    epoch: int

    def __getitem__(self, index: int) -> tuple[int, Tensor | str]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[int, Tensor | str]]:
        with generators_kept():
            return [(index, self._load(index)) for index in indices]

    def _load(self, index: int) -> Tensor | str:
        try:
            image = self.image_set.image(index)
        except BadImage as error:
            return str(error)
        seed_all(self.seed, self.epoch, index)
        return self.transform(image)

    def collate(self, samples: Sequence[tuple[int, Tensor | str]]) -> Batch:
        good = [(index, image) for index, image in samples if isinstance(image, Tensor)]
        indices = [index for index, _ in good]
        images = torch.stack([image for _, image in good]) if good else self._no_images()
        return Batch(
            images,
            torch.as_tensor(self.image_set.labels[indices]),
            torch.tensor(indices, dtype=torch.int64),
            tuple(image for _, image in samples if isinstance(image, str)),
        )

    def _no_images(self) -> Tensor:
        """Returns shape (0, C, H, W); only the transform knows what C, H and W are."""
        with generators_kept():
            return self.transform(Image.new("RGB", (8, 8)))[None][:0]
