"""Models by the names of `cvt bench`: ours, transformers' CvT, timm's, and a user's own."""

import importlib
import os
import sys
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from cvt.bench.names import Contender, read_contender
from cvt.errors import UserError, did_you_mean
from cvt.systems.catalog import ROWS
from cvt.systems.cvt import PAPER_ROWS
from cvt.systems.timm_networks import PREFIX, timm_row

if TYPE_CHECKING:
    from torch import nn


HF = "hf/"


def is_checkpoint(name: str) -> bool:
    """Whether a name is that of trained weights on this machine: a file, a folder, or shipped."""
    if name in ROWS or name.startswith((HF, PREFIX)) or ":" in name:
        return False
    # All of torch and timm comes with it, which planning can do without for other names.
    from cvt.weights.published import shipped_file
    from cvt.weights.source import FILE_SUFFIXES, names_weights

    if shipped_file(name) is not None or name.endswith(FILE_SUFFIXES):
        return True
    return os.path.isdir(name) and names_weights(name)


def check_name(name: str) -> None:
    """Refuses a name that is no model's, as far as that can be told without building one."""
    if is_checkpoint(name):
        from cvt.weights.published import shipped_file

        if shipped_file(name) is None and not os.path.exists(name):
            raise UserError(f"There is no file {name}; name a checkpoint that is there.")
        return
    if ":" in name:
        return
    if name.startswith(PREFIX):
        timm_row(read_contender(name).model)
        return
    prefix, rows = (HF, PAPER_ROWS) if name.startswith(HF) else ("", tuple(ROWS))
    contender = read_contender(name.removeprefix(prefix))
    if contender.model in rows:
        ROWS[contender.model].change(**contender.model_args)
        return
    known = [prefix + row for row in rows]
    hint = did_you_mean(prefix + contender.model, known)
    more = " `cvt models` lists ours; or name a checkpoint, hf/, timm/ or module:callable."
    if prefix:
        more = f" There are {', '.join(known)}."
    raise UserError(f"Unknown model {name!r}.{hint}{more}")


def build(name: str, image_size: int) -> "nn.Module":
    """Builds a model, on the default device, without downloading anything.

    Its weights are fresh, but for a checkpoint's.

    Args:
        name: A row of `cvt models`, changed in a field if need be, as in `cvt_13+kv_stride=1`;
            a checkpoint's file, a run's folder or `demo`, as `cvt.load` takes them;
            `hf/` and a row of the paper's, for transformers' CvT built from the same figures;
            `timm/` and a name of timm's, with changes likewise; or `module:callable`, called
            without arguments, from an installed module or else from one in the current folder.
        image_size: Side of the images that it will see, for position tables.
    """
    check_name(name)
    if is_checkpoint(name):
        from cvt.zoo.create import load

        return load(name, img_size=(image_size, image_size))
    if name.startswith(HF):
        return _of_transformers(read_contender(name.removeprefix(HF)))
    if ":" in name:
        return _of_user(name)
    from cvt.zoo.create import create_model

    ours = read_contender(name)
    changes: dict[str, Any] = {"img_size": (image_size, image_size), **ours.model_args}
    return create_model(ours.model, **changes)


def _of_transformers(contender: Contender) -> "nn.Module":
    """transformers' CvT with the figures of a row of ours; it has no position tables."""
    try:
        from transformers import CvtConfig, CvtForImageClassification
    except ImportError:
        raise UserError(
            f"Model 'hf/{contender.label}' needs transformers; install it with: "
            "pip install 'cvt[hf]'."
        ) from None
    from cvt.weights.hugging_face import check_expressible, config_of_record
    from cvt.weights.record import Record

    spec = ROWS[contender.model].change(**contender.model_args)
    check_expressible(spec, "hugging_face")
    config = config_of_record(Record(model=contender.model, spec=spec))
    return CvtForImageClassification(CvtConfig(**config))


def _of_user(name: str) -> "nn.Module":
    from torch import nn

    module, _, function = name.partition(":")
    before = list(sys.path)
    try:
        # Behind all that is installed: who names a module here wants it run, and nothing else.
        sys.path.append(os.getcwd())
        model = attrgetter(function)(importlib.import_module(module))()
    except Exception as error:  # whatever somebody else's code raises
        said = " ".join(f"{type(error).__name__}: {error}".split())
        file = getattr(sys.modules.get(module), "__file__", None)
        where = f" from {file}" if file else ""
        raise UserError(f"Got {name!r}, which gave no model{where} ({said}).") from error
    finally:
        sys.path[:] = before
    if not isinstance(model, nn.Module):
        raise UserError(
            f"Got {name!r}, which returned {type(model).__name__}, expected a torch.nn.Module."
        )
    return model


def channels_of(model: "nn.Module") -> int:
    """Returns the channels of the images that a model takes, by what it says of itself, or 3."""
    config = getattr(model, "config", None)
    told = getattr(model, "in_chans", None) or getattr(config, "num_channels", 3)
    return told if isinstance(told, int) else 3
