"""Accuracy against CPU-seconds on sets of photographs: `cvt train` and what people use instead.

    python benchmarks/photos.py ~/photos/trash ~/photos/houses --out benchmarks/results/photos

A method is a `cvt` command with DATA in the place of the set; `histograms` (colours and gradients
under boosted trees); or `NETWORK/PIXELS`, one of timm's from scratch in a plain loop, which ends
after as many CPU-seconds as `cvt train DATA` took, or after `--cpu-seconds`. Each runs in a process
of its own, and its CPU-seconds are user and system time of that process and of all that it started,
imports and the test included. What has its row already is not measured again.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from datetime import date
from math import cos, pi
from pathlib import Path
from typing import Any

import numpy as np
import sklearn
import timm
import torch
from PIL import Image
from sklearn.ensemble import HistGradientBoostingClassifier
from torch import Tensor, nn
from torchvision import transforms

from cvt.data import ImageSet, Joined, load_data
from cvt.errors import UserError
from cvt.runtime import hardware, seed_all, software
from cvt.tables import Table, read_csv, write_csv

DEFAULT = "cvt train DATA"
METHODS = (
    DEFAULT,
    "cvt train DATA --minutes 3",
    "cvt train DATA --fast",
    "cvt probe demo DATA",
    "histograms",
    "resnet10t/64",
    "resnet10t/96",
    "mobilenetv3_small_100/96",
    "regnetx_002/96",
    "resnet18/64",
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """What a method reached on a set; accuracies in percent."""

    data: str
    method: str
    threads: int
    budget: float | None = None
    num_classes: int
    num_train: int
    num_test: int
    test_top1: float
    val_top1: float | None = None
    cpu_seconds: float
    seconds: float
    code: str
    measured: str
    machine: str


# --- A method in a process of its own.


def run(command: Sequence[str], threads: int) -> tuple[Any, float, float]:
    """Returns the JSON that a command prints, its CPU-seconds and its seconds."""
    begun = time.perf_counter()
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    with tempfile.TemporaryFile("w+") as printed, tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(
            command, stdout=printed, stderr=said, env=environment, start_new_session=True
        )
        try:
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
        seconds = time.perf_counter() - begun
        for file in (printed, said):
            file.seek(0)
        # A `cvt` command that left broken images out ends with 1, and has its figures all the same.
        with suppress(ValueError):
            return json.load(printed), usage.ru_utime + usage.ru_stime, seconds
        last = said.read().strip().rpartition("\n")[2]
        raise UserError(f"{' '.join(command)} ended with code {process.returncode}: {last}")


def measure(data: Path, method: str, threads: int, budget: float | None) -> Row:
    """Runs a method on a set, and tells what it reached."""
    with tempfile.TemporaryDirectory(prefix="photos-") as folder:
        if method.startswith("cvt "):
            words = [str(data) if word == "DATA" else word for word in method.split()[1:]]
            command = [sys.executable, "-P", "-m", "cvt", *words, "--json"]
            command += ["--out", f"{folder}/run"] if words[0] == "train" else []
        else:
            command = [sys.executable, __file__, "--alone", method, str(data)]
            command += [] if budget is None else ["--cpu-seconds", str(budget)]
        found, cpu_seconds, seconds = run(command, threads)
    if "scores" in found:
        linear = {each["split"]: each for each in found["scores"] if each["method"] == "linear"}
        found = {"test_top1": linear["test"]["top1"], "best_top1": linear["val"]["top1"]}
    train, test = opened(data)
    return Row(
        data=data.name,
        method=method,
        threads=threads,
        budget=budget,
        num_classes=len(train.classes),
        num_train=len(train),
        num_test=len(test),
        test_top1=found["test_top1"],
        val_top1=found.get("best_top1"),
        cpu_seconds=cpu_seconds,
        seconds=seconds,
        code=commit(),
        measured=str(date.today()),
        machine=hardware(torch.device("cpu")),
    )


def commit() -> str:
    """Returns the checkout's commit, marked where its sources differ from it."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()


# --- What people use instead; each learns from all images but those of the test.


def opened(data: Path) -> tuple[ImageSet, ImageSet]:
    """Returns what there is to learn from, a validation split cut out of it included; the test."""
    splits = load_data(str(data))
    if splits.test is None:
        raise UserError(f"Got {data} without a test split, expected one; add a folder test/.")
    whole = splits.val_was_cut and splits.val is not None
    return Joined([splits.train, splits.val]) if whole else splits.train, splits.test


def decoded(images: ImageSet, change: Callable[[Image.Image], Any]) -> tuple[list[Any], np.ndarray]:
    """Returns all images, each changed to what is needed of it, and their labels."""
    return [change(images.image(index)) for index in range(len(images))], images.labels


def histograms(data: Path) -> float:
    """Histograms of colours and gradients under gradient-boosted trees; returns top-1."""
    train, test = opened(data)
    classifier = HistGradientBoostingClassifier(random_state=0)
    classifier.fit(*decoded(train, features))
    return 100 * classifier.score(*decoded(test, features))


def features(image: Image.Image) -> np.ndarray:
    """Returns histograms of hue, saturation and value by quarters, and HOG, at 64 pixels.

    HOG as Dalal and Triggs (CVPR 2005) have it, but for the interpolation between bins: nine
    orientations without sign, cells of 8x8 pixels, blocks of 2x2 cells of length 1.
    """
    image = image.resize((64, 64), Image.Resampling.BILINEAR)
    hsv = np.asarray(image.convert("HSV"))
    quarters = [hsv[y : y + 32, x : x + 32] for y in (0, 32) for x in (0, 32)]
    colours = [
        np.histogram(quarter[..., channel], bins=16, range=(0, 256))[0] / quarter[..., 0].size
        for quarter in quarters
        for channel in range(3)
    ]
    grey = np.asarray(image.convert("L"), np.float64) / 255
    dy, dx = np.gradient(grey)
    bins = (np.arctan2(dy, dx) % pi / pi * 9).astype(int) % 9
    cells = np.zeros((8, 8, 9))
    rows, columns = np.indices(grey.shape) // 8
    np.add.at(cells, (rows, columns, bins), np.hypot(dy, dx))
    blocks = np.stack([cells[y : y + 2, x : x + 2].ravel() for y in range(7) for x in range(7)])
    blocks /= np.linalg.norm(blocks, axis=1, keepdims=True) + 1e-3
    return np.concatenate([*colours, blocks.ravel()])


BATCH = 64
PEAK_LR = 2e-3
PREPARE = (
    transforms.ToTensor(),
    transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
)


def plain_loop(data: Path, name: str, size: int, cpu_seconds: float) -> float:
    """Trains one of timm's networks from scratch; returns top-1.

    Random crops and flips, AdamW, one cycle of the learning rate over the CPU-seconds that are
    there after the imports, decoding and testing.
    """
    seed_all(0)
    train, test = opened(data)
    augment = transforms.Compose(
        [
            transforms.RandomResizedCrop(size, scale=(0.35, 1)),
            transforms.RandomHorizontalFlip(),
            *PREPARE,
        ]
    )
    whole = transforms.Compose(
        [transforms.Resize(round(1.1 * size)), transforms.CenterCrop(size), *PREPARE]
    )
    images, labels = decoded(train, transforms.Resize(round(1.25 * size)))
    tests, answers = decoded(test, whole)
    network = timm.create_model(name, num_classes=len(train.classes))
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.05)
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    begun = time.process_time()
    accuracy(network, tests, answers)
    tested = time.process_time()
    end = cpu_seconds - 1.1 * (tested - begun)
    for chosen in batches(len(images)):
        now = time.process_time()
        if now >= end:
            break
        done = (now - tested) / (end - tested)
        rate = done / 0.2 if done < 0.2 else (1 + cos(pi * (done - 0.2) / 0.8)) / 2
        for group in optimizer.param_groups:
            group["lr"] = PEAK_LR * max(rate, 1e-3)
        batch = torch.stack([augment(images[index]) for index in chosen])
        loss = criterion(network.train()(batch), torch.from_numpy(labels[chosen]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return accuracy(network, tests, answers)


def batches(count: int) -> Iterator[Tensor]:
    """Yields positions of whole batches, epoch after epoch, each in an order of its own."""
    while True:
        yield from torch.randperm(count).split(BATCH)[: max(count // BATCH, 1)]


@torch.inference_mode()
def accuracy(network: nn.Module, images: list[Tensor], labels: np.ndarray) -> float:
    """Returns the percentage of images whose most likely class is right."""
    network.eval()
    said = torch.cat([network(batch).argmax(1) for batch in torch.stack(images).split(BATCH)])
    return 100 * float((said.numpy() == labels).mean())


# --- The rows, kept after each of them, and the page.


def key(row: Row) -> tuple[Any, ...]:
    """What a row is known by; another budget is another measurement."""
    return row.data, row.method, row.threads, row.budget


def page(rows: Sequence[Row]) -> str:
    """Returns a table for each set, best first."""
    columns = {
        "Method": "method",
        "Threads": "threads",
        "Top-1 %": lambda row: f"{row.test_top1:.1f} ± {error(row):.1f}",
        "CPU-seconds": "cpu_seconds:.0f",
        "Seconds": "seconds:.0f",
        "Code": "code",
        "Measured": "measured",
    }
    tables = []
    for data in sorted({row.data for row in rows}):
        some = sorted((row for row in rows if row.data == data), key=lambda row: -row.test_top1)
        row = some[0]
        title = f"{data}: {row.num_train:,} images of {row.num_classes} classes, tested on "
        tables.append(Table.of(some, columns, title=f"{title}{row.num_test:,}").to_markdown())
    versions = ", ".join(f"{name} {version}" for name, version in software().items())
    notes = (
        "`cvt` methods are commands as they stand, DATA the set; the others are in "
        "`benchmarks/photos.py`. A run each; ± is half a 95 % interval of the test's share.",
        "CPU-seconds: user and system time of the process and all that it started.",
        f"{'; '.join(sorted({row.machine for row in rows}))}; {versions}, scikit-learn "
        f"{sklearn.__version__}. The machine did other things too: read CPU-seconds, not seconds.",
    )
    return "\n".join([*tables, *(f"- {note}" for note in notes)]) + "\n"


def error(row: Row) -> float:
    """Half the width of the 95 % interval that the test's size leaves, in points."""
    share = row.test_top1 / 100
    return 196 * (share * (1 - share) / row.num_test) ** 0.5


def keep(out: Path, rows: Sequence[Row]) -> None:
    """Writes the rows and the page."""
    write_csv(out / "results.csv", [each.name for each in fields(Row)], map(asdict, rows), digits=5)
    (out / "table.md").write_text(page(rows), encoding="utf-8")


def kept(out: Path) -> list[Row]:
    """Reads the rows back."""
    return read_csv(out / "results.csv", Row, "a table of methods", "remove it")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures what is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", nargs="*", type=Path, help="class folders with train/ and test/")
    parser.add_argument("--methods", nargs="+", default=METHODS, metavar="METHOD")
    parser.add_argument("--cpu-seconds", type=float, help="what a plain loop may take")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/photos"))
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    said = parser.parse_args(arguments)
    if said.alone:
        print(json.dumps({"test_top1": alone(said.alone, said.data[0], said.cpu_seconds)}))
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    rows = kept(said.out)
    for data in said.data:
        for method in said.methods:
            budget = said.cpu_seconds if "/" in method else None
            if "/" in method and budget is None:
                like = [row for row in rows if key(row)[:3] == (data.name, DEFAULT, said.threads)]
                if not like:
                    print(f"{data.name}, {method}: no {DEFAULT!r} to take as long as; left out")
                    continue
                budget = round(like[-1].cpu_seconds)
            if (data.name, method, said.threads, budget) in map(key, rows):
                continue
            try:
                row = measure(data, method, said.threads, budget)
            except UserError as problem:
                print(f"{data.name}, {method}: {problem}", flush=True)
                continue
            print(
                f"{data.name}, {method}: {row.test_top1:.1f} %, {row.cpu_seconds:.0f} s", flush=True
            )
            rows.append(row)
            keep(said.out, rows)
    if rows:
        keep(said.out, rows)


def alone(method: str, data: Path, cpu_seconds: float) -> float:
    """Does one of this file's methods in this process; returns top-1."""
    if method == "histograms":
        return histograms(data)
    name, size = method.split("/")
    return plain_loop(data, name, int(size), cpu_seconds)


if __name__ == "__main__":
    main()
