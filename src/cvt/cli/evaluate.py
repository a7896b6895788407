"""`cvt eval CHECKPOINT DATA` and `cvt probe CHECKPOINT DATA`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from cvt.cli.flags import Checkpoint, DataFlags, Json, MeasureFlags
from cvt.cli.output import image_bar, print_json, print_skipped, print_table, say, warn
from cvt.errors import UserError
from cvt.files import expanded, new_files
from cvt.tables import Table

if TYPE_CHECKING:
    from cvt.evaluation import CorruptionScores, Evaluation, Probe, ProbeScore, RealScore


def evaluate(
    checkpoint: Checkpoint,
    data: Annotated[
        str, Parameter(help="As for `cvt train`; with --benchmark, a folder.")
    ] = "digits",
    /,
    *,
    benchmark: Annotated[
        Literal["val", "real", "v2", "a", "r", "c"] | None,
        Parameter(
            help="DATA is the folder of one of ImageNet's sets, measured by its own protocol: "
            "val, real (val with ReaL labels), v2, a, r or c."
        ),
    ] = None,
    split: Annotated[
        str | None,
        Parameter(
            help="train, val, test or all; by default test, or else val, if the data has such a "
            "split, what the run held out of its own data, and all of any other."
        ),
    ] = None,
    where: Annotated[DataFlags, Parameter(name="*")] = DataFlags(),  # noqa: B008 - frozen
    out: Annotated[
        Path | None,
        Parameter(
            help="Folder for the plots confusion.png and reliability.png, by default the run's or "
            "the checkpoint's; where there are some, -2 and so on."
        ),
    ] = None,
    confusion: Annotated[
        Path | None, Parameter(help="File for the confusion matrix, replaced if it is there.")
    ] = None,
    reliability: Annotated[
        Path | None, Parameter(help="File for the reliability diagram, replaced if it is there.")
    ] = None,
    how: Annotated[MeasureFlags, Parameter(name="*")] = MeasureFlags(),  # noqa: B008 - frozen
    json: Json = False,
) -> int:
    """Measure a checkpoint on labelled images.

    Prints top-1, top-5, loss, calibration error and the figures of each class, and draws a
    confusion matrix and a reliability diagram beside the checkpoint. What a run learned from is
    measured, unless --split says otherwise, on the images that it held out.
    """
    from cvt.evaluation import evaluate as run
    from cvt.runtime import join_world

    with join_world(how.device) as world, image_bar(world.is_main) as bar:
        result = run(
            checkpoint,
            data,
            benchmark=benchmark,
            split=split,
            **vars(where),
            **vars(how),
            on_start=bar.start,
            on_batch=bar.advance,
        )
    if not world.is_main:
        return 0
    named = {"confusion": confusion, "reliability": reliability}
    named = {name: path for name, path in named.items() if hasattr(result, f"save_{name}")}
    return _report(result, benchmark, named, _folders(checkpoint, out, named), json)


def _report(
    result: "Evaluation | RealScore | CorruptionScores",
    benchmark: str | None,
    named: Mapping[str, Path | None],
    folders: Sequence[Path],
    json: bool,
) -> int:
    """Prints a result and draws it; returns the exit code.

    The figures are printed whatever becomes of the plots: one that cannot be drawn or written is a
    sentence, and exit code 1. What was skipped, or is missing from a benchmark, is said on stderr.
    """
    from cvt.evaluation import BENCHMARKS

    whole = BENCHMARKS[benchmark] if benchmark else None
    drawn: dict[str, Path] = {}
    if json:
        try:
            problems = _draw(result, named, folders, drawn)
        finally:
            about = {"benchmark": benchmark, "num_expected": whole.num_images} if whole else {}
            plots = {f"{name}_picture": str(path) for name, path in drawn.items()}
            print_json({**about, **result.to_dict(), **plots})
    else:
        kinds: dict[str | None, Any] = {None: _print_classes, "real": _print_real, "c": _print_c}
        kinds.get(benchmark, _print_sums)(result)
        problems = _draw(result, named, folders, drawn)
        for name, path in drawn.items():
            say(f"{_TITLES[name]}: {path}")
        if named and not (drawn or problems):
            say("No plots: name a folder for them with --out.")
        for note in getattr(result, "notes", ()):
            warn(note)
        print_skipped(result.bad, result.num_images)
        found = result.num_images + len(result.bad)
        if whole and found != whole.num_images:
            told = f"{found:,} of {whole.num_images:,} images"
            warn(f"this is not all of {whole.title}: {told}.")
    for sentence in problems:
        warn(sentence)
    return 1 if result.bad or problems else 0


def _print_classes(result: "Evaluation") -> None:
    columns = {
        "Class": "name",
        "Images": "num_images",
        "Accuracy %": "accuracy:.1f",
        "Precision %": "precision:.1f",
    }
    print_table(Table.of(result.per_class, columns))
    say()
    if result.num_found is not None:
        part = "the whole data" if result.split == "all" else f"the {result.split} split"
        cut = ", cut out as for training" if result.split_was_cut else ""
        skipped = f" ({len(result.bad):,} skipped)" if result.bad else ""
        of_all = f"{result.num_images:,} of {result.num_found:,} images"
        say(f"Measured {part}{cut}: {of_all}{skipped}.")
    _print_sums(result, among="")


def _print_sums(result: "Evaluation", among: str | None = None) -> None:
    among = f" among {len(result.per_class):,} classes" if among is None else among
    top5 = "" if result.top5 is None else f", top-5 {result.top5:.2f} %"
    say(
        f"{result.num_images:,} images{among}: top-1 {result.top1:.2f} %{top5}, "
        f"loss {result.loss:.4f}, calibration error {100 * result.ece:.2f} %"
    )


def _print_real(result: "RealScore") -> None:
    say(
        f"{result.num_images:,} images ({result.num_excluded:,} without a label left out): ReaL "
        f"top-1 {result.top1:.2f} %, top-5 {result.top5:.2f} %, "
        f"calibration error {100 * result.ece:.2f} %"
    )


def _print_c(result: "CorruptionScores") -> None:
    def error_at(severity: int) -> Any:
        return lambda name: f"{result.errors[name][severity]:.2f}"

    columns = {
        "Corruption": str,
        **{f"Error % at {severity + 1}": error_at(severity) for severity in range(5)},
        "Mean %": lambda name: f"{result.mean_errors[name]:.2f}",
        "CE %": lambda name: f"{result.corruption_errors[name]:.2f}",
    }
    print_table(Table.of(result.errors, columns))
    mce = (
        f"no mCE, which takes all 15 corruptions ({len(result.errors)} are there)"
        if result.mce is None
        else f"mCE {result.mce:.2f} % (AlexNet is 100)"
    )
    say()
    say(f"{result.num_images:,} images: mean error {result.mean_error:.2f} %, {mce}")


# --- What a result looks like, drawn.

_TITLES = {"confusion": "Confusion matrix", "reliability": "Reliability diagram"}


def _folders(checkpoint: str, out: Path | None, named: Mapping[str, Path | None]) -> list[Path]:
    """Where to try: the folder that was asked for, or beside the checkpoint, then here."""
    if out is not None:
        return [expanded(out)]
    for given in named.values():
        if given is not None:
            return [given.parent]
    path = Path(checkpoint)
    if not path.exists():  # the demo, published weights, a hub id
        return []
    return [path if path.is_dir() else path.parent, Path()]


def _draw(
    result: Any,
    named: Mapping[str, Path | None],
    folders: Sequence[Path],
    drawn: dict[str, Path],
) -> list[str]:
    """Draws a result's plots, each whatever becomes of the others; says which there are not.

    Args:
        named: A file to write, or replace, for each plot; None: one with a name that is free.
        folders: Where such a file may lie; the first that can be written is taken.
        drawn: Gets the files.
    """
    free, problems = _free_files([name for name, path in named.items() if path is None], folders)
    try:
        for name, path in named.items():
            file = free.get(name) if path is None else expanded(path)
            if file is None:
                continue
            try:
                getattr(result, f"save_{name}")(file)
            except Exception as error:  # whatever a drawing library says, the figures are right
                reason = str(error) if isinstance(error, UserError) else f"cannot draw: {error}"
                problems.append(f"There is no plot of the {_TITLES[name].lower()}: {reason}")
            else:
                drawn[name] = file
    finally:
        for name in free.keys() - drawn.keys():
            free[name].unlink(missing_ok=True)
    return problems


def _free_files(names: list[str], folders: Sequence[Path]) -> tuple[dict[str, Path], list[str]]:
    """Takes names that no file has, and says why there are none."""
    reasons = []
    for folder in folders if names else ():
        try:
            files = new_files(folder, *(f"{name}.png" for name in names))
        except UserError as error:
            reasons.append(str(error))
            continue
        if reasons:
            warn(f"{reasons[0]} The plots are in the working folder instead.")
        return dict(zip(names, files, strict=True)), []
    return {}, [f"There are no plots: {each} Name a folder with --out." for each in reasons[:1]]


# --- `cvt probe CHECKPOINT DATA`.


def probe(
    checkpoint: Checkpoint,
    data: Annotated[str, Parameter(help="As for `cvt train`.")] = "digits",
    /,
    *,
    method: Annotated[
        Literal["knn", "linear", "both"], Parameter(help="Which classifier on the features.")
    ] = "both",
    k: Annotated[int, Parameter(name=["-k", "--k"], help="Neighbours that vote.")] = 20,
    where: Annotated[DataFlags, Parameter(name="*")] = DataFlags(),  # noqa: B008 - frozen
    how: Annotated[MeasureFlags, Parameter(name="*")] = MeasureFlags(),  # noqa: B008 - frozen
    json: Json = False,
) -> int:
    """Measure a checkpoint's frozen features: k-NN and linear.

    Nearest neighbours and a linear classifier learn from the training split and are measured on
    val and test. The checkpoint's own classes do not matter. What keeps such a classifier, as a
    checkpoint, is `cvt train DATA --fast --weights CHECKPOINT`.
    """
    from cvt.evaluation import probe as run
    from cvt.runtime import join_world

    with join_world(how.device) as world, image_bar(world.is_main) as bar:
        result = run(
            checkpoint,
            data,
            method=method,
            k=k,
            **vars(where),
            **vars(how),
            on_stage=bar.stage,
            on_start=bar.start,
            on_batch=bar.advance,
        )
    if not world.is_main:
        return 0
    if json:
        print_json(result)
    else:
        _print_probe(result)
    return int(bool(result.bad))


def _print_probe(result: "Probe") -> None:
    def setting(score: "ProbeScore") -> str:
        words = ", ".join(f"{name} {value:g}" for name, value in score.setting.items())
        return f"{words}, chosen on val" if score.method == "linear" else words

    columns = {
        "Method": lambda score: {"knn": "k-NN", "linear": "linear"}[score.method],
        "Split": "split",
        "Images": "num_images",
        "Top-1 %": "top1:.2f",
        "Top-5 %": "top5:.2f",
        "Setting": setting,
    }
    print_table(Table.of(result.scores, columns))
    say()
    cut = "; val is cut out of the training images" if result.val_was_cut else ""
    say(
        f"{result.num_features} frozen features, learned from {result.num_train:,} of "
        f"{result.num_found:,} images{cut}"
    )
    for note in result.notes:
        warn(note)
    measured = {score.split: score.num_images for score in result.scores}
    print_skipped(result.bad, result.num_train + sum(measured.values()))
