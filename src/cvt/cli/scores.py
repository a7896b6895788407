"""How `cvt eval` shows what it measured: tables, one line of figures, and pictures."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cvt.cli.output import print_json, print_skipped, print_table, say
from cvt.errors import UserError
from cvt.files import expanded, new_files

if TYPE_CHECKING:
    from cvt.evaluate import CorruptionScores, Evaluation, RealScore

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
        _print(result, with_classes=benchmark is None)
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
    from cvt.evaluate import BENCHMARKS

    whole = BENCHMARKS[benchmark] if benchmark else None
    of_benchmark = {"benchmark": benchmark, "num_expected": whole.num_images} if whole else {}
    pictures = {f"{name}_picture": str(path) for name, path in drawn.files.items()}
    print_json({**of_benchmark, **result.to_dict(), **pictures})


def _say_what_is_missing(
    result: "Evaluation | RealScore | CorruptionScores", benchmark: str | None
) -> None:
    from cvt.evaluate import BENCHMARKS

    whole = BENCHMARKS[benchmark] if benchmark else None
    found = result.num_images + len(result.bad)
    if whole and found != whole.num_images:
        told = f"{found:,} of {whole.num_images:,} images"
        say(f"cvt: this is not all of {whole.title}: {told}.", error=True)


def _is_table(result: "Evaluation | RealScore | CorruptionScores") -> bool:
    """Whether figures are all that there is to see."""
    from cvt.evaluate import CorruptionScores

    return isinstance(result, CorruptionScores)


def _draw(
    result: "Evaluation | RealScore | CorruptionScores", places: PicturePlaces, drawn: _Drawn
) -> None:
    """Draws what a result has to show, each picture whatever becomes of the others."""
    from cvt.evaluate import Evaluation

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


def _print(result: "Evaluation | RealScore | CorruptionScores", with_classes: bool) -> None:
    from cvt.evaluate import CorruptionScores, RealScore

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
