"""One door to every kind of weights: a path, a hub id or a published name."""

import re
from dataclasses import replace
from pathlib import Path

from cvt.errors import UserError, did_you_mean
from cvt.systems.catalog import ROWS, system_of
from cvt.weights.checkpoint import (
    METADATA_KEY,
    load_checkpoint,
    no_such_file,
    read_safetensors,
    record_of,
)
from cvt.weights.demo import DEMO, demo_file
from cvt.weights.hub import fetch
from cvt.weights.hugging_face import WEIGHT_FILES, read_hugging_face, read_json
from cvt.weights.layouts import StateDict, identify, recognise, strip_wrappers
from cvt.weights.pickles import read_pickle
from cvt.weights.published import (
    PUBLISHED,
    Published,
    find_published,
    imagenet_class_names,
    published_file,
)
from cvt.weights.record import Record
from cvt.weights.row_preprocessing import preprocessing_of_row
from cvt.weights.timm_folder import read_timm_folder
from cvt.weights.variant import recognise_variant

RUN_FILES = ("best.safetensors", "last.safetensors")
FILE_SUFFIXES = (".safetensors", ".pth", ".pth.tar", ".pt", ".bin")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def open_weights(source: str | Path) -> tuple[StateDict, Record]:
    """Reads weights, under our names and on the CPU, and the record that says how to use them.

    A file or folder in any of the layouts describes itself as far as it can. Tensors alone are
    recognised by their names and shapes; if their file has one of the published names they get
    what is published about them, or else their system's preprocessing and no class names.

    Args:
        source: Our `.safetensors` or a run's folder; a `.pth` of Microsoft's or of another
            system's authors, a state dict or training checkpoint; a Hugging Face or timm folder,
            or a weights file; a hub id such as `microsoft/cvt-13`; a published name such as
            `cvt_13.msft_in1k`; `demo`, the small model that comes along.

    Raises:
        UserError: There is nothing there, or no network of ours; offline, a download.
    """
    path = Path(source)
    if path.is_dir():
        return _open_folder(path)
    if path.is_file():
        return _open_file(path)
    if str(source) == DEMO:
        return load_checkpoint(demo_file())
    published = find_published(str(source))
    if published is not None:
        state_dict, record = _open_folder(fetch(published.hub_id))
        return state_dict, _as_published(record, published, published.hub_id)
    if _is_hub_id(str(source)):
        state_dict, record = _open_folder(fetch(str(source)))
        return state_dict, replace(record, source=str(source))
    raise _nothing_there(path)


def names_weights(source: str) -> bool:
    """Whether a file or folder that exists holds weights; of other names it says nothing."""
    path = Path(source)
    if path.is_dir():
        return any((path / name).is_file() for name in (*RUN_FILES, "config.json"))
    return path.is_file() and path.name.endswith(FILE_SUFFIXES)


def _open_folder(folder: Path) -> tuple[StateDict, Record]:
    for name in RUN_FILES:
        if (folder / name).is_file():
            return load_checkpoint(folder / name)
    if not (folder / "config.json").is_file():
        raise UserError(
            f"There is no checkpoint in the folder {folder}, expected {RUN_FILES[0]} (a run) or "
            "config.json with weights (Hugging Face, timm)."
        )
    if "architecture" in read_json(folder / "config.json"):
        return read_timm_folder(folder)
    return read_hugging_face(folder)


def _open_file(path: Path) -> tuple[StateDict, Record]:
    if path.suffix == ".safetensors":
        state_dict, metadata = read_safetensors(path)
        if METADATA_KEY in metadata:
            return state_dict, record_of(metadata, source=str(path))
    if path.name in WEIGHT_FILES and (path.parent / "config.json").is_file():
        return _open_folder(path.parent)
    if path.suffix != ".safetensors":
        state_dict = read_pickle(path)
    return _describe(state_dict, path)


def _describe(state_dict: StateDict, path: Path) -> tuple[StateDict, Record]:
    """Makes a record for tensors that come without one.

    In another's layout they are taken for what that other has published, and have its licence;
    of CvT's, a file with a published name does.
    """
    ours, systems = identify(state_dict, source=str(path))
    model, spec = recognise_variant(ours, source=str(path), systems=systems, file_name=path.name)
    is_theirs = recognise(strip_wrappers(state_dict)) is None
    record = Record(
        model=model,
        spec=spec,
        preprocessing=preprocessing_of_row(model, spec),
        licence=system_of(model).licence or None if is_theirs else None,
        source=str(path),
    )
    published = published_file(path.name)
    if published is not None and published.model == model and spec == ROWS[model]:
        record = _as_published(record, published, str(path))
    return ours, record


def _as_published(record: Record, published: Published, source: str) -> Record:
    """Fills in what is known of a published checkpoint, over what its folder says or omits.

    The hub's configurations have CvT-13's drop-path rate throughout, hence the row's own spec.
    """
    return replace(
        record,
        model=published.model,
        spec=ROWS[published.model],
        preprocessing=published.preprocessing,
        class_names=record.class_names or imagenet_class_names(),
        metrics={"top1": published.top1},
        licence=published.licence,
        source=source,
    )


def _is_hub_id(source: str) -> bool:
    """Whether it reads as `owner/name`, and not as a path to something that isn't there."""
    is_file_name = source.endswith(FILE_SUFFIXES)
    owner = Path(source.partition("/")[0])
    return bool(_HUB_ID.fullmatch(source)) and not is_file_name and not owner.exists()


def _nothing_there(path: Path) -> UserError:
    if path.name.endswith(FILE_SUFFIXES) or len(path.parts) > 1:
        return no_such_file(path)
    return UserError(
        f"There are no weights {str(path)!r}, expected a file, a folder, a hub id such as "
        f"'microsoft/cvt-13' or a published name.{did_you_mean(str(path), PUBLISHED)}"
    )
