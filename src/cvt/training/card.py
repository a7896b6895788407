"""The card of a finished run: what was trained, on what, how, how good it is, how to use it."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

from cvt.errors import shown
from cvt.files import atomic_write
from cvt.tables import code, table, text
from cvt.training.config import TrainConfig
from cvt.training.report import TrainResult
from cvt.training.run_folder import (
    BEST_WEIGHTS,
    CARD_FILE,
    CONFIG_FILE,
    CURVES_FILE,
    METRICS_FILE,
    EpochRow,
)
from cvt.training.screen import flat, say_memory, say_time, say_value
from cvt.weights.published import PUBLISHED
from cvt.weights.record import Record

# --- The YAML on top of a card, in the words of the Hugging Face hub.

_PAPER = "2103.15808"
# Where torchvision's data sets are on the hub.
_ON_HUB = {
    "torch/cifar10": "uoft-cs/cifar10",
    "torch/cifar100": "uoft-cs/cifar100",
    "torch/imagenet": "ILSVRC/imagenet-1k",
}
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_LICENCES = ("apache-2.0", "mit", "bsd-3-clause", "cc-by-4.0", "cc-by-nc-4.0", "cc0-1.0")


def header(config: TrainConfig, record: Record, result: TrainResult) -> list[str]:
    """Returns the lines between `---` and `---`, the accuracies as shares of 1 as the hub has them.

    What is not known is left out: a licence, a data set or base model that the hub does not have.
    """
    from huggingface_hub import EvalResult, ModelCardData

    figures = {"validation": result.best_top1, "test": result.test_top1}
    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type=_dataset(config.data) or config.data,
            dataset_name=config.data,
            dataset_split=split,
            metric_type="accuracy",
            metric_name=f"top-1, {split}",
            metric_value=round(top1 / 100, 6),
        )
        for split, top1 in figures.items()
        if top1 is not None
    ]
    licence, dataset = _licence(record.licence), _dataset(config.data)
    data = ModelCardData(
        library_name="cvt",
        pipeline_tag="image-classification",
        tags=["image-classification", "cvt", "pytorch", *_paper_tag(record.model)],
        datasets=[dataset] if dataset else None,
        base_model=_base_model(config.weights),
        metrics=["accuracy"],
        model_name=result.run.resolve().name,
        eval_results=results,
        license=licence,
        license_name=record.licence if licence == "other" else None,
    )
    return ["---", *data.to_yaml().rstrip().splitlines(), "---"]


def _licence(licence: str | None) -> str | None:
    """The hub's own spelling, or `other`, which a name then goes with."""
    if licence is None or licence.lower() in _LICENCES:
        return licence and licence.lower()
    return "other"


def _dataset(data: str) -> str | None:
    name = data.removeprefix("hfds/")
    if name == data:
        return _ON_HUB.get(data)
    is_local = Path(name).exists() or not _HUB_NAME.fullmatch(name)
    return None if is_local else name


def _base_model(weights: str | None) -> str | None:
    ids = {name: each.hub_id for name, each in PUBLISHED.items()}
    return ids.get(weights or "") or (weights if weights in ids.values() else None)


def _paper_tag(model: str) -> list[str]:
    return [f"arxiv:{_PAPER}"] if model.startswith("cvt_") else []


_CLASSES_NAMED = 20
_BAD_NAMED = 10
_CALL = ("out", "resume", "force", "download")  # how the run was called, not what it did


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """What a card says beyond config, record, history and result.

    Args:
        num_params: Parameters of the model.
        num_train: Pictures of the training split; likewise the other two, 0 for no test split.
        val_was_cut: Whether the validation split was cut from the training pictures.
        hardware: What the run ran on.
        processes: How many trained together.
        software: Versions by name.
        ece: Expected calibration error on the last split measured, 0 to 1, where known.
        notes: Sentences about the data or the run that the reader should know.
    """

    num_params: int
    num_train: int
    num_val: int
    num_test: int
    val_was_cut: bool
    hardware: str
    processes: int
    software: Mapping[str, str]
    ece: float | None = None
    notes: Sequence[str] = ()


def write_card(
    config: TrainConfig,
    record: Record,
    result: TrainResult,
    history: Sequence[EpochRow],
    facts: CardFacts,
) -> Path:
    """Writes `README.md` into the run's folder, laid out as a Hugging Face model card.

    Args:
        config: As it was filled in.
        record: Of the model that was trained.
        history: All epochs.

    Raises:
        UserError: The disk is full or the folder not writable.
    """
    name = result.run.resolve().name
    lines = [
        *header(config, record, result),
        "",
        f"# {text(name)}",
        "",
        *_what(config, record, facts),
        "",
        *_how_good(config, result, history, facts),
        "",
        *_use(name, record),
        "",
        *_how(config, history, facts),
        "",
        *_limits(config, result, history, facts),
    ]
    path = result.run / CARD_FILE
    with atomic_write(path, "w") as file:
        file.write("\n".join(lines) + "\n")
    return path


def interval(top1: float, num_images: int) -> tuple[float, float]:
    """Returns Wilson's 95 % interval of a percentage that was measured on so many pictures.

    Wilson, J. Amer. Statist. Assoc. 22 (1927): unlike the usual one it stays within 0 and 100.
    """
    z, share = 1.959964, top1 / 100
    spread = 1 + z**2 / num_images
    middle = (share + z**2 / (2 * num_images)) / spread
    half = z * math.sqrt(share * (1 - share) / num_images + z**2 / (4 * num_images**2)) / spread
    return 100 * max(middle - half, 0), 100 * min(middle + half, 1)


def _what(config: TrainConfig, record: Record, facts: CardFacts) -> list[str]:
    start = f"from the weights {code(config.weights)}" if config.weights else "from scratch"
    side = " x ".join(map(str, record.preprocessing.size))
    taught = ""
    if config.is_taught:
        taught = f", taught by {code(config.teacher)} ({config.distill.kind} distillation)"
    lines = [
        f"An image classifier: {code(record.model)} with {facts.num_params:,} parameters, for "
        f"images of {side} pixels, trained {start} on {code(config.data)}{taught}.",
    ]
    if record.model.startswith("cvt_"):
        lines += [
            "The architecture is CvT's, [Introducing Convolutions to Vision "
            "Transformers](https://arxiv.org/abs/2103.15808) (Wu et al., ICCV 2021).",
        ]
    lines += ["", f"Licence: {text(record.licence) if record.licence else 'none was stated'}."]
    names = record.class_names or ()
    if 0 < len(names) <= _CLASSES_NAMED:
        lines += ["", f"{len(names)} classes: {', '.join(text(each) for each in names)}."]
    else:
        known = ", whose names are in the checkpoint" if names else ""
        lines += ["", f"{record.spec.num_classes:,} classes{known}."]
    return lines


def _how_good(
    config: TrainConfig, result: TrainResult, history: Sequence[EpochRow], facts: CardFacts
) -> list[str]:
    measured = [("validation", facts.num_val, result.best_top1, result.best_loss)]
    if result.test_top1 is not None and result.test_loss is not None:
        measured += [("test", facts.num_test, result.test_top1, result.test_loss)]
    rows = []
    for split, count, top1, loss in measured:
        low, high = interval(top1, count)
        rows += [(split, f"{count:,}", f"{top1:.2f}", f"{low:.2f} to {high:.2f}", f"{loss:.4f}")]
    lines = ["## How good it is", ""]
    lines += table(("split", "images", "top-1 %", "95 % interval", "loss (nats)"), rows)
    kept = f"The weights are those after epoch {result.best_epoch} of {len(history)}"
    averaged = f", averaged with decay {config.ema_decay:g}" if config.ema_decay else ""
    lines += ["", f"{kept}{averaged}, the best on the validation split."]
    if facts.ece is not None:
        lines += [f"Expected calibration error on the {measured[-1][0]} split (15 bins): "
                  f"{100 * facts.ece:.2f} %."]  # fmt: skip
    lines += ["", f"![Loss, validation accuracy and learning rate by epoch]({CURVES_FILE})"]
    return [
        *lines,
        "",
        f"Every epoch in figures: [{METRICS_FILE}]({METRICS_FILE}). The training loss is the "
        "recipe's, augmentation, mixing and smoothing included; the others are cross-entropy.",
    ]


def _use(name: str, record: Record) -> list[str]:
    width, height = record.preprocessing.size[::-1]
    return [
        "## How to use it",
        "",
        "From the folder that this one lies in:",
        "",
        "```sh",
        f"cvt predict {shown(quote(name))} photo.jpg",
        "```",
        "",
        "```python",
        "import cvt",
        "",
        f"predictor = cvt.Predictor({json.dumps(name)})  # preprocessing and labels come along",
        'print(predictor("photo.jpg")[0].labels)',
        "",
        f"model = cvt.load({json.dumps(name)})  # or the torch module, for {width}x{height} pixels",
        "```",
        "",
        f"{code(BEST_WEIGHTS)} is enough by itself: the file says how to build and feed the model.",
    ]


def _how(config: TrainConfig, history: Sequence[EpochRow], facts: CardFacts) -> list[str]:
    seconds = sum(row.seconds for row in history)
    images = sum(row.images_per_s * row.seconds for row in history)
    waited = sum(row.data_wait * row.seconds for row in history)
    rows = [
        ("training images", f"{facts.num_train:,}"),
        ("machine", text(facts.hardware)),
        ("processes", str(facts.processes)),
        ("training time", f"{say_time(seconds)}, validation not counted"),
        ("images/s in training", f"{images / max(seconds, 1e-9):,.0f}"),
        ("time waited for data", f"{waited / max(seconds, 1e-9):.0%}"),
        ("peak memory", say_memory(max((row.memory_mb for row in history), default=0.0))),
        ("software", ", ".join(text(f"{name} {found}") for name, found in facts.software.items())),
    ]
    settings = [
        (code(name), code(say_value(value)))
        for name, value in flat(config.to_dict()).items()
        if value is not None and value != {} and name not in _CALL
    ]
    return [
        "## How it was trained",
        "",
        *table(("", ""), rows),
        "",
        f"The whole recipe, derived values included, as in [{CONFIG_FILE}]({CONFIG_FILE}); "
        f"`cvt train -c {CONFIG_FILE} --out ANOTHER_FOLDER` runs it again:",
        "",
        *table(("setting", "value"), settings),
    ]


def _limits(
    config: TrainConfig, result: TrainResult, history: Sequence[EpochRow], facts: CardFacts
) -> list[str]:
    said = [
        f"The validation split chose the best of {len(history)} epochs, so its figure flatters."
        if len(history) > 1
        else "The validation split has the figure of the only epoch.",
    ]
    if result.test_top1 is None:
        said += ["There was no test split: nothing here is measured on images unseen till the end."]
    else:
        said += ["The test split was measured once, after training."]
    if facts.val_was_cut:
        said += [
            f"The validation images are {config.val_fraction:.0%} of the training images, held "
            "out; images alike on both sides of the cut would flatter as well."
        ]
    said += [
        f"It is one run with seed {config.seed}; another seed gives another figure. The intervals "
        "know only how many images were measured.",
        "Images from other sources, other cameras or other times were not measured.",
        *(text(note) for note in facts.notes),
    ]
    lines = ["## What the figures do not say", "", *(f"- {sentence}" for sentence in said)]
    if result.bad:
        count = len(result.bad)
        lines += [f"- {count:,} image{'s' * (count > 1)} could not be read and "
                  f"{'were' if count > 1 else 'was'} left out:", ""]  # fmt: skip
        lines += [f"  - {text(sentence)}" for sentence in result.bad[:_BAD_NAMED]]
        lines += [f"  - and {count - _BAD_NAMED:,} more"] * (count > _BAD_NAMED)
    return lines
