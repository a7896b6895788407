"""From the name of some data, as `cvt train` and `cvt eval` take it, to sets of images."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cvt.data.hub import hub_splits
from cvt.data.image import BadImage
from cvt.data.parquet import parquet_splits
from cvt.data.sets import (
    SPLITS,
    DataSplits,
    ImageSet,
    Joined,
    check_labels,
    stratified_split,
    told_of,
)
from cvt.data.shards import shard_splits
from cvt.data.sources import TORCHVISION_SETS, digit_splits, folder_splits, torchvision_splits
from cvt.errors import UserError, did_you_mean
from cvt.files import expanded, url_in
from cvt.weights.record import RunData


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The part of some data that is measured.

    Args:
        split: "train", "val" or "test"; "all" for the whole data.
        num_found: Images in the whole data.
        was_cut: Whether the split was cut out of data that has none of its own.
        notes: As in each set; so is `unreadable`.
    """

    images: ImageSet
    split: str
    num_found: int
    was_cut: bool = False
    notes: tuple[str, ...] = ()
    unreadable: tuple[str, ...] = ()


def load_data(
    name: str,
    *,
    data_dir: str | Path | None = None,
    val_fraction: float = 0.1,
    seed: int = 0,
    download: bool = False,
) -> DataSplits:
    """Loads a data set for training.

    A split that the data has is used as it is. A missing validation split is cut out of the
    training images, class by class, even if there is a test split: the test images are for the
    final figure alone, and choosing a checkpoint by them would spoil it.

    Args:
        name: `digits`; a name in timm's spelling: `torch/...`, `hfds/...`, or `wds/` and a folder
            or pattern of webdataset shards; or the path of a folder of class folders, of a parquet
            file, or of a folder of parquet files. `./digits` is a folder called like a name.
        data_dir: Where `torch/` sets lie, where `hfds/` sets are cached, and what a relative path
            is relative to.
        val_fraction: Share of each class that a missing validation split takes, in (0, 1).
        seed: Decides which images these are.
        download: Fetch a `torch/` set that is not there yet.
    """
    splits = _read(name, data_dir, download)
    _check_classes(splits["train"], name)
    told = told_of(splits.values())
    val_was_cut = "val" not in splits
    if val_was_cut:
        splits["train"], splits["val"] = stratified_split(splits["train"], val_fraction, seed, name)
    found: dict[str, Any] = dict(splits)
    return DataSplits(name=name, **found, **told, val_was_cut=val_was_cut)


def _check_classes(images: ImageSet, name: str) -> None:
    """Refuses a single class, and says why the first image without a class has none."""
    if len(images.classes) > 1:
        return
    odd, told = np.flatnonzero(images.labels < 0), ""
    if len(odd):
        told = f" {len(odd)} images have no class."
        try:
            images.image(int(odd[0]))
        except BadImage as error:
            told = f"{told[:-1]}: {error}"
    raise UserError(
        f"{name} has the single class {''.join(images.classes)!r}, expected at least two to tell "
        f"apart; check that the path is the folder that holds the class folders.{told}"
    )


def load_split(
    name: str, split: str | None = None, *, data_dir: str | Path | None = None
) -> ImageSet:
    """Loads the set of images that `select` would measure."""
    return select(name, split, data_dir=data_dir).images


def select(
    name: str,
    split: str | None = None,
    *,
    data_dir: str | Path | None = None,
    download: bool = False,
    run: RunData | None = None,
) -> Selection:
    """Loads the images to be measured.

    Without `split` that is the test split of the data, or else its validation split. Data without
    either is measured whole, unless it is what the run learned from: then only the images that the
    run held out for validation tell anything.

    Args:
        name: As for `load_data`, which also explains `data_dir` and `download`.
        split: "train", "val", "test", or "all". A missing validation split is cut out, as the run
            did; for "all", classes may be too small for that.
        run: The run whose weights are measured.
    """
    if split not in (None, "all", *SPLITS):
        hint = did_you_mean(split, SPLITS)
        raise UserError(f"Unknown split {split!r}, expected one of {', '.join(SPLITS)}, all.{hint}")
    found = _read(name, data_dir, download, for_training=False)
    told = told_of(found.values())
    notes = list(told["notes"])
    cut: dict[str, ImageSet] = {}
    if run is not None and "train" in found and "val" not in found:
        cut = _cut_of_run(found["train"], name, data_dir, run, notes)
    split = split or next((each for each in ("test", "val") if each in {**found, **cut}), "all")
    if split == "val" and not cut and "train" in found and "val" not in found:
        how = run or RunData(name=name)
        _, cut["val"] = stratified_split(found["train"], how.val_fraction, how.seed, name)
    sets = {**found, **cut}
    if split != "all" and split not in sets:
        raise UserError(f"{name} has no {split} split; leave the split out.")
    if split == "all":
        sets["all"] = Joined(list(found.values()))
    return Selection(
        images=sets[split],
        split=split,
        num_found=sum(map(len, found.values())),
        was_cut=split in cut,
        notes=tuple(notes),
        unreadable=told["unreadable"],
    )


def _cut_of_run(
    images: ImageSet, name: str, data_dir: str | Path | None, run: RunData, notes: list[str]
) -> dict[str, ImageSet]:
    """Returns what a run learned from and what it held out, if it used this data; else {}.

    A note says where that is in doubt.
    """
    is_there = _place(name, data_dir) == _place(run.name, run.data_dir)
    try:
        train, val = stratified_split(images, run.val_fraction, run.seed, name)
    except UserError:  # not what could be cut once
        return {}
    is_alike = all(
        run.digests[split] == (len(part), part.fingerprint())
        for split, part in {"training": train, "validation": val}.items()
        if split in run.digests
    )
    if is_there and is_alike:
        return {"train": train, "val": val}
    if is_there:
        notes.append(
            f"{name} is no longer what the run learned from, so all of it is measured; figures of "
            "images that the run learned from say little."
        )
    elif is_alike and run.digests:
        notes.append(
            f"{name} has the names and labels of the data that the run learned from; if it is "
            "that, ask for the split val, which it did not learn from."
        )
    return {}


def _place(name: str, data_dir: str | Path | None) -> str:
    """Returns what all names of the same data share: where it lies, or the name itself."""
    if name == "digits" or name.startswith(("torch/", "hfds/")):
        return name
    return os.path.realpath(expanded(data_dir or "") / expanded(name.removeprefix("wds/")))


def _read(
    name: str, data_dir: str | Path | None, download: bool, *, for_training: bool = True
) -> dict[str, ImageSet]:
    """Returns the splits that the data comes with; for training, "train" is among them."""
    folder = None if data_dir is None else expanded(data_dir)
    found = _open(name, folder, download, for_training)
    for images in found.values():
        check_labels(images)
    return found


def _open(
    name: str, folder: Path | None, download: bool, for_training: bool
) -> dict[str, ImageSet]:
    if name == "digits":
        return digit_splits()
    if name.startswith("torch/"):
        return torchvision_splits(name, folder, download=download)
    if name.startswith("hfds/"):
        return hub_splits(name.removeprefix("hfds/"), folder, for_training=for_training)
    if name.startswith("hfids/"):
        whole = name.replace("hfids/", "hfds/", 1)
        raise UserError(
            f"Got {name}, and nothing is streamed from the hub; write {whole} to fetch it first, "
            "or save it as webdataset shards and write wds/PATH."
        )
    if name.startswith("wds/"):
        shards = (folder or Path()) / expanded(name.removeprefix("wds/"))
        return shard_splits(shards, for_training=for_training)
    path = (folder or Path()) / expanded(name)
    is_parquet = path.suffix.lower() == ".parquet" and os.path.exists(path)
    if is_parquet or (os.path.isdir(path) and any(path.glob("*.parquet"))):
        return parquet_splits(path, for_training=for_training)
    if os.path.isdir(path):
        return folder_splits(path, for_training=for_training)
    if os.path.exists(path):
        raise UserError(
            f"Got the file {path} as data, expected a folder of class folders or a .parquet file."
        )
    if (url := url_in(name)) is not None:
        raise UserError(f"Got the URL {url} as data, which is not fetched; download it first.")
    names = ("digits", *TORCHVISION_SETS)
    raise UserError(
        f"There is no data at {path}, expected a path that exists, {', '.join(names)}, hfds/NAME "
        f"or wds/PATH.{did_you_mean(name, names)}"
    )
