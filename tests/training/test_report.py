import json

from cvt.training.report import TrainResult, report, save_result


def result(run, **changes):
    values = {
        "run": run, "data": "my photos", "best_epoch": 2, "best_top1": 90.0, "best_loss": 0.5,
        "test_top1": 89.5, "test_loss": 0.6, "seconds": 8040.0, "bad": ("a.png is empty",),
    }  # fmt: skip
    return TrainResult(**values | changes)


def test_the_result_is_kept_as_json(tmp_path):
    save_result(tmp_path, result(tmp_path))
    kept = json.loads((tmp_path / "result.json").read_text())
    assert kept == result(tmp_path).to_dict()
    assert kept["test_top1"] == 89.5
    save_result(tmp_path, result(tmp_path, test_top1=None, test_loss=None))
    assert "test_top1" not in json.loads((tmp_path / "result.json").read_text())
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


def test_the_end_names_figures_files_and_what_to_type_next(tmp_path):
    run = tmp_path / "my run"
    lines = report(result(run)).splitlines()
    assert lines[1].startswith("Done in 2 h 14 min. Best epoch 2: validation top-1 90.00 %")
    assert "Test top-1 89.50 %, loss 0.6000." in lines
    assert "1 images could not be read and were skipped." in lines
    for name in ("README.md", "best.safetensors", "metrics.csv", "tensorboard/", "config.yaml"):
        assert any(line.strip().startswith(name) for line in lines)
    for command in (
        f"cvt eval '{run}' 'my photos'",
        f"cvt predict '{run}' IMAGE",
        f"cvt runs {tmp_path}",
        f"tensorboard --logdir '{run}'",
    ):
        assert f"  {command}" in lines


def test_what_was_not_measured_is_not_said(tmp_path):
    text = report(result(tmp_path, test_top1=None, test_loss=None, bad=()))
    assert "Test" not in text
    assert "skipped" not in text
