"""A model of ImageNet's classes on the sets that ask whether it learned more than its own.

- `val`: class folders called by WordNet number; the plain accuracy.
- `real`: the same pictures, by their file names; every class that fits counts. arXiv 2006.07159.
- `v2`: folders 0 to 999, of one of its three samplings; papers mean matched-frequency.
  arXiv 1902.10811.
- `a`, `r`: 200 class folders; only the outputs of these 200 compete. arXiv 1907.07174 and
  hendrycks/natural-adv-examples 0777070, eval.py; arXiv 2006.16241 and hendrycks/imagenet-r
  3131cac, eval.py.
- `c`: corruption / severity / class folders; the pictures are cut to 224 pixels already and taken
  whole. arXiv 1903.12261 and hendrycks/robustness 8190fe3, ImageNet-C/test.py.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from cvt.data import ImageSet
from cvt.errors import UserError, did_you_mean
from cvt.evaluate.answers import Pace, answers
from cvt.evaluate.corruptions import CorruptionScores, find_corruptions, score_corruptions
from cvt.evaluate.evaluation import Evaluation, summarise
from cvt.evaluate.imagenet import imagenet_outputs, read_classes
from cvt.evaluate.model_facts import class_names_of, open_model, preprocessing_of
from cvt.evaluate.real_labels import RealScore, read_val_pictures, score_real
from cvt.evaluate.timm_lists import imagenet_synsets, subset_synsets
from cvt.files import expanded
from cvt.parts.contract import VisionModel
from cvt.train.validate import Logits
from cvt.train.world import World, join_world


@dataclass(frozen=True)
class Benchmark:
    """What a set is called, and how many of its pictures a full measurement counts."""

    title: str
    num_images: int


BENCHMARKS = {
    "val": Benchmark("ImageNet's validation set", 50_000),
    "real": Benchmark("ImageNet's validation set with ReaL labels", 46_837),
    "v2": Benchmark("ImageNet-V2", 10_000),
    "a": Benchmark("ImageNet-A", 7_500),
    "r": Benchmark("ImageNet-R", 30_000),
    "c": Benchmark("ImageNet-C", 3_750_000),
}


def evaluate_benchmark(
    model: str | Path | VisionModel,
    folder: str | Path,
    benchmark: str,
    *,
    batch_size: int = 64,
    num_workers: int = 0,
    device: str = "auto",
    precision: str = "auto",
    on_start: Callable[[int], None] | None = None,
    on_batch: Callable[[int], None] | None = None,
) -> Evaluation | RealScore | CorruptionScores:
    """Measures a model with ImageNet's 1000 classes by one benchmark's own protocol.

    Under torchrun, and for the arguments that are not described here: as `cvt.evaluate.evaluate`.

    Args:
        benchmark: A key of `BENCHMARKS`; the head of this file says what it expects and does.

    Returns:
        A `RealScore` for `real`, `CorruptionScores` for `c`, an `Evaluation` for the others.

    Raises:
        UserError: The name is unknown, the folder is not that benchmark or not all of its classes
            are there, the model does not have ImageNet's classes, or no picture is readable.
    """
    if benchmark not in BENCHMARKS:
        hint = did_you_mean(benchmark, BENCHMARKS)
        raise UserError(
            f"Unknown benchmark {benchmark!r}, expected one of {', '.join(BENCHMARKS)}.{hint}"
        )
    pace = Pace(batch_size, num_workers, device, precision, on_start, on_batch)
    with join_world(device) as world:
        network = open_model(model, world)
        return _measure(network, expanded(folder), benchmark, pace, world)


def _measure(
    network: VisionModel, folder: Path, benchmark: str, pace: Pace, world: World
) -> Evaluation | RealScore | CorruptionScores:
    names = class_names_of(network)
    outputs = imagenet_outputs(names, network.num_classes)
    preprocessing = preprocessing_of(network)
    if benchmark == "c":
        preprocessing = replace(preprocessing, crop_pct=1.0)

    def ask(pictures: ImageSet) -> Logits:
        said = answers(network, pictures, preprocessing, pace, world)
        return replace(said, logits=said.logits[:, outputs])

    if benchmark == "c":
        return score_corruptions(find_corruptions(folder), ask)
    if benchmark == "real":
        pictures, num_excluded = read_val_pictures(folder)
        return score_real(ask(pictures), num_excluded)
    synsets = subset_synsets(benchmark) if benchmark in ("a", "r") else imagenet_synsets()
    title = BENCHMARKS[benchmark].title
    said = ask(read_classes(folder, title, synsets, numbered=benchmark == "v2"))
    # Labels are positions among the benchmark's classes; only these compete.
    chosen = torch.tensor([imagenet_synsets().index(synset) for synset in synsets])
    titles = [names[index] for index in outputs[chosen].tolist()] if names else synsets
    return summarise(replace(said, logits=said.logits[:, chosen]), titles)
