"""From a checkpoint and pictures to labels."""

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from io import IOBase
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from PIL import Image
from torch import Tensor, nn

from cvt.data import BadImage, eval_transform, open_image
from cvt.errors import UserError
from cvt.train.device import autocast, choose_device, choose_precision
from cvt.zoo.create import load

Source = str | os.PathLike[str] | bytes | BinaryIO | Image.Image | BadImage


@dataclass(frozen=True)
class Label:
    """A class, by name and by its number in the model's output, and its probability.

    It is a softmax over all classes, or where the model's record says `multi_label`, the sigmoid of
    this class alone.
    """

    name: str
    index: int
    probability: float


@dataclass(frozen=True)
class Prediction:
    """What a picture shows, most probable first; or, in one sentence, why it could not be read."""

    image: str
    labels: tuple[Label, ...] = ()
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data for JSON: `image` and `labels`, or `image` and `error`."""
        keep = "labels" if self.error is None else "error"
        return {name: value for name, value in asdict(self).items() if name in ("image", keep)}


class Predictor:
    """Classifies pictures with the preprocessing and the class names that a checkpoint carries.

    Args:
        model: Anything that `cvt.load` takes, or a model that it returned.
        device: `auto`, `cpu`, `cuda`, ...
        precision: `auto`, `float32` or `bf16`.
        batch_size: Pictures per forward pass.

    Raises:
        UserError: The checkpoint cannot be loaded, the device is not there, or the model has no
            classifier.
    """

    def __init__(
        self,
        model: str | Path | nn.Module,
        *,
        device: str = "auto",
        precision: str = "auto",
        batch_size: int = 16,
    ) -> None:
        if batch_size < 1:
            raise UserError(f"Got batch_size {batch_size}, expected 1 or more.")
        loaded = model if isinstance(model, nn.Module) else load(model)
        record = getattr(loaded, "record", None)
        if record is None:
            raise UserError(
                "The model carries no record of its preprocessing and classes; "
                "pass a checkpoint, or a model that cvt.load returned."
            )
        if record.spec.num_classes == 0:
            raise UserError("The model has no classifier; load it with num_classes above 0.")
        self.device = choose_device(device)
        self.precision = choose_precision(precision, self.device)
        self.batch_size = batch_size
        self.model = loaded.to(self.device).eval()
        self.class_names = record.class_names or tuple(map(str, range(record.spec.num_classes)))
        self._multi_label = record.multi_label
        self._transform = eval_transform(record.preprocessing)

    def __call__(self, sources: Source | Iterable[Source], top_k: int = 5) -> list[Prediction]:
        """Returns one prediction for each picture; an unreadable one has its `error` set."""
        return list(self.stream(sources, top_k))

    def stream(self, sources: Source | Iterable[Source], top_k: int = 5) -> Iterator[Prediction]:
        """Yields the predictions batch by batch, in order.

        Args:
            sources: Paths, bytes, open files or Pillow images; or one of them.
            top_k: How many labels each picture gets, at most all of them.

        Raises:
            UserError: `top_k` is below 1.
        """
        if top_k < 1:
            raise UserError(f"Got top_k {top_k}, expected 1 or more.")
        named = ((_name(each, number), each) for number, each in enumerate(_several(sources), 1))
        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as readers:
            while batch := list(islice(named, self.batch_size)):
                yield from self._predict(list(readers.map(self._read, batch)), top_k)

    def _read(self, named: tuple[str, Source]) -> tuple[str, Tensor | BadImage]:
        name, source = named
        if isinstance(source, BadImage):
            return name, source
        try:
            return name, self._transform(open_image(source, name=name))
        except BadImage as error:
            return name, error

    @torch.inference_mode()
    def _predict(
        self, batch: list[tuple[str, Tensor | BadImage]], top_k: int
    ) -> Iterator[Prediction]:
        tensors = [image for _, image in batch if isinstance(image, Tensor)]
        rows: Iterator[tuple[Label, ...]] = iter(())
        if tensors:
            with autocast(self.device, self.precision):
                logits = self.model(torch.stack(tensors).to(self.device))
            logits = logits.float().cpu()
            probabilities = logits.sigmoid() if self._multi_label else logits.softmax(dim=1)
            rows = map(self._labels, probabilities, [top_k] * len(tensors))
        for name, image in batch:
            if isinstance(image, Tensor):
                yield Prediction(name, next(rows))
            else:
                yield Prediction(name, error=str(image))

    def _labels(self, probabilities: Tensor, top_k: int) -> tuple[Label, ...]:
        values, indices = probabilities.topk(min(top_k, len(probabilities)))
        return tuple(
            Label(self.class_names[index], index, value)
            for value, index in zip(values.tolist(), indices.tolist(), strict=True)
        )


def _several(sources: Source | Iterable[Source]) -> Iterable[Source]:
    """One picture as a list of itself; an open file is one, though it could be iterated."""
    single = (str, os.PathLike, bytes, Image.Image, BadImage, IOBase)
    return cast("Iterable[Source]", [sources] if isinstance(sources, single) else sources)


def _name(source: Source, number: int) -> str:
    if isinstance(source, str | Path):
        return str(source)
    return getattr(source, "name", None) or f"image {number}"
