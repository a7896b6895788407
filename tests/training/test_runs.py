import json
import os
import shutil
import subprocess
import sys

import pytest

from cvt.errors import UserError
from cvt.training.config import save_config
from cvt.training.report import TrainResult, save_result
from cvt.training.run_folder import EpochRow, write_metrics
from cvt.training.runs import differences, read_runs
from trained import config_of


def history(*top1):
    return [
        EpochRow(
            epoch=epoch, train_loss=1.0, val_loss=1.0, val_top1=value, lr=0.1,
            images_per_s=100.0 * epoch, seconds=10.0, data_wait=0.0, memory_mb=64.0,
        )
        for epoch, value in enumerate(top1, 1)
    ]  # fmt: skip


def make_run(path, *top1, test_top1=None, **config):
    """A run's folder with so many epochs; finished if there is a test figure."""
    path.mkdir(parents=True)
    values = {"data": "digits", "model": "cvt_nano_32", "epochs": 3, "out": str(path), **config}
    save_config(path / "config.yaml", config_of(**values))
    if top1:
        write_metrics(path, history(*top1))
    if test_top1 is not None:
        result = TrainResult(
            run=path, data="digits", best_epoch=1, best_top1=max(top1), best_loss=1.0,
            test_top1=test_top1, test_loss=1.0, seconds=3.0,
        )  # fmt: skip
        save_result(path, result)
    return path


@pytest.fixture
def folder(tmp_path, checkpoint):
    """A finished run, a better one below that was stopped, and one that has just begun."""
    shutil.copy(checkpoint, make_run(tmp_path / "a", 50, 70, 60, test_top1=65) / "last.safetensors")
    make_run(tmp_path / "sweep" / "b", 80, epochs=9)
    make_run(tmp_path / "c")
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("no run")
    return tmp_path


def test_runs_are_found_below_and_sorted_by_their_best(folder):
    runs, bad = read_runs(folder)
    assert bad == []
    assert [run.name for run in runs] == ["sweep/b", "a", "c"]
    assert [run.state for run in runs] == ["stopped", "finished", "stopped"]
    stopped, finished, new = runs
    assert (finished.best.epoch, finished.best.val_top1, finished.result.test_top1) == (
        2,
        70.0,
        65.0,
    )
    assert (finished.seconds, finished.images_per_s) == (30.0, 200.0)
    assert (stopped.config["epochs"], len(stopped.history), stopped.result) == (9, 1, None)
    assert (new.best, new.images_per_s, new.seconds) == (None, None, 0)


def test_parameters_are_counted_without_running_statistics(folder):
    import cvt

    model = cvt.load(folder / "a" / "last.safetensors")
    finished = read_runs(folder)[0][1]
    assert finished.num_params == sum(each.numel() for each in model.parameters())


def test_a_run_is_a_folder_of_runs_too(folder):
    (run,), _ = read_runs(folder / "a")
    assert run.name == "a"


def test_what_exists_goes_to_json(folder):
    stopped, finished, new = (json.loads(json.dumps(run.to_dict())) for run in read_runs(folder)[0])
    assert finished["best_top1"] == 70
    assert finished["config"]["optim.opt"] == "adamw"
    assert "test_top1" not in stopped
    assert "best_top1" not in new
    assert new["epochs_done"] == 0


def test_broken_runs_are_named_and_the_rest_is_read(folder):
    for name, file, content in (
        ("no_yaml", "config.yaml", "[1,"),
        ("list", "config.yaml", "[1]"),
        ("other", "config.yaml", "a: 1"),
        ("gone", "metrics.csv", "epoch\n1\n"),
    ):
        (folder / name).mkdir()
        (folder / name / file).write_text(content)
    for name, file, content in (
        ("json", "result.json", "{"),
        ("number", "result.json", "3"),
        ("table", "metrics.csv", "epoch,val_top1\nx,y\n"),
        ("weights", "best.safetensors", "short"),
    ):
        (make_run(folder / name, 99) / file).write_text(content)
    runs, bad = read_runs(folder)
    assert [run.name for run in runs] == ["sweep/b", "a", "c"]
    named = {sentence.split(":")[0].rsplit("/", 1)[1]: sentence for sentence in bad}
    assert sorted(named) == sorted(
        ["gone", "json", "list", "no_yaml", "number", "other", "table", "weights"]
    )
    assert "not YAML" in named["no_yaml"]
    assert "No such file" in named["gone"]
    assert "no JSON" in named["json"]
    assert "best.safetensors is truncated" in named["weights"]


def test_fields_of_other_versions_are_no_obstacle(folder):
    config = folder / "c" / "config.yaml"
    config.write_text(config.read_text() + "invented_later: 5\n")
    runs, bad = read_runs(folder)
    assert bad == []
    assert differences(runs)["invented_later"] == [None, None, 5]


def test_nothing_to_list_is_a_mistake(tmp_path):
    with pytest.raises(UserError, match="There is no folder"):
        read_runs(tmp_path / "runs")
    with pytest.raises(UserError, match="There is no run in"):
        read_runs(tmp_path)


def test_a_run_in_training_is_seen_until_its_process_ends(folder):
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom cvt.training.run_folder import held\n"
        "with held(Path(sys.argv[1])):\n    print('in', flush=True)\n    time.sleep(60)"
    )
    arguments = [sys.executable, "-c", code, str(folder / "c")]
    other = subprocess.Popen(arguments, stdout=subprocess.PIPE)
    try:
        other.stdout.readline()
        assert {run.name: run.state for run in read_runs(folder)[0]}["c"] == "running"
    finally:
        other.kill()
        other.communicate()
    assert {run.name: run.state for run in read_runs(folder)[0]}["c"] == "stopped"


def test_only_settings_that_differ_are_compared(tmp_path):
    optim = {"base_lr": 8e-3, "lr": 1e-3, "min_lr": 1e-5}
    for number, scale in enumerate((1, 2)):
        rate = {name: value * scale for name, value in optim.items()}
        make_run(tmp_path / f"run-{number}", 90 - number, batch_size=64, seed=number, optim=rate)
    runs, _ = read_runs(tmp_path)
    assert differences(runs) == {"seed": [0, 1], "optim.lr": [1e-3, 2e-3]}
    # A rate that was given by itself does not follow from another setting.
    make_run(tmp_path / "odd", 1, batch_size=64, optim={**optim, "lr": 0.5})
    found = differences(read_runs(tmp_path)[0])
    assert found["optim.base_lr"] == [8e-3, 16e-3, 8e-3]
    assert found["optim.min_lr"] == [1e-5, 2e-5, 1e-5]


def test_reading_runs_imports_neither_torch_nor_numpy_s_friends(folder):
    code = (
        "import sys\nfrom cvt.training.runs import read_runs\n"
        "print(len(read_runs(sys.argv[1])[0]))\n"
        "print([m for m in ('torch', 'timm', 'matplotlib', 'tensorboard') if m in sys.modules])"
    )
    arguments = [sys.executable, "-c", code, str(folder)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["3", "[]"]


ODD_CONFIGS = [
    "null",
    "data: [1]\nmodel: m",
    "data: null\nmodel: m",
    "data: d\nmodel: m\nepochs: lots",
    "data: d\nmodel: m\nbatch_size: {}",
    "data: d\nmodel: m\noptim: []",
    "data: d\nmodel: m\noptim: {lr: fast, base_lr: 1, min_lr: 0}",
    "data: d\nmodel: m\noptim: {lr: [1]}",
    "a: &a [x]\ndata: *a\nmodel: m",
    "data: !!python/name:os.system\nmodel: m",
    "data: d\nmodel: " + "[" * 3000,
    "data: d\nmodel: m\nseed: " + "1" * 5000,
    "\x00",
]
ODD_RESULTS = [
    "null",
    "[]",
    "[" * 100_000,
    *(
        f'{{"data": "d", "best_loss": 1, "seconds": 1, {rest}}}'
        for rest in (
            '"best_epoch": null, "best_top1": 1',
            '"best_epoch": -1, "best_top1": 1',
            '"best_epoch": 1, "best_top1": "high"',
            '"best_epoch": 1, "best_top1": 1, "test_top1": [99]',
            '"best_epoch": 1, "best_top1": 1, "test_top1": 1e999',
            '"best_epoch": 1, "best_top1": ' + "9" * 5000,
        )
    ),
]
ODD_METRICS = [
    "epoch,val_loss,val_top1\nnan,1,1\n",
    "epoch,val_loss,val_top1\n1e999,1,1\n",
    "epoch,val_loss,val_top1\n-3,1,1\n",
    "epoch,val_loss,val_top1,seconds\n1,1,1,1e300\n",
    "epoch,val_loss,val_top1,images_per_s\n1,1,1,inf\n",
    'epoch,"' + "x" * 200_000 + '"\n1\n',
    "epoch\n" + "1" * 5000,
]


@pytest.mark.parametrize(
    ("file", "content"),
    [
        *(("config.yaml", each) for each in ODD_CONFIGS),
        *(("result.json", each) for each in ODD_RESULTS),
        *(("metrics.csv", each) for each in ODD_METRICS),
    ],
)
def test_no_run_stops_the_list(folder, file, content):
    (make_run(folder / "odd", 99) / file).write_text(content)
    runs, bad = read_runs(folder)
    assert [run.name for run in runs] == ["sweep/b", "a", "c"]
    [sentence] = bad
    assert sentence.startswith(f"{folder}/odd: ")
    assert len(sentence) < 1500


@pytest.mark.parametrize("file", ["config.yaml", "result.json", "metrics.csv", "best.safetensors"])
@pytest.mark.parametrize("kind", ["pipe", "folder", "endless"])
def test_what_is_no_file_is_not_waited_for(folder, file, kind):
    path = make_run(folder / "odd", 99) / file
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")
    runs, bad = read_runs(folder)
    assert len(runs) + len(bad) == 4
    assert len(runs) >= 3


def test_links_that_go_round_and_folders_without_end_do_no_harm(folder):
    (folder / "sweep" / "up").symlink_to(folder, target_is_directory=True)
    (folder / "here").symlink_to("here")
    deep = folder / "deep"
    for _ in range(40):
        deep = deep / ("x" * 60)
    deep.mkdir(parents=True)
    runs, bad = read_runs(folder)
    assert [run.name for run in runs] == ["sweep/b", "a", "c"]
    assert bad == []
