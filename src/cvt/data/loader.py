"""Batches whose content depends on (seed, epoch) alone: a run can stop and go on anywhere."""

import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cvt.data.image import BadImage
from cvt.data.image_set import ImageSet
from cvt.data.order import chunks_of_rank, epoch_order, share_of_rank, split_into_batches
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
    repeats: int = 1,
    rank: int = 0,
    world_size: int = 1,
    accum_steps: int = 1,
) -> DataLoader:
    """Returns a loader over one epoch that yields a `Batch` at a time.

    The order depends on (seed, epoch, repeats) alone, and what a random transform does to a
    picture on (seed, epoch, index, repeat) alone: neither the number of workers, nor where the
    epoch starts, nor a bad picture changes any other. The global generators are left as they were.

    Args:
        batch_size: Pictures per batch of all processes together.
        start_batch: Batches to leave out at the start of the epoch; they are not loaded.
        num_workers: Processes that load; 0 loads in this one.
        drop_last: Leave out a last batch that is not full.
        repeats: Varied copies of a picture in a batch (`cvt.data.order.epoch_order`).
        rank: Which of `world_size` processes this is.
        world_size: Processes that share every batch.
        accum_steps: Parts that this process's share of a batch is yielded in.

    Raises:
        UserError: A number is out of range, there are too few pictures for one batch, or a batch
            cannot be shared out evenly.
    """
    _check_numbers(batch_size, seed, epoch, start_batch, num_workers)
    order = epoch_order(len(image_set), shuffle=shuffle, seed=seed, epoch=epoch, repeats=repeats)
    batches = split_into_batches(order, batch_size, drop_last)
    if not batches:
        raise UserError(
            f"Got {len(image_set)} images and batch_size {batch_size}, expected at least one full "
            "batch; make the batch smaller."
        )
    mine = [
        chunk
        for batch in batches[start_batch:]
        for chunk in chunks_of_rank(batch, rank, world_size, accum_steps)
    ]
    return _loader(_Samples(image_set, transform, seed, epoch), mine, num_workers)


def make_eval_loader(
    image_set: ImageSet,
    transform: Transform,
    *,
    batch_size: int,
    num_workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
) -> DataLoader:
    """Returns a loader over all pictures in order, or over one process's share of them.

    Every picture is in exactly one share; all shares have as many batches, the last of which may
    be empty (`cvt.data.order.share_of_rank`).

    Raises:
        UserError: A number is out of range, or there are no pictures.
    """
    _check_numbers(batch_size, 0, 0, 0, num_workers)
    if not len(image_set):
        raise UserError("Got no images, expected at least one.")
    mine = share_of_rank(len(image_set), batch_size, rank, world_size)
    return _loader(_Samples(image_set, transform, 0, 0), mine, num_workers)


def _check_numbers(
    batch_size: int, seed: int, epoch: int, start_batch: int, num_workers: int
) -> None:
    numbers = {"seed": seed, "epoch": epoch, "start_batch": start_batch, "num_workers": num_workers}
    for name, value in numbers.items():
        if value < 0:
            raise UserError(f"Got {name} {value}, expected 0 or more.")
    if batch_size < 1:
        raise UserError(f"Got batch_size {batch_size}, expected 1 or more.")


def _loader(samples: "_Samples", batches: list[list[int]], num_workers: int) -> DataLoader:
    return DataLoader(
        samples,
        batch_sampler=batches,
        collate_fn=samples.collate,
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_prepare_worker,
        # The loader draws a number when iteration begins: not from the global generator.
        generator=torch.Generator(),
    )


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

    def __getitem__(self, number: int) -> tuple[int, Tensor | str]:
        return self.__getitems__([number])[0]

    def __getitems__(self, numbers: Sequence[int]) -> list[tuple[int, Tensor | str]]:
        with generators_kept():
            return [(number, self._load(number)) for number in numbers]

    def _load(self, number: int) -> Tensor | str:
        try:
            image = self.image_set.image(number % len(self.image_set))
        except BadImage as error:
            return str(error)
        seed_all(self.seed, self.epoch, number)
        return self.transform(image)

    def collate(self, samples: Sequence[tuple[int, Tensor | str]]) -> Batch:
        good = [(number, image) for number, image in samples if isinstance(image, Tensor)]
        indices = [number % len(self.image_set) for number, _ in good]
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
