"""From a checkpoint and images to labels, probabilities and features."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import IOBase
from itertools import chain, count, islice
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from cvt.data import BadImage, eval_transform
from cvt.data.image import opened
from cvt.data.walk import find_images, is_pattern
from cvt.errors import UserError, remark
from cvt.files import url_in
from cvt.plain import to_plain
from cvt.runtime import autocast, choose_device, choose_precision
from cvt.zoo.create import load

ImageSource = (
    str | os.PathLike[str] | bytes | BinaryIO | Image.Image | np.ndarray | Tensor | BadImage
)
ImageSources = ImageSource | Iterable[ImageSource]


@dataclass(frozen=True)
class PredictedLabel:
    """A class, its number in the model's output, and its probability.

    It is a softmax over all classes, or where the model's record says `multi_label`, the sigmoid of
    this class alone.
    """

    name: str
    index: int
    probability: float


@dataclass(frozen=True)
class Prediction:
    """What an image shows, most probable first; or, in one sentence, why there is no answer."""

    image: str
    labels: tuple[PredictedLabel, ...] = ()
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data for JSON: `image` and `labels`, or `image` and `error`."""
        return to_plain(self, leave_out={"error" if self.error is None else "labels"})


def predict(
    model: str | Path | nn.Module,
    images: ImageSources,
    top_k: int = 5,
    *,
    batch_size: int = 16,
    device: str = "auto",
    precision: str = "auto",
) -> list[Prediction]:
    """Says what images show; a `Predictor`, which explains the arguments, keeps the model."""
    predictor = Predictor(model, device=device, precision=precision, batch_size=batch_size)
    return predictor(images, top_k)


class Predictor:
    """Classifies images with the preprocessing and the class names that a checkpoint carries.

    Sources of images, one or several, mixed as they come:

    - paths of files; folders, and patterns such as `photos/*.jpg`, stand for the images in them,
      and a remark (a warning) says what else is there
    - bytes of a file, open binary files, Pillow images
    - numpy arrays (H, W), (H, W, C) or (N, H, W, C)
    - torch tensors (H, W), (C, H, W) or (N, C, H, W)

    Arrays and tensors hold grey (C 1 or none), RGB (3; OpenCV's BGR has to be turned round) or
    RGBA (4), as uint8 of 0 to 255, or floats of 0 to 1, which are rounded to 8 bits: images that
    are not normalised yet.

    Args:
        model: Anything that `cvt.load` takes, a model that it returned, or what `cvt.deploy` made
            of one. A model is used as it is: put on the device, and in eval mode.
        device: `auto`, `cpu`, `cuda`, ...; that of a deployed model is its own.
        precision: `auto`, `float32`, `bf16` or `fp16`; a deployed model has its own.
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
        self.batch_size = batch_size
        self.model, self.device, self.precision = _placed(loaded, device, precision)
        self.class_names = record.class_names or tuple(map(str, range(record.spec.num_classes)))
        self._multi_label = record.multi_label
        self._transform = eval_transform(record.preprocessing)

    def __call__(self, sources: ImageSources, top_k: int = 5) -> list[Prediction]:
        """Returns one prediction for each image; an unreadable one has its `error` set."""
        return list(self.stream(sources, top_k))

    def stream(self, sources: ImageSources, top_k: int = 5) -> Iterator[Prediction]:
        """Yields the predictions batch by batch, in order, of up to `top_k` labels each."""
        if top_k < 1:
            raise UserError(f"Got top_k {top_k}, expected 1 or more.")
        for name, row in self._rows(sources, self._chances):
            if isinstance(row, BadImage):
                yield Prediction(name, error=str(row))
                continue
            values, indices = (each.tolist() for each in row.topk(min(top_k, len(row))))
            names = (self.class_names[index] for index in indices)
            yield Prediction(name, tuple(map(PredictedLabel, names, indices, values)))

    def probabilities(self, images: ImageSources) -> np.ndarray:
        """Returns the probability of each class: float32, (N, classes), in the images' order."""
        return self._table(images, self._chances, len(self.class_names))

    def embed(self, images: ImageSources) -> np.ndarray:
        """Returns what the classifier is fed with: float32, (N, features), in the images' order."""
        if not hasattr(self.model, "forward_head"):
            raise UserError(
                f"Got a {type(self.model).__name__}, which gives the outputs of its classifier "
                "alone; make the Predictor with the model that it was deployed from."
            )
        return self._table(images, self._features, cast("Any", self.model).num_features)

    def _chances(self, pixels: Tensor) -> Tensor:
        logits = self.model(pixels).float()
        return logits.sigmoid() if self._multi_label else logits.softmax(dim=1)

    def _features(self, pixels: Tensor) -> Tensor:
        model = cast("Any", self.model)
        features = model.forward_head(model.forward_features(pixels), pre_logits=True).float()
        if features.ndim != 2:
            raise UserError("Got a model without pooling, expected one vector an image; set one.")
        return features

    def _table(
        self, images: ImageSources, answer: Callable[[Tensor], Tensor], width: int
    ) -> np.ndarray:
        found = [row for _, row in self._rows(images, answer)]
        rows = [row.numpy() for row in found if isinstance(row, Tensor)]
        bad = [str(row) for row in found if isinstance(row, BadImage)]
        if bad:
            raise UserError(
                f"Got {len(bad)} of {len(found)} images that cannot be used, expected a row for "
                "each; leave these out.",
                details=bad[:_NAMED] + ["..."] * (len(bad) > _NAMED),
            )
        return np.stack(rows) if rows else np.empty((0, width), np.float32)

    def _rows(
        self, sources: ImageSources, answer: Callable[[Tensor], Tensor]
    ) -> Iterator[tuple[str, Tensor | BadImage]]:
        """Yields each image's name, with its row of the answer or the reason for having none."""
        numbers = count(1)
        named = ((_name(each, next(numbers)), each) for each in _each(sources))
        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as readers:
            while batch := list(islice(named, self.batch_size)):
                read = list(readers.map(self._read, batch))
                good = [image for _, image in read if isinstance(image, Tensor)]
                rows = iter(self._answer(good, answer) if good else ())
                for name, image in read:
                    row = next(rows) if isinstance(image, Tensor) else image
                    if isinstance(row, Tensor) and not row.isfinite().all():
                        row = BadImage(
                            f"The network's output for {name} is no finite number; check its "
                            "weights, or try float32 for its precision."
                        )
                    yield name, row

    def _read(self, named: tuple[str, ImageSource]) -> tuple[str, Tensor | BadImage]:
        name, source = named
        if isinstance(source, BadImage):
            return name, source
        try:
            plain = _from_array(source, name) if _is_array(source) else source
            # A large one keeps its turn until it has been made small.
            sizing, fixed = self._transform.sizing, self._transform.fixed
            with opened(cast("Any", plain), name=name, sizing=sizing) as image:
                return name, self._transform.finish(fixed(image))
        except BadImage as error:
            return name, error

    @torch.inference_mode()
    def _answer(self, images: list[Tensor], answer: Callable[[Tensor], Tensor]) -> Tensor:
        with autocast(self.device, self.precision):
            return answer(torch.stack(images).to(self.device)).cpu()


_NAMED = 10  # bad images that an error names
_SINGLE = (str, os.PathLike, bytes, bytearray, memoryview, Image.Image, BadImage, IOBase)


def _placed(model: nn.Module, device: str, precision: str) -> tuple[nn.Module, torch.device, str]:
    """Puts a model where it is to run, in eval mode; what has been deployed is there already."""
    if not getattr(model, "is_deployed", False):
        where = choose_device(device)
        return model.to(where).eval(), where, choose_precision(precision, where)
    tensors = chain(model.parameters(), model.buffers())
    own = next((each.device for each in tensors), torch.device("cpu"))
    if device != "auto" and choose_device(device).type != own.type:
        raise UserError(
            f"Got device {device!r} for a model that was deployed to {own}; deploy it to the one "
            "you want."
        )
    if precision != "auto":
        raise UserError(
            f"Got precision {precision!r} for a deployed model, which has its own; deploy it with "
            "the dtype you want."
        )
    return model, own, "float32"


def _each(sources: ImageSources) -> Iterator[ImageSource]:
    """Yields single images out of whatever stands for one or several."""
    is_one = isinstance(sources, _SINGLE) or _is_array(sources) or hasattr(sources, "read")
    if not is_one and (isinstance(sources, Mapping) or not isinstance(sources, Iterable)):
        raise UserError(
            f"Got {type(sources).__name__} {str(sources)[:80]!r}, expected images: paths, bytes, "
            "open files, Pillow images, arrays or tensors, one or several."
        )
    for each in [sources] if is_one else cast("Iterable", sources):
        yield from _in_one(each)


def _in_one(source: Any) -> Iterator[ImageSource]:
    """Yields the images of a folder, a pattern, or an array of several; others as they are."""
    if isinstance(source, str | os.PathLike):
        text = os.fspath(source)
        if isinstance(text, str) and (os.path.isdir(text) or is_pattern(text)):
            yield from find_images([text], on_note=remark)
        else:
            yield source
    elif _is_array(source):
        array = source if isinstance(source, Tensor) else np.asarray(source)
        if isinstance(array, np.ndarray) and array.dtype.kind in "OUS" and array.ndim:
            for each in array.ravel().tolist():
                yield from _in_one(each)
        else:
            yield from array if array.ndim == 4 else [array]
    elif isinstance(source, bytearray | memoryview):
        yield bytes(source)
    elif isinstance(source, _SINGLE) or hasattr(source, "read"):
        yield source
    else:
        yield BadImage(
            f"Got {type(source).__name__} {str(source)[:80]!r} among the images, expected a path, "
            "bytes, an open file, a Pillow image, an array or a tensor."
        )


def _is_array(source: Any) -> bool:
    return isinstance(source, np.ndarray | Tensor) or (
        hasattr(source, "__array__") and not isinstance(source, _SINGLE)
    )


def _from_array(source: Any, name: str) -> Image.Image:
    """Makes a Pillow image of an array (H, W[, C]) or a tensor ([C,] H, W)."""
    kind = f"{name} is {'a tensor' if isinstance(source, Tensor) else 'an array'}"
    if isinstance(source, Tensor):
        layout, channels_at = "(H, W) or (C, H, W)", 0
        try:
            tensor = source.detach().cpu()
            array = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
        except (TypeError, RuntimeError) as error:  # sparse, quantised, on no device
            raise BadImage(f"{name} is a tensor without plain numbers ({error}).") from None
    else:
        layout, channels_at, array = "(H, W) or (H, W, C)", -1, np.asarray(source)
    if 0 in array.shape or not (
        array.ndim == 2 or (array.ndim == 3 and array.shape[channels_at] in (1, 3, 4))
    ):
        raise BadImage(
            f"{kind} of shape {tuple(array.shape)}, expected {layout} with 1, 3 "
            f"or 4 channels{', as pixels' if array.ndim < 2 else ''}."
        )
    if array.ndim == 3 and channels_at == 0:
        array = array.transpose(1, 2, 0)
    pixels = array[:, :, 0] if array.shape[2:] == (1,) else array
    return Image.fromarray(np.ascontiguousarray(_eight_bits(pixels, kind)))


def _eight_bits(pixels: np.ndarray, kind: str) -> np.ndarray:
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype.kind == "b":
        return pixels.astype(np.uint8) * 255
    if pixels.dtype.kind != "f":
        raise BadImage(
            f"{kind} of {pixels.dtype}, expected uint8 of 0 to 255, or floats of 0 to 1."
        )
    low, high = float(pixels.min()), float(pixels.max())
    if not (low >= 0 and high <= 1):  # nan as well
        raise BadImage(
            f"{kind} with values from {low:.4g} to {high:.4g}, expected floats "
            "of 0 to 1 that are not normalised yet, or uint8."
        )
    return np.rint(pixels.astype(np.float64) * 255).astype(np.uint8)


def _name(source: ImageSource, number: int) -> str:
    if isinstance(source, str | os.PathLike):
        text = os.fsdecode(source)
        return url_in(text) or text
    name = None if _is_array(source) else getattr(source, "name", None)
    return name if isinstance(name, str) and name else f"image {number}"
