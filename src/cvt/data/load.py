"""From what the user typed after `cvt train` or `cvt eval` to sets of pictures."""

from pathlib import Path

from cvt.data.digits import digit_splits
from cvt.data.folder import folder_splits
from cvt.data.hub_sets import hub_splits
from cvt.data.hub_streams import hub_stream_splits
from cvt.data.image_set import SPLITS, DataSplits, ImageSet, Joined
from cvt.data.parquet import parquet_splits
from cvt.data.remembered import remembered
from cvt.data.shards import shard_splits
from cvt.data.split import stratified_split
from cvt.data.torchvision_sets import TORCHVISION_SETS, torchvision_splits
from cvt.errors import UserError, did_you_mean


def load_data(
    name: str,
    *,
    data_dir: str | Path | None = None,
    val_fraction: float = 0.1,
    seed: int = 0,
    download: bool = False,
) -> DataSplits:
    """Loads a data set for training.

    A split that the data comes with is used as it is. Where there is no validation split, one is
    cut out of the training pictures, class by class, even if there is a test split: the test
    pictures are for the final figure alone, and choosing a checkpoint by them would spoil it.

    Args:
        name: `digits`; a name in timm's spelling: `torch/...`, `hfds/...`, `hfids/...` (a stream)
            or `wds/` and a folder or pattern of webdataset shards; or the path of a folder of
            class folders, of a parquet file, or of a folder of parquet files. Write `./digits` for
            a folder that is called like a name.
        data_dir: Where `torch/` sets lie, where `hfds/` sets are cached, and what a relative path
            is relative to.
        val_fraction: Share of each class that a missing validation split takes, in (0, 1).
        seed: Decides which pictures these are.
        download: Fetch a `torch/` set that is not there yet.

    Raises:
        UserError: There is no such data, it is unusable as the functions of the several kinds say,
            it has a single class, or a class is too small to split.
    """
    splits = _read(name, data_dir, download)
    classes = splits["train"].classes
    if len(classes) < 2:
        raise UserError(
            f"{name} has the single class {''.join(classes)!r}, expected at least two to tell "
            "apart; check that the path is the folder that holds the class folders."
        )
    notes = tuple(dict.fromkeys(note for images in splits.values() for note in images.notes))
    val_was_cut = "val" not in splits
    if val_was_cut:
        splits["train"], splits["val"] = stratified_split(splits["train"], val_fraction, seed, name)
    kept = {split: remembered(images) for split, images in splits.items()}
    return DataSplits(name=name, **kept, val_was_cut=val_was_cut, notes=notes)


def load_split(
    name: str,
    split: str | None = None,
    *,
    data_dir: str | Path | None = None,
    val_fraction: float = 0.1,
    seed: int = 0,
    download: bool = False,
) -> ImageSet:
    """Loads one set of pictures for evaluation.

    Args:
        name: As for `load_data`, which also explains the other arguments; the same values give
            the same split.
        split: "train", "val", "test", or "all" of the data, which may then have classes too small
            to split; None for the test split if there is one, and otherwise "val".

    Raises:
        UserError: As `load_data` does, or the data has no such split.
    """
    if split == "all":
        parts = list(_read(name, data_dir, download).values())
        return Joined(parts)
    splits = load_data(
        name, data_dir=data_dir, val_fraction=val_fraction, seed=seed, download=download
    )
    return eval_split(splits, split)


def eval_split(splits: DataSplits, split: str | None = None) -> ImageSet:
    """Picks a split; None stands for the test split if there is one, and otherwise "val".

    Raises:
        UserError: There is no such split.
    """
    if split is None:
        return splits.test if splits.test is not None else splits.val
    if split not in SPLITS:
        hint = did_you_mean(split, SPLITS)
        raise UserError(f"Unknown split {split!r}, expected one of {', '.join(SPLITS)}.{hint}")
    chosen = getattr(splits, split)
    if chosen is None:
        raise UserError(f"{splits.name} has no {split} split; leave the split out to use val.")
    return chosen


def _read(name: str, data_dir: str | Path | None, download: bool) -> dict[str, ImageSet]:
    """Returns the splits that the data comes with; "train" is always among them."""
    folder = None if data_dir is None else Path(data_dir).expanduser()
    if name == "digits":
        return digit_splits()
    if name.startswith("torch/"):
        return torchvision_splits(name, folder, download=download)
    if name.startswith("hfds/"):
        return hub_splits(name.removeprefix("hfds/"), folder)
    if name.startswith("hfids/"):
        return hub_stream_splits(name.removeprefix("hfids/"), folder)
    if name.startswith("wds/"):
        return shard_splits((folder or Path()) / Path(name.removeprefix("wds/")).expanduser())
    path = (folder or Path()) / Path(name).expanduser()
    if path.is_dir():
        is_parquet = any(path.glob("*.parquet"))
        return parquet_splits(path) if is_parquet else folder_splits(path)
    if path.suffix.lower() == ".parquet" and path.exists():
        return parquet_splits(path)
    if path.exists():
        raise UserError(
            f"Got the file {path} as data, expected a folder of class folders or a .parquet file."
        )
    names = ("digits", *TORCHVISION_SETS)
    raise UserError(
        f"There is no data at {path}, expected a path that exists, {', '.join(names)}, hfds/NAME, "
        f"hfids/NAME or wds/PATH.{did_you_mean(name, names)}"
    )
