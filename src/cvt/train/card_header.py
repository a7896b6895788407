"""The YAML on top of a card, in the words of the Hugging Face hub."""

import re
from pathlib import Path

from cvt.train.config import TrainConfig
from cvt.train.report import TrainResult
from cvt.weights.published import PUBLISHED
from cvt.weights.record import Record

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
