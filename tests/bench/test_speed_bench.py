"""Benches from the first question to the tables; the measurements are made up."""

import csv
from collections import Counter
from itertools import groupby

import pytest
import yaml
from PIL import Image

from cvt.bench.speed import BenchStopped, save_speed_plot
from cvt.errors import UserError
from speed_benches import MACS, FakeSpeed, bench

OURS, THEIRS = "cvt_13:eager:float32", "hf/cvt_13:eager:float32"


def rows(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_every_round_measures_everything_once_and_settings_stay_together(tmp_path):
    do = FakeSpeed()
    bench(tmp_path, do=do, batch_sizes=(1, 16, 32), repeats=3, forms=("eager", "deploy"))
    assert len(do.asked) == 3 * 3 * 4
    rounds = [do.asked[i * 12 : (i + 1) * 12] for i in range(3)]
    orders = set()
    for each in rounds:
        settings = [size for size, _ in groupby(told["batch_size"] for told in each)]
        assert sorted(settings) == [1, 16, 32]
        labels = [f"{told['model']}:{told['form']}" for told in each]
        assert set(Counter(labels).values()) == {3}
        orders.add(tuple(labels))
    assert len(orders) == 3
    assert {told["cache"].startswith(str(tmp_path)) for told in do.told} == {True}
    assert len({told["cache"] for told in do.told}) == 12
    again = FakeSpeed()
    bench(tmp_path / "again", do=again, batch_sizes=(1, 16, 32), repeats=1,
          forms=("eager", "deploy"))  # fmt: skip
    assert again.labels == do.labels[:12]


def test_ratios_are_of_the_same_round(tmp_path):
    do = FakeSpeed(rates={OURS: [20.0, 60.0, 90.0], THEIRS: [10.0, 20.0, 60.0]})
    results = bench(tmp_path, do=do, repeats=3, base="hf/cvt_13")
    base, ours = results.rows if results.rows[0].label == THEIRS else results.rows[::-1]
    assert (base.label, ours.label) == (THEIRS, OURS)
    # 60 / 20 would be what the medians say
    assert ours.ratio == 2.0
    assert (ours.ratio_min, ours.ratio_max, ours.rounds) == (1.5, 3.0, 3)
    assert (base.ratio_min, base.ratio_max) == (1.0, 1.0)
    assert (ours.images_per_s, ours.images_per_s_min) == (60.0, 20.0)
    assert ours.ms == pytest.approx(1000 * 16 / 60)
    assert ours.memory_mb == 32.0
    assert ours.prepare_s == 0.5
    assert ours.first_call_s == 2.5  # the first round's
    assert ours.gflops == pytest.approx(60 * 2 * MACS / 1e9)
    assert ours.of_peak == pytest.approx(120 / 400)


def test_a_training_step_is_three_forward_passes(tmp_path):
    results = bench(tmp_path, tasks=("inference", "training"))
    shares = {row.task: row.of_peak for row in results.rows if row.label == OURS}
    assert shares["training"] == pytest.approx(3 * shares["inference"])


def test_files(tmp_path):
    results = bench(tmp_path, batch_sizes=(1, 16), forms=("eager", "deploy"), draw=save_speed_plot)
    measured = rows(tmp_path / "measurements.csv")
    assert len(measured) == 2 * 2 * 4
    assert {each["round"] for each in measured} == {"1", "2"}
    assert all(float(each["load"]) >= 0 and each["date"].endswith("+00:00") for each in measured)
    table = rows(tmp_path / "table.csv")
    assert len(table) == 8
    assert table[0]["images_per_s"] == "100.0"
    text = (tmp_path / "table.md").read_text()
    for words in ("cvt bench cvt_13 hf/cvt_13 --form eager,deploy", "a processor", "torch 1.2.3",
                  "OMP_NUM_THREADS=2", "load average", "16 measurements in 2 rounds",
                  "## Inference, batch 1, 224x224 pixels, cpu, 2 threads", "400 GFLOP/s",
                  "| cvt_13:deploy:float32 | 100 (100 to 100) | 10.0 | 1.00 (1.00"):  # fmt: skip
        assert words in text, words
    with Image.open(tmp_path / "speed.png") as image:
        assert image.width > 1000
        assert len(image.convert("RGB").getcolors(1 << 24)) > 10
    assert results.to_dict()["rows"][0]["rounds"] == 2


def test_what_is_there_is_gone_on_with(tmp_path):
    bench(tmp_path, repeats=2)
    do = FakeSpeed()
    assert len(bench(tmp_path, do=do, repeats=2).rows) == 2
    assert do.asked == []
    results = bench(tmp_path, do=do, repeats=3)
    assert sorted(do.labels) == [OURS, THEIRS]
    assert results.rows[0].rounds == 3


def test_a_stopped_bench_goes_on_and_a_broken_round_is_made_anew(tmp_path):
    do = FakeSpeed(stop_at=4)
    with pytest.raises(BenchStopped, match="Stopped after 3 of 4 measurements; the same command"):
        bench(tmp_path, do=do)
    assert len(rows(tmp_path / "measurements.csv")) == 3
    assert "table.md" in {path.name for path in tmp_path.iterdir()}
    again = FakeSpeed()
    results = bench(tmp_path, do=again)
    assert sorted(again.labels) == [OURS, THEIRS]  # both: their ratio is of one time
    assert len(rows(tmp_path / "measurements.csv")) == 4
    assert results.rows[0].rounds == 2


def test_a_failure_stands_in_its_row_and_the_rest_goes_on(tmp_path, capsys):
    do = FakeSpeed(broken={OURS: "Out of memory: too much."})
    results = bench(tmp_path, do=do, repeats=3, base="hf/cvt_13", progress=True)
    assert Counter(do.labels) == {OURS: 1, THEIRS: 3}
    assert results.has_failures
    failed = next(row for row in results.rows if row.label == OURS)
    assert (failed.images_per_s, failed.ratio, failed.error) == (
        None,
        None,
        "Out of memory: too much.",
    )
    said = capsys.readouterr().out
    assert f"{OURS}, inference, batch 16" in said
    assert "failed: Out of memory: too much." in said
    text = (tmp_path / "table.md").read_text()
    assert "| cvt_13:eager:float32 | failed | - |" in text
    assert "Out of memory: too much." in text.partition("## Notes")[2]
    again = FakeSpeed()
    bench(tmp_path, do=again, repeats=3, base="hf/cvt_13")
    assert again.asked == []


def test_failures_are_tried_again_only_when_that_is_asked_for(tmp_path):
    bench(tmp_path, do=FakeSpeed(broken={OURS: "Needs openvino."}), base="hf/cvt_13")
    text = (tmp_path / "table.md").read_text()
    assert "What failed stays so until the command is given --retry." in text
    mended = {"software": {"torch": "1.2.3", "openvino": "2026"}}  # as the sentence asked for
    again = FakeSpeed(**mended)
    assert bench(tmp_path, do=again, base="hf/cvt_13").has_failures
    assert again.asked == []
    results = bench(tmp_path, do=again, base="hf/cvt_13", retry=True)
    assert not results.has_failures
    assert [row.rounds for row in results.rows] == [2, 2]
    assert Counter(again.labels) == {OURS: 2, THEIRS: 2}  # both: their ratio is of one time
    assert "--retry" not in (tmp_path / "table.md").read_text()
    assert yaml.safe_load((tmp_path / "bench.yaml").read_text())["software"] == mended["software"]
    assert bench(tmp_path, do=again, base="hf/cvt_13", retry=True).rows
    assert len(again.asked) == 4


def test_a_retry_leaves_settings_alone_where_nothing_failed(tmp_path):
    do = FakeSpeed(broken={OURS: "It broke."}, broken_at=32)
    bench(tmp_path, do=do, batch_sizes=(1, 32))
    again = FakeSpeed()
    bench(tmp_path, do=again, batch_sizes=(1, 32), retry=True)
    assert {told["batch_size"] for told in again.asked} == {32}


def test_what_the_machine_lacks_stands_in_its_rows_and_costs_no_process(tmp_path):
    lacking = {"cpu": {"bf16": "No such instructions."},
               "cuda": {"float32": "No such device.", "bf16": "No such device."}}  # fmt: skip
    do = FakeSpeed(lacking=lacking)
    results = bench(tmp_path, models=("cvt_13",), do=do, dtypes=("float32", "bf16"),
                    devices=("cpu", "cuda"))  # fmt: skip
    assert do.labels == [OURS, OURS]
    errors = {(row.device, row.dtype): row.error for row in results.rows}
    assert errors == {("cpu", "float32"): "", ("cpu", "bf16"): "No such instructions.",
                      ("cuda", "float32"): "No such device.",
                      ("cuda", "bf16"): "No such device."}  # fmt: skip
    notes = (tmp_path / "table.md").read_text().partition("## Notes")[2]
    assert "Failed: everything (inference, batch 16, 224x224 pixels, cuda): No such" in notes


def test_agreement_is_a_column_where_there_is_some(tmp_path):
    do = FakeSpeed(more={"demo:openvino:int8": {"agreement": 98.5, "logit_error": 0.025,
                                                "judged_on": 300}})  # fmt: skip
    results = bench(tmp_path, models=("cvt_13", "demo:openvino:int8"), do=do, calibration="photos")
    assert do.questions["calibration"] == "photos"
    assert {told["calibration"] for told in do.told} == {"photos"}
    text = (tmp_path / "table.md").read_text()
    assert "| First call | Of peak | As float32 |" in text
    assert "| 98.5 % |" in text
    assert "300 images of photos" in text
    assert "demo:openvino:int8 0.025" in text
    assert "those of the checkpoint for demo" in text
    assert "of seed 0, for cvt_13" in text
    row = results.to_dict()["rows"][1]
    assert (row["agreement"], row["logit_error"], row["judged_on"]) == (98.5, 0.025, 300)
    bench(tmp_path / "other")
    assert "As float32" not in (tmp_path / "other" / "table.md").read_text()


def test_logits_that_are_no_numbers_stand_in_their_row(tmp_path):
    """As in fp16, where a network that was not trained in it may overflow."""
    who = "demo:deploy:fp16"
    more = {who: {"agreement": 10.0, "logit_error": float("nan"), "judged_on": 10}}
    for _ in range(2):  # measured, and read
        results = bench(tmp_path, models=("demo", who), do=FakeSpeed(more=more), calibration="a")
        assert [row.agreement for row in results.rows] == [None, 10.0]
        assert f"{who} nan" in (tmp_path / "table.md").read_text()


def test_other_weights_are_another_bench(tmp_path):
    bench(tmp_path, models=("demo",))
    with pytest.raises(UserError, match="weights is"):
        bench(tmp_path, models=("demo",), do=FakeSpeed(weights="another"))


def test_a_base_that_fails_leaves_no_ratios(tmp_path):
    do = FakeSpeed(broken={THEIRS: "It broke."})
    results = bench(tmp_path, do=do, base="hf/cvt_13")
    assert [row.ratio for row in results.rows] == [None, None]
    assert next(row for row in results.rows if row.label == OURS).rounds == 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"models": ("cvt_13",)}, "entries"),
        ({"batch_sizes": (1,)}, r"batch sizes is \[16\] there, and \[1\] now"),
        ({"base": "hf/cvt_13"}, "another bench"),
        ({"seconds": 3.0}, "seconds is 2.0 there, and 3.0 now"),
        ({"do": FakeSpeed(hardware="another")}, "hardware"),
    ],
)
def test_another_bench_is_refused(tmp_path, changes, words):
    bench(tmp_path)
    before = (tmp_path / "measurements.csv").read_bytes()
    with pytest.raises(UserError, match=words):
        bench(tmp_path, **changes)
    assert (tmp_path / "measurements.csv").read_bytes() == before


def test_folders_that_hold_something_else(tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match="not empty and holds no bench"):
        bench(tmp_path)
    (tmp_path / "bench.yaml").write_text("[1, 2]")
    with pytest.raises(UserError, match="does not describe a bench"):
        bench(tmp_path)


def test_a_damaged_table_is_refused(tmp_path):
    bench(tmp_path)
    path = tmp_path / "measurements.csv"
    path.write_text(path.read_text().replace("inference", "inference,1"))
    with pytest.raises(UserError, match=r"not a table of measurements"):
        bench(tmp_path, repeats=3)
    path.write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="it has no column task"):
        bench(tmp_path)


def test_the_folder_says_what_it_is(tmp_path):
    bench(tmp_path)
    stored = yaml.safe_load((tmp_path / "bench.yaml").read_text())
    assert stored["entries"] == [OURS, THEIRS]
    assert stored["environment"] == {"OMP_NUM_THREADS": "2"}
