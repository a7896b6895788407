"""`cvt bench NAMES...`."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

from cyclopts import Parameter

from cvt.cli.flags import Json
from cvt.cli.output import print_json, print_table, say, say_lines
from cvt.errors import UserError
from cvt.files import expanded

_T = TypeVar("_T")
_Form = Annotated[
    str,
    Parameter(
        help="eager, autocast, compile, deploy, deploy-compile, openvino, or several; "
        "deploy-without-PASS-PASS leaves passes of cvt.deploy out, deploy-without-all every one, "
        "deploy-upto-PASS those behind one; -graphs behind compile adds CUDA graphs."
    ),
]
_Dtype = Annotated[str, Parameter(help="float32, bf16, fp16, int8 (of deployed forms) or several.")]
_Task = Annotated[str, Parameter(help="inference, training, or both.")]
_Devices = Annotated[
    str, Parameter(help="cpu, cuda, ..., or several; auto takes an accelerator if there is one.")
]
_Threads = Annotated[
    str | None, Parameter(help="Threads of a process, or several numbers; torch's own choice.")
]
_Base = Annotated[
    str | None,
    Parameter(help="What ratios are to, named as NAMES are; the first entry if left out."),
]
_Calibration = Annotated[
    str | None,
    Parameter(
        help="A folder or parquet file of images: int8 is calibrated on some, and other dtypes "
        "are compared with float32 on others."
    ),
]
_Retry = Annotated[bool, Parameter(negative="", help="Measure again where something has failed.")]
_Out = Annotated[Path | None, Parameter(help="The results folder; one under runs/ if left out.")]


def bench(
    *names: Annotated[
        str,
        Parameter(
            help="A model of `cvt models`, a checkpoint or run folder, demo, hf/cvt_13 "
            "(transformers' CvT), timm/NAME, or your module:callable, installed or in the current "
            "folder; pinned by NAME:FORM, NAME:DTYPE or NAME:FORM:DTYPE."
        ),
    ],
    form: _Form = "eager",
    dtype: _Dtype = "float32",
    task: _Task = "inference",
    device: _Devices = "auto",
    threads: _Threads = None,
    image_size: Annotated[str, Parameter(help="Side in pixels, or several.")] = "224",
    batch_size: Annotated[str, Parameter(help="Images of a call or a step, or several.")] = "16",
    base: _Base = None,
    repeats: Annotated[int, Parameter(help="Rounds; each measures everything once.")] = 5,
    seconds: Annotated[float, Parameter(help="How long a measurement times calls.")] = 2.0,
    calibration: _Calibration = None,
    retry: _Retry = False,
    out: _Out = None,
    json: Json = False,
) -> int:
    """Measure speed and memory of models side by side.

    Every measurement has a process of its own, in shuffled rounds. Writes measurements.csv,
    table.csv, table.md and speed.png into --out; the same command goes on with it. What cannot be
    measured says so in its row, and the exit code is 1.
    """
    from cvt.bench.speed import BenchConfig, notes_of, run_bench
    from cvt.bench.speed.bench import CSV_FILE, MEASURED_FILE, PLOT_FILE, TABLE_FILE

    config = BenchConfig(
        models=names,
        forms=_list("form", form, str),
        dtypes=_list("dtype", dtype, str),
        tasks=_list("task", task, str),
        devices=_list("device", device, str),
        threads=None if threads is None else _list("threads", threads, int),
        image_sizes=_list("image-size", image_size, int),
        batch_sizes=_list("batch-size", batch_size, int),
        base=base,
        repeats=repeats,
        seconds=seconds,
        calibration=calibration,
        retry=retry,
        out=None if out is None else expanded(out),
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
        files = ", ".join((MEASURED_FILE, CSV_FILE, TABLE_FILE, PLOT_FILE))
        say()
        say(f"Written to {config.folder}: {files}")
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
