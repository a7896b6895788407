"""The head that a run starts from, or that is all that a fast run learns: fitted to features.

The network stays as it is meanwhile, in its form for inference, so each image goes through it once
and once more mirrored. The features lie in the run's folder until the head is in a checkpoint.
"""

import json
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    set_model_state_dict,
)

from cvt.data import ImageSet
from cvt.errors import UserError
from cvt.evaluation import Features, LinearHead, fit_heads
from cvt.evaluation.answers import Logits, check_finite, validate
from cvt.inference import deploy
from cvt.plain import to_plain
from cvt.training.run_folder import FEATURES_FOLDER
from cvt.training.screen import say_time
from cvt.training.setup import Run
from cvt.weights.checkpoint import digest_of, read_safetensors, write_safetensors
from cvt.zoo.timm_models import build

# A fast run looks at all images up to 256 MB of features; a start need not be as good.
_MOST_NUMBERS = 2**26
_MOST_TO_START = 10_000
_MOST_TO_CHOOSE = 5_000
_MOST_LOGITS = 2**23  # of what is chosen on: 64 MB
_BLOCK = 2048  # images whose features are kept together


@dataclass(frozen=True, kw_only=True)
class FitWatch:
    """What is told of the fit on its way.

    Args:
        start: Called with a few words about each thing that takes long, and its number of images.
        advance: Called after each batch of this process with its number of images, in all
            processes alike: it may end the run.
        bad: Called with the sentences about images that could not be read.
    """

    start: Callable[[str, int], None]
    advance: Callable[[int], None]
    bad: Callable[[tuple[str, ...]], None]


def start_head(run: Run, watch: FitWatch) -> str:
    """Fits the best linear classifier of the network's features, puts it in place, and tells of it.

    The main process fits it, and all processes get it. In a fast run that is its only update.
    """
    begin = time.monotonic()
    copies = 2 if run.config.augment.hflip else 1
    network, key = _headless(run)
    most = _MOST_NUMBERS // (network.width * copies)
    if not run.config.fast:
        most = min(most, max(_MOST_TO_START, 2 * len(run.splits.classes)))
    train = _features(run, network, key, "train", _spread(run.splits.train, most), copies, watch)
    num_classes = len(run.splits.classes)
    few = _spread(run.splits.val, min(_MOST_TO_CHOOSE, _MOST_LOGITS // num_classes))
    val = _features(run, network, key, "val", few, 1, watch)
    heads = run.world.on_main(
        lambda: fit_heads(train, val, num_classes, lambda words: watch.start(words, 0))
    )
    best = heads[0]
    _put(run, best)
    count, seconds = len(train.labels) // copies, time.monotonic() - begin
    run.progress.head = _told(heads, network.width, count, copies, run.config.image_size)
    if run.config.fast:
        run.progress.batch = 1
        run.progress.count(best.measure(train)[1], count, seconds)
    return f"{run.progress.head} It took {say_time(seconds)}."


def forget_features(run: Run) -> None:
    """Removes the features that a fit has left, once what came of it is in a checkpoint."""
    run.world.on_main(lambda: shutil.rmtree(run.folder / FEATURES_FOLDER, ignore_errors=True))


def _told(heads: list[LinearHead], width: int, count: int, copies: int, side: int) -> str:
    """Says what was compared, and which one was taken, in words that a rerun repeats."""
    mirrored = ", plain and mirrored" if copies > 1 else ""
    names = {"logistic": "logistic regression", "lda": "linear discriminants"}
    told = []
    for head in heads:
        ((name, value),) = head.setting.items()
        told.append(f"{names[head.method]} ({name} {value:g}) {head.top1:.2f} %")
    others = f", {told[1]}" if told[1:] else ""
    return (
        f"Head fitted to {width} features of {count:,} training images{mirrored}, at {side} "
        f"pixels; validation top-1: {told[0]}, which was taken{others}."
    )


def _put(run: Run, head: LinearHead) -> None:
    """Writes a head into all classifiers of the network, and of its average."""
    tensors = {}
    for name in run.record.spec.classifiers:
        tensors[f"{name}.weight"] = torch.from_numpy(head.weight).float()
        tensors[f"{name}.bias"] = torch.from_numpy(head.bias).float()
    options = StateDictOptions(full_state_dict=True, strict=False)
    for model in {run.network.model, run.network.product}:
        set_model_state_dict(model, dict[str, Any](tensors), options=options)


# --- The features of images, block by block: what is in the folder already is not computed again.


class _Headless(nn.Module):
    """A deployed network without its classifier: images (B, C, H, W) to (B, copies, width).

    The second copy is that of the mirrored image.
    """

    def __init__(self, network: nn.Module, width: int) -> None:
        super().__init__()
        self.network, self.width, self.copies = network, width, 1

    def forward(self, image: Tensor) -> Tensor:
        plain = self.network(image)
        if self.copies == 1:
            return plain[:, None]
        return torch.stack([plain, self.network(image.flip(-1))], dim=1)


def _headless(run: Run) -> tuple[_Headless, str]:
    """Returns what makes features, and a digest of all that decides them but the images."""
    record, spec = run.record, run.record.spec
    whole = get_model_state_dict(run.network.model, options=StateDictOptions(full_state_dict=True))
    model = build(record.model, spec, num_classes=spec.num_classes, in_chans=spec.in_chans)
    model.load_state_dict(whole)
    layers = [model.get_submodule(name) for name in spec.classifiers]
    model.reset_classifier(0)
    network = deploy(model.to(run.device))
    with torch.no_grad():
        shape = network(torch.zeros(1, *record.preprocessing.input_size, device=run.device)).shape
    for each in layers:
        if not isinstance(each, nn.Linear) or each.bias is None or shape != (1, each.in_features):
            raise UserError(
                f"Got head probed for {record.model}, whose classifier is no linear layer of "
                "pooled features; take head fresh."
            )
    told = json.dumps([to_plain(record.preprocessing), run.identity.software])
    return _Headless(network, shape[1]), digest_of(model.state_dict(), told)


def _spread(images: ImageSet, most: int) -> ImageSet:
    """Returns at most so many images, of every class its share."""
    if len(images) <= most:
        return images
    by_class = np.argsort(images.labels, kind="stable")
    chosen = by_class[np.linspace(0, len(images) - 1, most, dtype=int)]
    return images.subset(np.sort(chosen))


def _features(
    run: Run,
    network: _Headless,
    key: str,
    split: str,
    images: ImageSet,
    copies: int,
    watch: FitWatch,
) -> Features:
    """Returns the features of a split, those of an image's copies one after the other."""
    network.copies = copies
    watch.start(f"features of {split}", len(images))
    found = []
    blocks = -(-len(images) // _BLOCK)
    for number in range(blocks):
        # Each has images of all classes: one whose files cannot be read leaves the others.
        block = images.subset(np.arange(number, len(images), blocks))
        path = run.folder / FEATURES_FOLDER / f"{split}-{number:06d}.safetensors"
        found.append(_block(run, network, block, path, f"{key} {block.fingerprint()}", watch))
        watch.bad(found[-1].bad)
    vectors = torch.cat([each.logits for each in found]).flatten(0, 1).numpy()
    labels = torch.cat([each.labels for each in found]).repeat_interleave(copies).numpy()
    return Features(vectors, labels)


def _block(
    run: Run, network: _Headless, images: ImageSet, path: Path, key: str, watch: FitWatch
) -> Logits:
    shape = (len(images), network.copies, network.width)
    known = run.world.on_main(lambda: _read(path, key, shape))
    if known is not None:
        watch.advance(len(images))
        return known
    loader = run.eval_loader(images)
    found = validate(network, loader, run.device, "float32", watch.advance, run.world)
    check_finite(found.logits)
    run.world.on_main(lambda: _keep(path, key, found))
    return found


def _keep(path: Path, key: str, logits: Logits) -> None:
    """Keeps a block; where there is no room, a run that is killed computes it again."""
    tensors = {"features": logits.logits, "labels": logits.labels}
    with suppress(UserError):
        write_safetensors(path, tensors, {"key": key, "bad": json.dumps(logits.bad)})


def _read(path: Path, key: str, shape: tuple[int, int, int]) -> Logits | None:
    """Returns a block that a session before this one kept, if it is whole and of the same."""
    try:
        tensors, metadata = read_safetensors(path)
        features, labels = tensors["features"], tensors["labels"]
        bad = tuple(map(str, json.loads(metadata["bad"])))
    except (UserError, LookupError, ValueError, TypeError):
        return None
    is_same = (
        metadata.get("key") == key
        and (features.dtype, labels.dtype) == (torch.float32, torch.int64)
        and features.shape == (shape[0] - len(bad), *shape[1:])
        and labels.shape == features.shape[:1]
    )
    return Logits(features, labels, bad) if is_same else None
