"""One door to every kind of weights: a path, a hub id or a published name."""

import os
import re
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from cvt.errors import UserError, did_you_mean, first_line, remark
from cvt.files import url_in
from cvt.parts.spec import Spec
from cvt.systems.catalog import ROWS, SYSTEMS, make_network, system_of
from cvt.systems.cvt import CVT
from cvt.systems.timm_networks import PREFIX, split_name, timm_config, timm_row
from cvt.weights.checkpoint import (
    METADATA_KEY,
    load_checkpoint,
    no_such_file,
    read_safetensors,
    record_of,
)
from cvt.weights.fit import check_described, recognise_variant
from cvt.weights.hugging_face import (
    INDEX_FILES,
    PREPROCESSOR_FILE,
    WEIGHT_FILES,
    read_hugging_face,
    read_json,
    shard_files,
)
from cvt.weights.layouts import StateDict, identify
from cvt.weights.pickles import read_pickle
from cvt.weights.published import (
    PUBLISHED,
    SHIPPED,
    Published,
    find_published,
    imagenet_class_names,
    published_file,
    shipped_file,
)
from cvt.weights.record import Preprocessing, Record, preprocessing_of_row
from cvt.weights.timm_folder import read_timm_folder

_TIMEOUT_S = 5


def fetch(repo_id: str) -> Path:
    """Returns a local folder with a hub repository's configuration and weights.

    Asks once whether the hub can be reached, instead of the half minute of retries that a
    download spends on it, and falls back to what an earlier download left in the cache.
    """
    online = _reachable()
    config = _file(repo_id, "config.json", online)
    _file(repo_id, PREPROCESSOR_FILE, online)
    if config and any(_weights(repo_id, name, online) for name in (*WEIGHT_FILES, *INDEX_FILES)):
        return config.parent
    if online:
        raise UserError(
            f"The hub repository {repo_id!r} has no config.json or none of "
            f"{', '.join((*WEIGHT_FILES, *INDEX_FILES))}, expected a model of transformers or timm."
        )
    raise _out_of_reach(repo_id)


def is_out_of_reach(repo_id: str) -> bool:
    """Whether the hub cannot be reached and its cache has no weights of a repository."""
    return not _reachable() and not any(_file(repo_id, name, False) for name in WEIGHT_FILES)


def _weights(repo_id: str, name: str, online: bool) -> bool:
    """Fetches the weights in one file, or those in all that an index names."""
    path = _file(repo_id, name, online)
    if path is None or name not in INDEX_FILES:
        return path is not None
    files = dict.fromkeys(shard_files(path).values())
    missing = [each for each in files if _file(repo_id, each, online) is None]
    if missing and online:
        raise UserError(f"The hub repository {repo_id!r} lacks {missing[0]}, which {name} names.")
    return not missing


def _reachable() -> bool:
    from huggingface_hub import constants, get_session
    from huggingface_hub.errors import HTTPError

    try:
        get_session().head(constants.ENDPOINT, timeout=_TIMEOUT_S)
    except (OSError, HTTPError):  # offline mode set by the user is an OSError as well
        return False
    return True


def _file(repo_id: str, name: str, online: bool) -> Path | None:
    """Downloads one file, or finds it in the cache; None if there is no such file."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HFValidationError,
        HTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        return Path(hf_hub_download(repo_id, name, local_files_only=not online))
    except LocalEntryNotFoundError as error:
        if online:  # the hub's front page answers, its files don't
            raise _out_of_reach(repo_id) from error
        return None
    except EntryNotFoundError:
        return None
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise UserError(
            f"There is no file or folder {repo_id!r} here, and the Hugging Face hub, which was "
            "asked for it, has no repository of that name that you can read; check the path, or "
            "the hub's OWNER/NAME."
        ) from error
    except (OSError, HTTPError) as error:
        raise UserError(f"Downloading {name} of {repo_id!r} failed: {first_line(error)}") from error


def _out_of_reach(repo_id: str) -> UserError:
    return UserError(
        f"Cannot get {repo_id!r}: no file or folder here has that name, the Hugging Face hub is "
        "out of reach, and its cache does not have the weights; go online, give the path of a file "
        "that you have, or take 'demo', which comes along."
    )


# --- timm's pretrained weights, which timm downloads, by `timm/NAME` or `timm/NAME.TAG`.


def record_of_timm(name: str) -> Record:
    """Returns what timm knows of its weights; nothing is downloaded."""
    from timm.data import infer_imagenet_subset

    cfg, spec, (architecture, _) = timm_config(name), timm_row(name), split_name(name)
    if not any(cfg.get(each) for each in ("hf_hub_id", "url", "file")):
        raise UserError(
            f"timm has no trained weights of {architecture!r}; train it by --model "
            f"{PREFIX}{architecture}, or give the path of weights that you have."
        )
    subset = infer_imagenet_subset(dict(cfg))
    names = imagenet_class_names(subset) if subset else ()
    return Record(
        model=PREFIX + architecture,
        spec=spec,
        preprocessing=Preprocessing.from_timm(dict(cfg)),
        class_names=names if len(names) == spec.num_classes else None,
        licence=cfg.get("license"),
        source=name,
    )


def trained_timm(name: str, spec: Spec, **options: Any) -> Any:
    """Builds a network of timm's with the weights of `timm/NAME.TAG`, from its cache or the hub.

    Args:
        options: What timm's builder takes besides.
    """
    from huggingface_hub.errors import HTTPError

    architecture, tag = split_name(name)
    hub_id = timm_config(name).get("hf_hub_id")
    # Asked once, instead of the minute that timm's retries take.
    away = hub_id and "pretrained_cfg_overlay" not in options and is_out_of_reach(hub_id)
    failure: Exception | None = None
    try:
        if not away:
            return make_network(spec, pretrained=True, pretrained_cfg=tag or None, **options)
    except (OSError, HTTPError) as error:  # being offline is an OSError too
        failure = error
    raise UserError(
        f"Cannot get timm's weights of {architecture!r}: they are not in the cache and cannot be "
        f"downloaded now; go online, give the path of weights that you have, or train from "
        f"scratch by --model {PREFIX}{architecture}."
    ) from failure


# --- Files and folders of any layout.

RUN_FILES = ("best.safetensors", "last.safetensors")
FILE_SUFFIXES = (".safetensors", ".pth", ".pth.tar", ".pt", ".bin", ".ckpt")
HUB_PREFIXES = ("hf-hub:", "hf_hub:")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
# What a path to a file ends in; a hub id may hold dots too, as timm's do.
_SUFFIX = re.compile(
    r"\.(onnx|pt2|xml|pte|tar|zip|gz|npz?|pkl|h5|parquet|csv|txt|json|ya?ml|py|md"
    r"|jpe?g|png|webp|bmp|gif|tiff?|heic)$",
    re.IGNORECASE,
)
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # what torch.save once began with


def open_weights(source: str | Path) -> tuple[StateDict, Record]:
    """Reads weights, under our names and on the CPU, and the record that says how to use them.

    A file or folder in any of the layouts describes itself as far as it can. Tensors alone are
    recognised by their names and shapes; if their file has one of the published names they get
    what is published about them, or else their system's preprocessing and no class names.

    The tensors are compared with the network that is described, before one is built, and have to be
    finite numbers.

    Args:
        source: Our `.safetensors` or a run's folder; a `.pth` of Microsoft's or of another
            system's authors, a state dict or training checkpoint; a Hugging Face or timm folder,
            or a weights file; a hub id such as `microsoft/cvt-13`; a published name such as
            `cvt_13.msft_in1k`, or that of weights that come along, of which `demo` is the best;
            `timm/NAME` or `timm/NAME.TAG`, timm's network with the weights that timm has of it.
            What exists as a path is that; `hf-hub:OWNER/NAME` is a hub id in any case.
    """
    state_dict, record = _open(str(source) or ".")
    return check_described(state_dict, record, source=str(source)), record


def names_weights(source: str) -> bool:
    """Whether a file or folder that exists holds weights; of other names it says nothing."""
    if os.path.isdir(source):
        return any(os.path.isfile(Path(source) / name) for name in (*RUN_FILES, "config.json"))
    return os.path.isfile(source) and (source.endswith(FILE_SUFFIXES) or bool(_format_of(source)))


def _open(source: str) -> tuple[StateDict, Record]:
    # os.path, since pathlib's own questions fail for names that are too long.
    if os.path.isdir(source):
        if find_published(source):
            remark(
                f"Took the folder {os.path.abspath(source)}, not the hub's repository of this "
                f"name; write {HUB_PREFIXES[0]}{source} for that."
            )
        return _open_folder(Path(source))
    if os.path.isfile(source):
        return _open_file(Path(source))
    if (file := shipped_file(source)) is not None:
        return load_checkpoint(file)
    if source.startswith(PREFIX):
        record = record_of_timm(source)
        return trained_timm(source, record.spec).state_dict(), record
    prefix = next(filter(source.startswith, HUB_PREFIXES), None)
    hub_id = source.removeprefix(prefix) if prefix else ""
    published = find_published(hub_id or source)
    if published is not None:
        state_dict, record = _open_folder(fetch(published.hub_id))
        return state_dict, _as_published(record, published, published.hub_id)
    if hub_id and not _HUB_ID.fullmatch(hub_id):
        raise UserError(
            f"Got {source!r}, expected hf-hub:OWNER/NAME, as in hf-hub:microsoft/cvt-13."
        )
    if hub_id or _is_hub_id(source):
        state_dict, record = _open_folder(fetch(hub_id or source))
        return state_dict, replace(record, source=hub_id or source)
    raise _nothing_there(Path(source))


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
    is_safetensors = (_format_of(path) or path.suffix) in ("safetensors", ".safetensors")
    if is_safetensors:
        state_dict, metadata = read_safetensors(path)
        if METADATA_KEY in metadata:
            return state_dict, record_of(metadata, source=str(path))
    if path.name in (*WEIGHT_FILES, *INDEX_FILES) and (path.parent / "config.json").is_file():
        return _open_folder(path.parent)
    if not is_safetensors:
        state_dict = read_pickle(path)
    return _describe(state_dict, path)


def _format_of(path: str | Path) -> str:
    """`safetensors` or `pickle` by the first bytes, whatever a file is called; "" for others."""
    try:
        with open(path, "rb") as file:
            start, size = file.read(16), os.fstat(file.fileno()).st_size
        if start[8:9] == b"{" and 2 <= int.from_bytes(start[:8], "little") <= size - 8:
            return "safetensors"
        if start.startswith(b"PK\x03\x04"):
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
            return "pickle" if any(name.endswith("data.pkl") for name in names) else ""
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):
        return ""
    return "pickle" if start.startswith(_LEGACY) else ""


def _describe(state_dict: StateDict, path: Path) -> tuple[StateDict, Record]:
    """Makes a record for tensors that come without one.

    In another's layout they are taken for what that other has published, and have its licence;
    of CvT's, a file with a published name does.
    """
    ours, systems = identify(state_dict, source=str(path))
    model, spec = recognise_variant(ours, source=str(path), systems=systems, file_name=path.name)
    is_theirs = systems not in (SYSTEMS, (CVT,))
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
    is_file_name = source.endswith(FILE_SUFFIXES) or bool(_SUFFIX.search(source))
    is_path = os.path.exists(source.partition("/")[0])
    return bool(_HUB_ID.fullmatch(source)) and not is_file_name and not is_path


def _nothing_there(path: Path) -> UserError:
    if (url := url_in(path)) is not None:
        return UserError(
            f"Got the URL {url}, and nothing is fetched but from the Hugging Face hub, by "
            "OWNER/NAME; download it and name the file."
        )
    if path.name.endswith(FILE_SUFFIXES) or len(path.parts) > 1:
        return no_such_file(path)
    return UserError(
        f"There are no weights {str(path)!r}, expected a file, a folder, a hub id such as "
        f"'microsoft/cvt-13' or a published name.{did_you_mean(str(path), [*PUBLISHED, *SHIPPED])}"
    )
