"""Flags that several verbs share, and what is said of those that no verb has."""

from dataclasses import dataclass
from typing import Annotated

from cyclopts import Parameter, UnknownOptionError

from cvt.errors import did_you_mean

Checkpoint = Annotated[
    str,
    Parameter(
        help="A run folder, a checkpoint file, a hub id, the name of published weights, or "
        "timm/NAME.TAG."
    ),
]
Json = Annotated[
    bool, Parameter(name="--json", negative="", show_default=False, help="Print a JSON object.")
]
JsonLines = Annotated[
    bool,
    Parameter(name="--json", negative="", show_default=False, help="Print JSON, an object a line."),
]
Device = Annotated[
    str, Parameter(help="cpu, cuda, cuda:1, mps, ...; auto takes an accelerator if there is one.")
]
Precision = Annotated[
    str, Parameter(help="float32, bf16 or fp16; auto is bf16 on GPUs that compute in it.")
]


@dataclass(frozen=True, kw_only=True)
class DataFlags:
    """Where the data lies."""

    data_dir: str | None = None
    """Where torch/ and hfds/ data lie."""
    download: Annotated[bool, Parameter(negative="", show_default=False)] = False
    """Fetch a torch/ data set that is not there yet."""


@dataclass(frozen=True, kw_only=True)
class MeasureFlags:
    """How images go through a model that is measured."""

    batch_size: int = 64
    """Images per forward pass, in each process."""
    num_workers: int = 0
    """Processes that prepare images; 0: none."""
    device: Device = "auto"
    precision: Precision = "auto"


# --- Flags that there are not.

# What a comparison sets for each run.
_OF_EACH_RUN = {
    "epochs": "The training that each one gets is --budget, as in 30epochs.",
    "updates": "The training that each one gets is --budget, as in 100000images.",
    "minutes": "The training that each one gets is --budget, as in 10minutes.",
    "patience": "All are trained to the end of their --budget.",
    "seed": "How many seeds there are is --seeds.",
    "resume": "The same command again goes on with its results folder.",
    "force": "Give another --out for another comparison.",
    "model": "Networks are NAMES, as in cvt_nano_32; for cvt ablate, --base NAME.",
    "model-args": "Changes stand behind a name, as in cvt_nano_32+kv_stride=1.",
    "weights": "All are trained from scratch.",
}

# What other trainers have, by the words of theirs.
_INSTEAD = {
    "early-stop": "What stops early is --patience, in epochs.",
    "early-stopping": "What stops early is --patience, in epochs.",
    "learning-rate": "The peak learning rate is --lr.",
    "gpus": "The device is --device; several GPUs train together under torchrun.",
    "amp": "The arithmetic is --precision.",
    "fp16": "The arithmetic is --precision fp16.",
    "pretrained": "Weights to start from are --weights.",
}


def explain_unknown(error: UnknownOptionError) -> str:
    """Returns a sentence about a flag that a verb does not have, naming the nearest one if any.

    A flag of a group is found by its last part too: `--lr` is `--optim.lr`.
    """
    given = (error.token.keyword or error.token.value or "").partition("=")[0]
    known = [name for each in error.argument_collection for name in each.names if each.parse]
    said = f"Unknown option: {given}."
    word = given.lstrip("-").replace("_", "-").lower()
    if word in _INSTEAD and "--epochs" in known:
        return f"{said} {_INSTEAD[word]}"
    if "--budget" in known and word.partition(".")[0] in _OF_EACH_RUN:
        return f"{said} {_OF_EACH_RUN[word.partition('.')[0]]}"
    last = {name.lstrip("-").rpartition(".")[2]: name for name in reversed(known)}
    if word in last:
        return f"{said} Did you mean {last[word]}?"
    near = {name.lstrip("-"): name for name in known if name.startswith("--")}
    hint = did_you_mean(word, near, cutoff=0.7) or did_you_mean(word, last, cutoff=0.7)
    nearest = hint.removeprefix(" Did you mean '").removesuffix("'?")
    return f"{said} Did you mean {near.get(nearest) or last[nearest]}?" if hint else said
