"""`cvt eval CHECKPOINT DATA`."""

from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from cvt.cli.flags import BatchSize, DataDir, Device, Download, Json, NumWorkers
from cvt.cli.output import image_bar, print_json, print_skipped, print_table, say

if TYPE_CHECKING:
    from cvt.evaluation import Probe, ProbeScore
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cvt.errors import UserError
from cvt.files import expanded, new_files

if TYPE_CHECKING:
    from cvt.evaluation import CorruptionScores, Evaluation, RealScore
from functools import partial

# --- `cvt probe CHECKPOINT DATA`.


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
    from cvt.evaluation import probe as run
    from cvt.runtime import join_world

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


# --- How `cvt eval` shows what it measured: tables, one line of figures, and pictures.

_TITLES = {"confusion": "Confusion matrix", "reliability": "Reliability diagram"}


@dataclass(frozen=True)
class PicturePlaces:
    """Where the pictures of a result go.

    Args:
        checkpoint: What was measured; pictures lie beside it, if it has a place of its own.
        out: A folder to take instead.
        confusion: A file to write, or replace, instead of one with a name that is free.
        reliability: The same.
    """

    checkpoint: str
    out: Path | None = None
    confusion: Path | None = None
    reliability: Path | None = None

    def folders(self) -> list[Path]:
        """Returns where to try: the one that was asked for, or beside the checkpoint, then here."""
        if self.out is not None:
            return [expanded(self.out)]
        path, given = Path(self.checkpoint), self.confusion or self.reliability
        if given is not None:
            return [given.parent]
        if not path.exists():  # the demo, published weights, a hub id
            return []
        return [path if path.is_dir() else path.parent, Path()]


@dataclass(frozen=True)
class _Drawn:
    """The files of pictures by what they show, and a sentence for each that there is not."""

    files: dict[str, Path]
    problems: list[str]


def report(
    result: "Evaluation | RealScore | CorruptionScores",
    benchmark: str | None,
    places: PicturePlaces,
    json: bool,
) -> int:
    """Prints a result and draws it; returns the exit code.

    What was skipped, or is missing from a benchmark, is said on stderr, or in the JSON. The
    figures are printed whatever becomes of the pictures: one that cannot be drawn or written is
    a sentence, and exit code 1.
    """
    drawn = _Drawn({}, [])
    if json:
        try:
            _draw(result, places, drawn)
        finally:
            _print_json(result, benchmark, drawn)
    else:
        _print_of_scores(result, with_classes=benchmark is None)
        _draw(result, places, drawn)
        for name, path in drawn.files.items():
            say(f"{_TITLES[name]}: {path}")
        if not (drawn.files or drawn.problems or _is_table(result)):
            say("No pictures: name a folder for them with --out.")
        for note in getattr(result, "notes", ()):
            say(f"cvt: {note}", error=True)
        print_skipped(result.bad, result.num_images)
        _say_what_is_missing(result, benchmark)
    for sentence in drawn.problems:
        say(f"cvt: {sentence}", error=True)
    return 1 if result.bad or drawn.problems else 0


def _print_json(
    result: "Evaluation | RealScore | CorruptionScores", benchmark: str | None, drawn: _Drawn
) -> None:
    from cvt.evaluation import BENCHMARKS

    whole = BENCHMARKS[benchmark] if benchmark else None
    of_benchmark = {"benchmark": benchmark, "num_expected": whole.num_images} if whole else {}
    pictures = {f"{name}_picture": str(path) for name, path in drawn.files.items()}
    print_json({**of_benchmark, **result.to_dict(), **pictures})


def _say_what_is_missing(
    result: "Evaluation | RealScore | CorruptionScores", benchmark: str | None
) -> None:
    from cvt.evaluation import BENCHMARKS

    whole = BENCHMARKS[benchmark] if benchmark else None
    found = result.num_images + len(result.bad)
    if whole and found != whole.num_images:
        told = f"{found:,} of {whole.num_images:,} images"
        say(f"cvt: this is not all of {whole.title}: {told}.", error=True)


def _is_table(result: "Evaluation | RealScore | CorruptionScores") -> bool:
    """Whether figures are all that there is to see."""
    from cvt.evaluation import CorruptionScores

    return isinstance(result, CorruptionScores)


def _draw(
    result: "Evaluation | RealScore | CorruptionScores", places: PicturePlaces, drawn: _Drawn
) -> None:
    """Draws what a result has to show, each picture whatever becomes of the others."""
    from cvt.evaluation import Evaluation

    if _is_table(result):
        return
    given = {"confusion": places.confusion, "reliability": places.reliability}
    if not isinstance(result, Evaluation):
        del given["confusion"]
    free = _free_files([name for name, path in given.items() if path is None], places, drawn)
    try:
        for name, path in given.items():
            path = free.get(name) if path is None else expanded(path)
            if path is not None:
                _draw_one(result, name, path, drawn)
    finally:
        for name, path in free.items():
            if name not in drawn.files:
                path.unlink(missing_ok=True)


def _draw_one(
    result: "Evaluation | RealScore | CorruptionScores", name: str, path: Path, drawn: _Drawn
) -> None:
    try:
        getattr(result, f"save_{name}")(path)
    except Exception as error:  # whatever a drawing library says, the figures are right
        reason = str(error) if isinstance(error, UserError) else f"cannot draw: {error}"
        drawn.problems.append(f"There is no picture of the {_TITLES[name].lower()}: {reason}")
    else:
        drawn.files[name] = path


def _free_files(names: list[str], places: PicturePlaces, drawn: _Drawn) -> dict[str, Path]:
    """Takes names that no file has, in the first folder that can be written."""
    reasons = []
    for folder in places.folders() if names else []:
        try:
            files = new_files(folder, *(f"{name}.png" for name in names))
        except UserError as error:
            reasons.append(str(error))
            continue
        if reasons:
            say(f"cvt: {reasons[0]} The pictures are in the working folder instead.", error=True)
        return dict(zip(names, files, strict=True))
    if reasons:
        drawn.problems.append(f"There are no pictures: {reasons[0]} Name a folder with --out.")
    return {}


def _print_of_scores(
    result: "Evaluation | RealScore | CorruptionScores", with_classes: bool
) -> None:
    from cvt.evaluation import CorruptionScores, RealScore

    if isinstance(result, CorruptionScores):
        _print_corruptions(result)
    elif isinstance(result, RealScore):
        _print_real(result)
    else:
        _print_evaluation(result, with_classes)


def _print_evaluation(result: "Evaluation", with_classes: bool) -> None:
    if with_classes:
        print_table(
            ("Class", "Images", "Accuracy %", "Precision %"),
            [
                (each.name, each.num_images, _percent(each.accuracy), _percent(each.precision))
                for each in result.per_class
            ],
        )
        say()
    if result.num_found is not None:
        say(_of_how_many(result))
    top5 = "" if result.top5 is None else f", top-5 {result.top5:.2f} %"
    among = "" if with_classes else f" among {len(result.per_class):,} classes"
    say(
        f"{result.num_images:,} images{among}: top-1 {result.top1:.2f} %{top5}, "
        f"loss {result.loss:.4f}, calibration error {100 * result.ece:.2f} %"
    )


def _of_how_many(result: "Evaluation") -> str:
    """Says which part of the data was measured."""
    found, bad = result.num_found or 0, len(result.bad)
    part = "the whole data" if result.split == "all" else f"the {result.split} split"
    cut = ", cut out as for training" if result.split_was_cut else ""
    left_out = f" ({bad:,} skipped)" if bad else ""
    return f"Measured {part}{cut}: {result.num_images:,} of {found:,} images{left_out}."


def _print_real(result: "RealScore") -> None:
    say(
        f"{result.num_images:,} images ({result.num_excluded:,} without a label left out): ReaL "
        f"top-1 {result.top1:.2f} %, top-5 {result.top5:.2f} %, "
        f"calibration error {100 * result.ece:.2f} %"
    )


def _print_corruptions(result: "CorruptionScores") -> None:
    print_table(
        ("Corruption", *(f"Error % at {number}" for number in range(1, 6)), "Mean %", "CE %"),
        [
            (
                name,
                *(f"{error:.2f}" for error in errors),
                f"{result.mean_errors[name]:.2f}",
                f"{result.corruption_errors[name]:.2f}",
            )
            for name, errors in result.errors.items()
        ],
    )
    mce = (
        f"no mCE, which takes all 15 corruptions ({len(result.errors)} are there)"
        if result.mce is None
        else f"mCE {result.mce:.2f} % (AlexNet is 100)"
    )
    say()
    say(f"{result.num_images:,} images: mean error {result.mean_error:.2f} %, {mce}")


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1f}"


BenchmarkFlag = Annotated[
    Literal["val", "real", "v2", "a", "r", "c"] | None,
    Parameter(
        help="DATA is the folder of one of ImageNet's sets, measured by its own protocol: val, "
        "real (val with ReaL labels), v2, a, r or c."
    ),
]
SplitFlag = Annotated[
    str | None,
    Parameter(
        help="train, val, test or all; by default test, or else val, if the data has such a split, "
        "what the run had held out of its own data, and all of any other."
    ),
]
OutFlag = Annotated[
    Path | None,
    Parameter(
        help="Folder for confusion.png and reliability.png, by default the run's or the "
        "checkpoint's; if there are such, -2 and on."
    ),
]
ConfusionFlag = Annotated[
    Path | None, Parameter(help="File for the picture of the confusion matrix, to be replaced.")
]
ReliabilityFlag = Annotated[
    Path | None, Parameter(help="File for the picture of the calibration, to be replaced.")
]


def evaluate(
    checkpoint: str,
    data: str = "digits",
    /,
    *,
    benchmark: BenchmarkFlag = None,
    split: SplitFlag = None,
    data_dir: DataDir = None,
    download: Download = False,
    out: OutFlag = None,
    confusion: ConfusionFlag = None,
    reliability: ReliabilityFlag = None,
    batch_size: BatchSize = 64,
    num_workers: NumWorkers = 0,
    device: Device = "auto",
    json: Json = False,
) -> int:
    """Measure a checkpoint on labelled images: top-1, top-5, each class, loss, calibration.

    Parameters
    ----------
    checkpoint
        A run folder, a checkpoint file, a hub id or the name of published weights.
    data
        As for `cvt train`; with --benchmark, a folder.
    """
    from cvt.evaluation import evaluate as run
    from cvt.evaluation import evaluate_benchmark
    from cvt.runtime import join_world

    if benchmark and (split or data_dir or download):
        raise UserError(
            "Got --benchmark with --split, --data-dir or --download, which it does not read; name "
            "the benchmark's folder alone."
        )
    measure = partial(run, split=split, data_dir=data_dir, download=download)
    if benchmark:
        measure = partial(evaluate_benchmark, benchmark=benchmark)
    with join_world(device) as world, image_bar(world.is_main) as bar:
        result = measure(
            checkpoint,
            data,
            batch_size=batch_size,
            num_workers=num_workers,
            device=device,
            on_start=bar.start,
            on_batch=bar.advance,
        )
    if not world.is_main:
        return 0
    places = PicturePlaces(checkpoint, out, confusion, reliability)
    return report(result, benchmark, places, json)
