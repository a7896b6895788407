"""A model that is to be measured, and its answers to a set of images.

Several processes take a share of the images each, and all of them get the answers to the whole.
"""

import os
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cvt.data import Batch, ImageSet, eval_transform, make_eval_loader
from cvt.errors import UserError
from cvt.files import expanded
from cvt.parts.model import VisionModel
from cvt.plain import from_plain, read_json_file, read_yaml_file, to_plain
from cvt.runtime import ALONE, World, autocast, choose_device, choose_precision, join_world
from cvt.weights.record import Preprocessing, Record, RunData
from cvt.zoo.create import load

# --- What a model, or its checkpoint, says about how to measure it.


def preprocessing_of(network: VisionModel) -> Preprocessing:
    """Returns the checkpoint's own, or what timm's configuration of the model says."""
    if (record := _record_of(network)) is not None:
        return record.preprocessing
    cfg = getattr(network, "pretrained_cfg", None)
    if cfg is not None:
        return Preprocessing.from_timm(dict(cfg)).with_channels(network.in_chans)
    raise UserError(
        f"Got a {type(network).__name__} that does not say how to prepare images; "
        "give a checkpoint, or a model made by cvt.load or cvt.create_model."
    )


def class_names_of(network: VisionModel) -> tuple[str, ...] | None:
    """Returns one name per output, or None if they are not known."""
    record = _record_of(network)
    if record is not None and record.multi_label:
        raise UserError(
            "Got a model whose classes may hold together (multi_label), expected one that names a "
            "single class; `cvt predict` says the probability of each."
        )
    return record.class_names if record else None


def run_data(source: str | Path | VisionModel, network: VisionModel) -> RunData | None:
    """What the run that made the weights learned from: by their record, or the run's folder."""
    record = _record_of(network)
    if record is not None and record.trained_on is not None:
        return record.trained_on
    if isinstance(source, VisionModel) or not os.path.exists(path := expanded(source)):
        return None
    return _older_run(path if path.is_dir() else path.parent)


def _older_run(folder: Path) -> RunData | None:
    """What a run's folder says of its data: weights written before records did say nothing."""
    file = folder / "config.yaml"
    config = read_yaml_file(file) if file.is_file() else None
    if not isinstance(config, Mapping) or "data" not in config:
        return None
    cut = {key: config[key] for key in ("data_dir", "val_fraction", "seed") if key in config}
    run = from_plain(RunData, {**cut, "name": config["data"]}, str(file))
    for state in sorted(folder.glob("checkpoints/" + 6 * "[0-9]" + "/state.json"), reverse=True):
        try:
            digests = read_json_file(state)["facts"]["identity"]["data"]
            return from_plain(RunData, {**to_plain(run), "digests": digests}, str(state))
        except (UserError, LookupError, TypeError):  # damaged: those before say the same
            continue
    return run


def _record_of(network: VisionModel) -> Record | None:
    record = getattr(network, "record", None)
    return record if isinstance(record, Record) else None


# --- The answers of a network to all images that a loader brings.


@dataclass(frozen=True)
class Logits:
    """Answers and truth of the images that could be read, N of them, on the CPU.

    Args:
        logits: float32, shape (N, classes).
        labels: int64, shape (N,).
        bad: One sentence for each image that could not be read.
        indices: Position of each image in its set, rising, int64, shape (N,), where known.
    """

    logits: Tensor
    labels: Tensor
    bad: tuple[str, ...] = ()
    indices: Tensor | None = None

    def loss(self) -> float:
        """Returns the mean cross-entropy in nats, without label smoothing."""
        return F.cross_entropy(self.logits, self.labels).item()

    def top_k(self, k: int) -> float:
        """Returns the percentage of images whose label is among the `k` largest logits."""
        hits = self.logits.topk(k, dim=1).indices == self.labels[:, None]
        return 100 * hits.any(dim=1).double().mean().item()

    def guesses(self) -> "Guesses":
        """Returns the most likely class of each image, which takes little memory to keep."""
        sure, classes = [], []
        for part in self.logits.split(_AT_ONCE):
            best = part.double().softmax(dim=1).max(dim=1)
            sure.append(best.values)
            classes.append(best.indices)
        indices = torch.arange(len(self.labels)) if self.indices is None else self.indices
        return Guesses(
            classes=torch.cat(classes).numpy(),
            confidences=torch.cat(sure).numpy(),
            labels=self.labels.numpy(),
            indices=indices.numpy(),
        )


_AT_ONCE = 4096  # images whose probabilities are in memory together


@dataclass(frozen=True, kw_only=True, eq=False)
class Guesses:
    """The class that a model finds most likely for each of N images, and the true one.

    Args:
        classes: int64, shape (N,); so are the `labels`.
        confidences: Their probabilities, 0 to 1, float64, shape (N,).
        indices: Position of each image in its set, int64, shape (N,).
    """

    classes: np.ndarray
    confidences: np.ndarray
    labels: np.ndarray
    indices: np.ndarray

    def confusion(self, num_classes: int) -> np.ndarray:
        """Counts images of class i (row) that were taken for class j: int64, (N, N)."""
        pairs = np.bincount(self.labels * num_classes + self.classes, minlength=num_classes**2)
        return pairs.reshape(num_classes, num_classes)


def validate(
    model: nn.Module,
    loader: Iterable[Batch],
    device: torch.device,
    precision: str = "float32",
    on_batch: Callable[[int], None] | None = None,
    world: World = ALONE,
) -> Logits:
    """Runs a model in eval mode over a split; its modules' modes are put back afterwards.

    Several processes bring a loader of their share each (`cvt.data.make_eval_loader`) and all get
    the answers to the whole split, each image once and in the split's order. The logits are float32
    whatever the precision.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        parts, bad = _own_share(model, loader, device, precision, on_batch, world)
    finally:
        for module, mode in modes:
            module.training = mode
    shares = world.gather((parts, bad))
    bad = [sentence for _, sentences in shares for sentence in sentences]
    answered = [part for parts, _ in shares for part in parts]
    if not answered:
        raise UserError(f"None of the {len(bad)} images could be read; the first: {bad[0]}")
    logits, labels, indices = (torch.cat(each) for each in zip(*answered, strict=True))
    order = indices.argsort(stable=True)
    return Logits(logits[order], labels[order], tuple(bad), indices[order])


def _own_share(
    model: nn.Module,
    loader: Iterable[Batch],
    device: torch.device,
    precision: str,
    on_batch: Callable[[int], None] | None,
    world: World,
) -> tuple[list[tuple[Tensor, Tensor, Tensor]], list[str]]:
    parts, bad = [], []
    with torch.inference_mode(world.size == 1), torch.no_grad():
        for batch in loader:
            bad += batch.bad
            count = len(batch.labels)
            if count or world.size > 1:
                # With nothing to answer, layers spread over processes still have to run in step.
                blank = batch.images.new_zeros(1, *batch.images.shape[1:])
                images = batch.images if count else blank
                with autocast(device, precision):
                    out = model(images.to(device, non_blocking=True))
                if count:
                    parts.append((out.float().cpu(), batch.labels, batch.indices))
            if on_batch:
                on_batch(count)
    return parts, bad


# --- A model opened to be asked.


@dataclass(frozen=True)
class Batching:
    """How images go through a model, told at `cvt.evaluate`; results change by rounding alone."""

    batch_size: int = 64
    num_workers: int = 0
    device: str = "auto"
    precision: str = "auto"
    on_start: Callable[[int], None] | None = None
    on_batch: Callable[[int], None] | None = None


@dataclass(frozen=True)
class ModelUnderTest:
    """A model that is measured, in each of the processes that share the images."""

    network: VisionModel
    batching: Batching
    world: World

    def answers(
        self,
        data: ImageSet,
        network: nn.Module | None = None,
        preprocessing: Preprocessing | None = None,
    ) -> Logits:
        """Returns what the network, in eval mode, says to each readable image, in their order.

        Args:
            network: What runs in place of the model itself.
            preprocessing: What holds in place of the model's own.
        """
        how, world = self.batching, self.world
        device = choose_device(how.device)
        loader = make_eval_loader(
            data,
            eval_transform(preprocessing or preprocessing_of(self.network)),
            batch_size=how.batch_size,
            num_workers=how.num_workers,
            rank=world.rank,
            world_size=world.size,
        )
        if how.on_start:
            how.on_start(len(range(world.rank, len(data), world.size)))
        precision = choose_precision(how.precision, device)
        model = (network or self.network).to(device)
        said = validate(model, loader, device, precision, how.on_batch, world)
        check_finite(said.logits)
        return said


def check_finite(outputs: Tensor) -> None:
    """Refuses outputs (N, ...) that say nothing: the figures of one of them would be nan."""
    count = int((~outputs.flatten(1).isfinite().all(dim=1)).sum())
    if count:
        raise UserError(
            f"Got outputs that are no finite numbers for {count:,} of {len(outputs):,} images, so "
            "that nothing can be measured; check the weights, or take float32 for the precision."
        )


@contextmanager
def opened_model(model: str | Path | VisionModel, batching: Batching) -> Generator[ModelUnderTest]:
    """Joins the other processes, and loads the model, which the main one fetches first."""
    with join_world(batching.device) as world:
        if isinstance(model, str | Path):
            model = world.in_turn(lambda source=model: load(source))
        yield ModelUnderTest(model, batching, world)
