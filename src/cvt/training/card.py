"""The card of a finished run: what was trained, on what, how, how good it is, how to use it."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

from cvt.errors import shown
from cvt.evaluation import ClassScore
from cvt.files import atomic_write
from cvt.tables import cell, code, table, text
from cvt.training.config import TrainConfig
from cvt.training.report import TrainResult, export_name, interval
from cvt.training.run_folder import (
    BATCH_FILE,
    BEST_WEIGHTS,
    CARD_FILE,
    CONFIG_FILE,
    CONFUSION_FILE,
    CURVES_FILE,
    METRICS_FILE,
    MISTAKES_FILE,
    MISTAKES_TABLE,
    EpochRow,
)
from cvt.training.screen import CALL, flat, say_memory, say_time, say_value
from cvt.weights.published import PUBLISHED
from cvt.weights.record import Record

_TEMPLATE = """\
---
{{ card_data }}
---

# {{ text(name) }}

An image classifier: {{ code(record.model) }} with {{ "{:,}".format(facts.num_params) }} \
parameters, for images of {{ height }} x {{ width }} pixels, trained from \
{% if config.weights %}the weights {{ code(config.weights) }}{% else %}scratch{% endif %} \
on {{ code(config.data) }}\
{% if config.is_taught %}, taught by {{ code(config.teacher) }} ({{ config.distill.kind }} \
distillation){% endif %}.
{% if record.model.startswith("cvt_") %}The architecture is CvT's, \
[Introducing Convolutions to Vision Transformers](https://arxiv.org/abs/2103.15808) (Wu et al., \
ICCV 2021).
{% endif %}
Licence: {{ text(record.licence) if record.licence else "none was stated" }}.

{{ classes }}

## How good it is

{{ figures }}

The weights are those after epoch {{ result.best_epoch }} of {{ epochs }}\
{% if config.ema_decay %}, averaged with decay {{ "{:g}".format(config.ema_decay) }}{% endif %}, \
the best on the validation split.

![Loss, validation accuracy and learning rate by epoch]({{ curves_file }})

Every epoch in figures: [{{ metrics_file }}]({{ metrics_file }}). {% if config.fast %}Only the \
classifier was fitted, at once, to what the network makes of the images as they are: all losses \
are cross-entropy.{% else %}The training loss is the recipe's, augmentation, mixing and smoothing \
included; the others are cross-entropy.{% endif %}
{% if by_class %}
### By class

{{ by_class }}
{% endif %}{% if images %}
## What it looks like

{{ images }}
{% endif %}
## How to use it

From the folder that this one lies in:

```sh
cvt predict {{ shown(quote(name)) }} photo.jpg
cvt export {{ shown(quote(name)) }} {{ shown(quote(exported)) }}
```

```python
import cvt

predictor = cvt.Predictor({{ json(name) }})  # preprocessing and labels come along
print(predictor("photo.jpg")[0].labels)

model = cvt.load({{ json(name) }})  # or the torch module, for {{ width }}x{{ height }} pixels
```

`{{ weights_file }}` is enough by itself: the file says how to build and feed the model.

## How it was trained

{{ machine }}

`cvt train -c {{ config_file }} --out ANOTHER_FOLDER` runs it again, from \
[{{ config_file }}]({{ config_file }}).

<details>
<summary>All settings, derived values included</summary>

{{ settings }}

</details>

## What the figures do not say

{% for sentence in limits %}- {{ sentence }}
{% endfor %}"""
_PAPER = "arxiv:2103.15808"
_CLASSES_NAMED = 20
_AT_EACH_END = 10  # of more classes than these
_BAD_NAMED = 10


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """What a card says beyond config, record, history and result.

    Args:
        num_images: Images of each split: training, validation and, where there is one, test.
        val_was_cut: Whether the validation split was cut from the training images.
        software: Versions by name.
        classes: How well each of them is recognised, on the split `classes_of`.
    """

    num_params: int
    num_images: Mapping[str, int]
    val_was_cut: bool
    hardware: str
    processes: int
    software: Mapping[str, str]
    classes: Sequence[ClassScore] = ()
    classes_of: str = "validation"


def write_card(
    config: TrainConfig,
    record: Record,
    result: TrainResult,
    history: Sequence[EpochRow],
    facts: CardFacts,
) -> Path:
    """Writes `README.md` into the run's folder, laid out as a Hugging Face model card."""
    from huggingface_hub import ModelCard

    height, width = record.preprocessing.size
    card = ModelCard.from_template(
        header(config, record, result),
        template_str=_TEMPLATE,
        curves_file=CURVES_FILE,
        metrics_file=METRICS_FILE,
        config_file=CONFIG_FILE,
        weights_file=BEST_WEIGHTS,
        text=text,
        code=code,
        shown=shown,
        quote=quote,
        json=json.dumps,
        name=result.run.resolve().name,
        config=config,
        record=record,
        result=result,
        facts=facts,
        height=height,
        width=width,
        exported=export_name(result.run),
        classes=_classes(record),
        by_class=_by_class(facts),
        images=_images(result),
        figures=_figures(result, facts),
        epochs=history[-1].epoch,
        machine=_machine(history, facts),
        settings=_settings(config),
        limits=_limits(config, result, history, facts),
    )
    path = result.run / CARD_FILE
    with atomic_write(path, "w") as file:
        file.write(str(card))
    return path


def header(config: TrainConfig, record: Record, result: TrainResult) -> Any:
    """Returns the hub's form of what is known, the accuracies as shares of 1.

    What is not known is left out: a licence, a data set or base model that the hub does not have.
    """
    from huggingface_hub import EvalResult, ModelCardData

    licence, dataset = _licence(record.licence), _dataset(config.data)
    top1s = {"validation": result.best_top1, "test": result.test_top1}
    return ModelCardData(
        library_name="cvt",
        pipeline_tag="image-classification",
        tags=["image-classification", "cvt", "pytorch"]
        + [_PAPER] * record.model.startswith("cvt_"),
        datasets=[dataset] if dataset else None,
        base_model=_base_model(config.weights),
        metrics=["accuracy"],
        model_name=result.run.resolve().name,
        eval_results=[
            EvalResult(
                task_type="image-classification",
                dataset_type=dataset or config.data,
                dataset_name=config.data,
                dataset_split=split,
                metric_type="accuracy",
                metric_name=f"top-1, {split}",
                metric_value=round(top1 / 100, 6),
            )
            for split, top1 in top1s.items()
            if top1 is not None
        ],
        license=licence,
        license_name=record.licence if licence == "other" else None,
    )


# Where torchvision's data sets are on the hub.
_ON_HUB = {
    "torch/cifar10": "uoft-cs/cifar10",
    "torch/cifar100": "uoft-cs/cifar100",
    "torch/imagenet": "ILSVRC/imagenet-1k",
}
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_LICENCES = ("apache-2.0", "mit", "bsd-3-clause", "cc-by-4.0", "cc-by-nc-4.0", "cc0-1.0")


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


def _classes(record: Record) -> str:
    names = record.class_names or ()
    if 0 < len(names) <= _CLASSES_NAMED:
        return f"{len(names)} classes: {', '.join(text(each) for each in names)}."
    known = ", whose names are in the checkpoint" if names else ""
    return f"{record.spec.num_classes:,} classes{known}."


def _figures(result: TrainResult, facts: CardFacts) -> str:
    measured = [("validation", result.best_top1, result.best_loss)]
    if result.test_top1 is not None and result.test_loss is not None:
        measured += [("test", result.test_top1, result.test_loss)]
    rows = []
    for split, top1, loss in measured:
        count = facts.num_images[split]
        low, high = interval(top1, count)
        rows += [(split, f"{count:,}", f"{top1:.2f}", f"{low:.2f} to {high:.2f}", f"{loss:.4f}")]
    return "\n".join(table(("split", "images", "top-1 %", "95 % interval", "loss (nats)"), rows))


def _by_class(facts: CardFacts) -> str:
    """The classes that were measured, the worst first; of many those at both ends."""
    measured = [each for each in facts.classes if each.num_images]
    ranked = sorted(measured, key=lambda each: each.accuracy or 0.0)
    if not ranked:
        return ""
    rows = [
        (cell(each.name), f"{each.num_images:,}", f"{each.accuracy:.1f}", _known(each.precision))
        for each in ranked
    ]
    said = f"On the {facts.classes_of} images, the worst first."
    if len(rows) > 2 * _AT_EACH_END:
        rows = rows[:_AT_EACH_END] + rows[-_AT_EACH_END:]
        said = f"On the {facts.classes_of} images, the {_AT_EACH_END} worst and the "
        said += f"{_AT_EACH_END} best of {len(ranked):,} classes."
    header = ("class", "images", "recognised %", "right when named %")
    return "\n".join([said, "", *table(header, rows)])


def _known(percentage: float | None) -> str:
    return "-" if percentage is None else f"{percentage:.1f}"


_SEEN = {
    BATCH_FILE: "Images of the first training batch, as the network sees them, with their labels",
    MISTAKES_FILE: "The most confident wrong answers, with what was said and what is true",
    CONFUSION_FILE: "Confusion matrix: which classes were taken for which",
}


def _images(result: TrainResult) -> str:
    there = [name for name in _SEEN if (result.run / name).exists()]
    lines = [f"![{_SEEN[name]}]({name})" for name in there]
    if MISTAKES_FILE in there:
        lines += [f"The mistakes by file name: [{MISTAKES_TABLE}]({MISTAKES_TABLE})."]
    elif there and not result.has_mistakes:
        lines += ["There is no sheet of mistakes, as no answer was wrong."]
    return "\n\n".join(lines)


def _machine(history: Sequence[EpochRow], facts: CardFacts) -> str:
    seconds = sum(row.seconds for row in history)
    images = sum(row.images_per_s * row.seconds for row in history)
    waited = sum(row.data_wait * row.seconds for row in history)
    rows = [
        ("training images", f"{facts.num_images['training']:,}"),
        ("machine", text(facts.hardware)),
        ("processes", str(facts.processes)),
        ("training time", f"{say_time(seconds)}, validation not counted"),
        ("images/s in training", f"{images / max(seconds, 1e-9):,.0f}"),
        ("time waited for data", f"{waited / max(seconds, 1e-9):.0%}"),
        ("peak memory", say_memory(max((row.memory_mb for row in history), default=0.0))),
        ("software", ", ".join(text(f"{name} {found}") for name, found in facts.software.items())),
    ]
    return "\n".join(table(("", ""), rows))


def _settings(config: TrainConfig) -> str:
    rows = [
        (code(name), code(say_value(value)))
        for name, value in flat(config.to_dict()).items()
        if value is not None and value != {} and name not in ("out", *CALL)
    ]
    return "\n".join(table(("setting", "value"), rows))


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
    ]
    if result.bad:
        count = len(result.bad)
        lines = [f"{count:,} image{'s' * (count > 1)} could not be read and "
                 f"{'were' if count > 1 else 'was'} left out:", ""]  # fmt: skip
        lines += [f"  - {text(sentence)}" for sentence in result.bad[:_BAD_NAMED]]
        lines += [f"  - and {count - _BAD_NAMED:,} more"] * (count > _BAD_NAMED)
        said += ["\n".join(lines)]
    return said
