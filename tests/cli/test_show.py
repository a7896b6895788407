import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

import cvt
from cvt.systems.catalog import ROWS, SYSTEMS
from cvt.weights.checkpoint import load_checkpoint, save_checkpoint


def test_models_lists_rows_and_weights(run):
    code, out, _ = run("models")
    assert code == 0
    assert "19,997,480" in out
    assert "cvt_13.msft_in22k_ft_in1k_384" in out
    lines = {line.split()[0]: line for line in out.splitlines() if line.strip()}
    assert "not the paper" in lines["cvt_nano_32"]
    assert lines["cvt_13"].split() == ["cvt_13", "224x224", "19,997,480", "4.566", "81.6", "CvT"]
    assert lines["vit_base_patch8_224"].split()[2:4] == ["86,576,872", "-"]
    assert "counted by `cvt show NAME`" in out
    assert set(ROWS) <= set(lines)
    for system in SYSTEMS:
        assert system.paper in out


def test_a_short_list_counts_what_is_not_on_record(run):
    """`cvt models` shows no MACs for this row, of which nobody has an independent count."""
    _, out, _ = run("models", "vit_base_patch32*")
    assert out.splitlines()[1].split() == (
        ["vit_base_patch32_224", "224x224", "88,224,232", "4.409", "75.9", "ViT"]
    )
    assert "counted by" not in out
    assert "Published weights" not in out


def test_a_pattern_that_nothing_fits_names_the_nearest(run):
    code, _, err = run("models", "pvt_tinny")
    assert code == 2
    assert "Did you mean 'pvt_tiny'" in err


def test_models_for_machines(run):
    rows = [json.loads(line) for line in run("models", "cvt_13*", "--json")[1].splitlines()]
    assert rows[0]["model"] == "cvt_13"
    assert rows[0]["params"] == 19_997_480
    assert rows[0]["system"] == "CvT"
    assert set(rows[0]) == {"model", "system", "params", "macs", "size", "from_paper"}
    assert [row["top1"] for row in rows[1:]] == [81.6, 83.0, 83.3]


def test_show_is_the_stage_table(run):
    code, out, _ = run("show", "cvt_13", "--image-size", "224x160")
    assert code == 0
    last = next(line for line in out.splitlines() if line.strip().startswith("3 "))
    assert last.split()[:8] == ["3", "14x10", "141", "7x5", "36", "384", "6", "10"]
    assert out.startswith("cvt_13, CvT (Wu et al., ICCV 2021, arXiv 2103.15808), at 224x160 pixels")
    assert "19,997,480" in out


def test_show_for_machines(run):
    sheet = json.loads(run("show", "cvt_21", "--json")[1])
    assert sheet["num_params"] == 31_622_696
    assert round(sheet["macs"] / 1e9, 3) == 7.178
    assert [stage["depth"] for stage in sheet["stages"]] == [1, 4, 16]


def test_show_names_the_system_and_its_paper(run):
    _, out, _ = run("show", "pvt_nano_32")
    assert out.startswith("pvt_nano_32, of this library, not from the paper of PVT (Wang et al.")


@pytest.mark.parametrize(
    ("name", "size", "grids", "part", "parameters"),
    [
        ("tnt_s_patch16_224", "224x160", ["14x10"], "attention", "23,768,584"),
        ("resnet18", "64", ["32x32", "16x16", "8x8", "4x4", "2x2"], "convolution", "11,689,512"),
    ],
)
def test_show_without_stages_lists_the_maps_and_totals(run, name, size, grids, part, parameters):
    code, out, _ = run("show", name, "--image-size", size)
    assert code == 0
    lines = [line.split() for line in out.splitlines() if line.strip()]
    assert lines[1][:2] == ["Map", "Grid"]
    found = [line[:2] for line in lines[2 : 2 + len(grids)]]
    assert found == [[str(n), g] for n, g in enumerate(grids, start=1)]
    assert any(line[0] == part for line in lines)
    assert f"Parameters: {parameters} " in out
    assert "Stage" not in out


def test_a_token_layers_attention_counts_as_embedding(run):
    """T2T's two token layers are embeddings: nothing of them may show elsewhere.

    Over N tokens, S numbers in and 64 out: 3 S 64 N for q, k and v, 3 * 64 * 64 N behind them, and
    two products of N x N by 64; then the last, plain convolution.
    """
    sheet = json.loads(run("show", "t2t_vit_t_14", "--json")[1])
    layers = [(56 * 56, 3 * 49), (28 * 28, 64 * 9)]
    counts = [n * 64 * (3 * s + 3 * 64) + 2 * n * n * 64 for n, s in layers]
    assert [stage["macs"] for stage in sheet["stages"][:2]] == counts
    assert sheet["macs_by_part"]["embedding"] == sum(counts) + 14 * 14 * 64 * 9 * 384
    assert sheet["grids"] == [[56, 56], [28, 28], [14, 14]]


def test_help_of_models_imports_nothing_heavy():
    code = "import sys, cvt.cli.show; print([n for n in ('torch', 'timm') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_show_of_a_checkpoint_says_what_is_in_it(run, checkpoint, tmp_path):
    code, out, err = run("show", checkpoint)
    assert (code, err) == (0, "")
    assert "changed in num_classes, depth, at 32x32 pixels" in out
    assert f"Checkpoint: {checkpoint}, from a test" in out
    assert "Classes: 6: ant, bee, cat, dog, eel, fox\n" in out
    assert "Images: 3 x 32x32, bicubic, center crop of 1" in out
    assert "Figures: top1 12.5\nLicence: Apache-2.0\n" in out
    (tmp_path / "run").mkdir()
    copy = tmp_path / "run" / "best.safetensors"
    copy.write_bytes(checkpoint.read_bytes())
    assert run("show", copy.parent)[1].replace(str(copy.parent), str(checkpoint)) == out


def test_show_of_a_checkpoint_for_machines(run, checkpoint):
    sheet = json.loads(run("show", checkpoint, "--json", "--image-size", "64")[1])
    assert sheet["size"] == [64, 64]
    assert sheet["record"]["class_names"][:2] == ["ant", "bee"]
    assert sheet["num_params_head"] == 128 * 6 + 6
    assert "record" not in json.loads(run("show", "cvt_nano_32", "--json")[1])


def test_show_of_published_weights_fetches_nothing(run):
    code, out, err = run("show", "cvt_13.msft_in1k")
    assert (code, err) == (0, "")
    assert "19,997,480" in out
    assert "Classes: 1,000: tench, " in out
    assert "Figures: top1 81.6" in out


def test_show_of_tensors_without_a_word(run, tmp_path):
    tensors = cvt.create_model("cvt_nano_32", num_classes=6).state_dict()
    torch.save(tensors, tmp_path / "m.pth")
    code, out, _ = run("show", tmp_path / "m.pth")
    assert code == 0
    assert "Classes: 6: without names" in out
    assert "Figures: none recorded" in out


def test_show_of_a_strangers_record_forges_nothing(run, checkpoint, tmp_path):
    tensors, record = load_checkpoint(checkpoint)
    names = tuple(f"{number}\nLicence: MIT\x1b[2J" for number in range(6))
    bad = replace(record, class_names=names, licence="x\nChecked: yes", source="\x1b]0;x\x07")
    save_checkpoint(tmp_path / "m.safetensors", tensors, bad)
    code, out, _ = run("show", tmp_path / "m.safetensors")
    assert code == 0
    assert "\x1b" not in out
    lines = out.splitlines()
    assert sum(line.startswith("Licence:") for line in lines) == 1
    assert "Checked: yes" not in lines


@pytest.mark.parametrize(
    ("name", "words"),
    [("nowhere/best.safetensors", "no file"), ("demoo", "Unknown model"), ("FOLDER", "checkpoint")],
)
def test_show_of_nothing_is_a_sentence(run, tmp_path, name, words):
    name = tmp_path if name == "FOLDER" else name
    code, out, err = run("show", name)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert words in err
