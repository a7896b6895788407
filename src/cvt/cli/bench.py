"""`cvt bench NAMES...`."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar

from cyclopts import Parameter

from cvt.cli.flags import Json
from cvt.cli.output import print_json, print_table, say, say_lines
from cvt.errors import UserError
from cvt.files import expanded

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class BenchFlags:
    """What is measured, and how long; several values have commas between them."""

    form: Annotated[
        str,
        Parameter(
            help="eager, autocast, compile, deploy, deploy-compile, openvino, or several; "
            "deploy-without-PASS-PASS leaves passes of cvt.deploy out, deploy-without-all every "
            "one, deploy-upto-PASS those behind one; -graphs behind compile adds CUDA graphs."
        ),
    ] = "eager"
    dtype: str = "float32"
    """float32, bf16, fp16, int8 (of deployed forms) or several."""
    task: str = "inference"
    """inference, training, or both."""
    device: str = "auto"
    """cpu, cuda, ..., or several; auto takes an accelerator if there is one."""
    threads: str | None = None
    """Threads of a process, or several numbers; torch's own choice."""
    image_size: str = "224"
    """Side in pixels, or several."""
    batch_size: str = "16"
    """Images of a call or a step, or several."""
    base: str | None = None
    """What ratios are to, named as NAMES are; the first entry if left out."""
    repeats: int = 5
    """Rounds; each measures everything once."""
    seconds: float = 2.0
    """How long a measurement times calls."""
    calibration: Annotated[
        str | None,
        Parameter(
            help="A folder or parquet file of images: int8 is calibrated on some, and other dtypes "
            "are compared with float32 on others."
        ),
    ] = None
    retry: Annotated[bool, Parameter(negative="", show_default=False)] = False
    """Measure again where something has failed."""
    out: Path | None = None
    """The results folder; one under runs/ if left out."""


def bench(
    *names: Annotated[
        str,
        Parameter(
            help="A model of `cvt models`, a checkpoint or run folder, demo, hf/cvt_13 "
            "(transformers' CvT), timm/NAME, or your module:callable, installed or in the current "
            "folder; pinned by NAME:FORM, NAME:DTYPE or NAME:FORM:DTYPE."
        ),
    ],
    flags: Annotated[BenchFlags, Parameter(name="*")] = BenchFlags(),
    json: Json = False,
) -> int:
    """Measure speed and memory of models side by side.

    Every measurement has a process of its own, in shuffled rounds. Writes measurements.csv,
    table.csv, table.md and speed.png into --out; the same command goes on with it. What cannot be
    measured says so in its row, and the exit code is 1.
    """
    from cvt.bench.speed import BenchConfig, notes_of, run_bench
    from cvt.bench.speed.bench import FILES

    config = BenchConfig(
        models=names,
        forms=_list("form", flags.form, str),
        dtypes=_list("dtype", flags.dtype, str),
        tasks=_list("task", flags.task, str),
        devices=_list("device", flags.device, str),
        threads=None if flags.threads is None else _list("threads", flags.threads, int),
        image_sizes=_list("image-size", flags.image_size, int),
        batch_sizes=_list("batch-size", flags.batch_size, int),
        base=flags.base,
        repeats=flags.repeats,
        seconds=flags.seconds,
        calibration=flags.calibration,
        retry=flags.retry,
        out=None if flags.out is None else expanded(flags.out),
    )
    results = run_bench(config, progress=not json)
    if json:
        print_json(results)
    else:
        for table in results.tables:
            say()
            print_table(table)
        say()
        for note in notes_of(results):
            say_lines(note)
        say()
        say(f"Written to {config.folder}: {', '.join(FILES)}")
    return int(results.has_failures)


def _list(flag: str, text: str, read: Callable[[str], _T]) -> tuple[_T, ...]:
    """Reads values with commas between them, each of them once."""
    try:
        values = [read(part.strip()) for part in text.split(",") if part.strip()]
    except ValueError:
        values = []
    if not values:
        kind = "whole numbers" if read is int else "names"
        raise UserError(f"Got --{flag} {text!r}, expected one or several {kind}, as in A,B.")
    return tuple(dict.fromkeys(values))
