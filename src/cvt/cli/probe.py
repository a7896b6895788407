"""`cvt probe CHECKPOINT DATA`."""

from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from cvt.cli.bar import image_bar
from cvt.cli.flags import BatchSize, DataDir, Device, Download, Json, NumWorkers
from cvt.cli.output import print_json, print_skipped, print_table, say

if TYPE_CHECKING:
    from cvt.evaluate import Probe, ProbeScore


def probe(
    checkpoint: str,
    data: str = "digits",
    /,
    *,
    method: Annotated[
        Literal["knn", "linear", "both"], Parameter(help="Which classifier on the features.")
    ] = "both",
    k: Annotated[int, Parameter(name=["-k", "--k"], help="Neighbours that vote.")] = 20,
    data_dir: DataDir = None,
    download: Download = False,
    batch_size: BatchSize = 64,
    num_workers: NumWorkers = 0,
    device: Device = "auto",
    json: Json = False,
) -> int:
    """Measure a checkpoint's frozen features: nearest neighbours and a linear classifier.

    Parameters
    ----------
    checkpoint
        A run folder, a checkpoint file, a hub id or the name of published weights. Its own
        classes do not matter.
    data
        As for `cvt train`; learned from its training split, measured on val and test.
    """
    from cvt.evaluate import probe as run
    from cvt.train.world import join_world

    with join_world(device) as world, image_bar(world.is_main) as bar:
        result = run(
            checkpoint,
            data,
            method=method,
            k=k,
            data_dir=data_dir,
            download=download,
            batch_size=batch_size,
            num_workers=num_workers,
            device=device,
            on_stage=bar.stage,
            on_start=bar.start,
            on_batch=bar.advance,
        )
    if not world.is_main:
        return 0
    if json:
        print_json(result.to_dict())
    else:
        _print(result)
    return 1 if result.bad else 0


def _print(result: "Probe") -> None:
    print_table(
        ("Method", "Split", "Images", "Top-1 %", "Top-5 %", "Setting"),
        [
            (
                {"knn": "k-NN", "linear": "linear"}[score.method],
                score.split,
                score.num_images,
                f"{score.top1:.2f}",
                "-" if score.top5 is None else f"{score.top5:.2f}",
                _setting(score),
            )
            for score in result.scores
        ],
    )
    say()
    cut = "; val is cut out of the training images" if result.val_was_cut else ""
    say(
        f"{result.num_features} frozen features, learned from {result.num_train:,} of "
        f"{result.num_found:,} images{cut}"
    )
    for note in result.notes:
        say(f"cvt: {note}", error=True)
    print_skipped(result.bad, result.num_train + _num_measured(result))


def _setting(score: "ProbeScore") -> str:
    words = ", ".join(f"{name} {value:g}" for name, value in score.setting.items())
    return f"{words}, chosen on val" if score.method == "linear" else words


def _num_measured(result: "Probe") -> int:
    return sum({score.split: score.num_images for score in result.scores}.values())
