"""The scripts in benchmarks/ that measure on sets of photographs, on a generated set."""

import importlib
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from cvt.errors import UserError
from cvt.training.defaults import said
from shades import write_shades

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def photos():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        yield importlib.import_module("photos")


@pytest.fixture(scope="module")
def search(photos):
    return importlib.import_module("search")


@pytest.fixture(scope="module")
def shades(tmp_path_factory):
    return write_shades(tmp_path_factory.mktemp("shades"), {"train": (32, 32), "test": (8, 8)})


def test_a_process_is_measured_with_those_that_it_started(photos):
    burn = "import time\nwhile time.process_time() < 0.4: pass"
    command = [sys.executable, "-c", f"import subprocess, sys\n{_START.format(burn)}"]
    found, cpu_seconds, seconds = photos.run(command, threads=1)
    assert found == {"test_top1": 50}
    assert 0.4 < cpu_seconds < 2
    assert seconds > 0.3
    with pytest.raises(UserError, match="ended with code 3: no such thing"):
        photos.run(
            [
                sys.executable,
                "-c",
                "import sys; print('no such thing', file=sys.stderr); sys.exit(3)",
            ],
            threads=1,
        )


_START = "subprocess.run([sys.executable, '-c', {!r}])\nprint('{{\"test_top1\": 50}}')"


def test_methods_tell_bright_from_dark(photos, shades):
    assert photos.histograms(shades) > 80
    now = time.process_time()
    assert photos.plain_loop(shades, "test_resnet", 32, now + 0.8) > 80
    assert time.process_time() < now + 1.2


def test_a_row_is_kept_and_not_measured_again(photos, shades, tmp_path, monkeypatch, capsys):
    row = photos.Row(
        data=shades.name,
        method="histograms",
        threads=1,
        num_classes=2,
        num_train=64,
        num_test=16,
        test_top1=75.0,
        cpu_seconds=30.0,
        seconds=31.0,
        code="abc",
        measured="2026-11-28",
        machine="a machine",
    )
    measured = []
    monkeypatch.setattr(photos, "measure", lambda *what: measured.append(what) or row)
    for _ in range(2):
        photos.main(
            [str(shades), "--methods", "histograms", "resnet10t/64", "--out", str(tmp_path)]
        )
    assert measured == [(shades, "histograms", 1, None)]
    assert "no 'cvt train DATA' to take as long as" in capsys.readouterr().out
    assert photos.kept(tmp_path) == [row]
    assert "| histograms | 1 | 75.0 ± 21.2 | 30 | 31 |" in (tmp_path / "table.md").read_text()


def test_trials_try_each_value_equally_often(search):
    tried = search.settings(20)
    assert tried == search.settings(20)
    for name in ("image_size", "scale", "mix", "batch_size", "ema_decay"):
        count = Counter(one[name] for one in tried)
        assert max(count.values()) - min(count.values()) <= 1, name
    rates = sorted(one["lr"] for one in tried)
    assert 9 <= sum(rate < (3e-4 * 4e-3) ** 0.5 for rate in rates) <= 11
    assert all(one["freeze"] == "none" for one in tried if one["weights"] == "none")
    for one in tried:
        said(search.arguments_of(one, "demo", "cvt_nano_32"), "a trial")  # a run takes it


def test_a_search_goes_on_where_it_was(search, shades, tmp_path, monkeypatch):
    measured = []

    def measure(data, number, tried, weights, model, budget):
        measured.append(number)
        return search.Trial(
            data=data.name,
            start=weights,
            budget=budget,
            number=number,
            **tried,
            epochs=3,
            val_top1=50 + number,
            test_top1=60 - number,
            cpu_seconds=1.0,
            seconds=1.0,
            code="abc",
        )

    monkeypatch.setattr(search, "measure", measure)
    for _ in range(2):
        search.main([str(shades), "--trials", "5", "--out", str(tmp_path), "--cpu-seconds", "9"])
    assert measured == [0, 1, 2, 3, 4]
    text = (tmp_path / "table.md").read_text()
    assert text.index("| 54.0 | 56.0 | 3 |") < text.index("| 53.0 | 57.0 | 3 |")
