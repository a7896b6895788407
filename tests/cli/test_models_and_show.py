import json


def test_models_lists_rows_and_weights(run):
    code, out, _ = run("models")
    assert code == 0
    assert "19,997,480" in out
    assert "cvt_13.msft_in22k_ft_in1k_384" in out
    assert "not the paper" in next(line for line in out.splitlines() if "cvt_nano_32" in line)


def test_models_for_machines(run):
    rows = [json.loads(line) for line in run("models", "cvt_13*", "--json")[1].splitlines()]
    assert rows[0]["model"] == "cvt_13"
    assert rows[0]["params"] == 19_997_480
    assert [row["top1"] for row in rows[1:]] == [81.6, 83.0, 83.3]


def test_show_is_the_stage_table(run):
    code, out, _ = run("show", "cvt_13", "--size", "224x160")
    assert code == 0
    last = next(line for line in out.splitlines() if line.strip().startswith("3 "))
    assert last.split()[:8] == ["3", "14x10", "141", "7x5", "36", "384", "6", "10"]
    assert "19,997,480" in out


def test_show_for_machines(run):
    sheet = json.loads(run("show", "cvt_21", "--json")[1])
    assert sheet["num_params"] == 31_622_696
    assert round(sheet["macs"] / 1e9, 3) == 7.178
    assert [stage["depth"] for stage in sheet["stages"]] == [1, 4, 16]
