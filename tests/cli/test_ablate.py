import json

import pytest

from cvt.bench import contest
from cvt.bench.contest import ContenderResult, ContestResults, RunResult


@pytest.fixture
def trained(monkeypatch):
    """Lets contests end at once; returns what they were asked for, call by call."""
    calls = []

    def run_contest(contenders, config, *, progress=True):
        calls.append((contenders, config, progress))
        config.out.mkdir(parents=True, exist_ok=True)
        return ContestResults(
            contenders=tuple(
                ContenderResult(
                    contender=contender,
                    num_params=1000,
                    macs=1000,
                    runs=tuple(
                        RunResult(label=contender.label, seed=seed, top1=80.0 + number + 0.1 * seed)
                        for seed in range(config.seeds)
                    ),
                )
                for number, contender in enumerate(contenders)
            ),
            facts={
                "data": config.recipe["data"],
                "split": "test",
                "budget": str(config.budget),
                "image_size": 32,
            },
        )

    monkeypatch.setattr(contest, "run_contest", run_contest)
    return calls


def test_tables_are_counted(run):
    code, out, err = run("ablate", "1", "2", "7")
    assert (code, err) == (0, "")
    assert "Table 1: vision transformers on four axes" in out
    assert "277,196,392" in out
    line = next(line for line in out.splitlines() if line.startswith("stride 1"))
    assert line.split()[2:] == ["kv_stride=1", "19,997,480", "6.643", "20", "6.55", "82.3", "+0.70"]


def test_table_5_has_both_of_the_papers_bases(run):
    rows = [json.loads(line) for line in run("ablate", "5", "--json")[1].splitlines()]
    assert [(row["base"], row["variant"]) for row in rows][3:] == [
        ("cvt_13", "none"),
        ("deit_small_patch16_224", "with"),
        ("deit_small_patch16_224", "without"),
    ]
    assert [row.get("paper_difference") for row in rows] == [-0.1, -0.2, -0.2, None, None, -1.8]


def test_any_row_is_a_base_and_what_it_cannot_express_is_skipped(run):
    code, out, err = run("ablate", "6", "7", "--base", "deit_nano_32")
    assert code == 1
    assert "Table 6: token embedding, on deit_nano_32" in out
    assert err.startswith("cvt: skipped: Table 7 varies")
    assert run("ablate", "7", "--base", "deit_nano_32")[0] == 2


def test_variants_are_trained_once_and_compared(run, trained, tmp_path):
    arguments = ("--data", "digits", "--budget", "3epochs", "--seeds", "2", "--out", tmp_path / "x")
    code, out, err = run("ablate", "7", "8", *arguments, "--batch-size", "16")
    assert (code, err) == (0, "")
    (contenders, config, progress) = trained[0]
    assert [each.label for each in contenders] == [
        "cvt_nano_32+kv_stride=1",
        "cvt_nano_32",
        "cvt_nano_32+projection=linear",
        "cvt_nano_32+projection=[conv,linear,linear]",
        "cvt_nano_32+projection=[conv,conv,linear]",
    ]
    assert (config.seeds, str(config.budget), config.recipe["batch_size"]) == (2, "3 epochs", 16)
    assert progress
    assert "opposite sign" in out
    assert {file.name for file in (tmp_path / "x").iterdir()} == {
        "ablation.md", "ablation.csv", "ablation.png",
    }  # fmt: skip


def test_trained_variants_for_machines(run, trained, tmp_path):
    arguments = ("--data", "digits", "--budget", "3epochs", "--out", tmp_path / "x", "--json")
    code, out, _ = run("ablate", "7", "--base", "cvt_mini_32", *arguments)
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [row["variant"] for row in rows] == ["stride 1", "stride 2"]
    assert rows[0]["difference"]["mean"] == pytest.approx(-1.0)
    assert not trained[0][2]


def test_the_results_folder_follows_from_the_question(run, trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    question = ("--data", "torch/cifar10", "--budget", "3epochs")
    run("ablate", "7", *question)
    run("ablate", "8", *question, "--base", "cvt_nano_32+kv_stride=1")
    assert [str(config.out) for _, config, _ in trained] == [
        "runs/ablate-cifar10-cvt_nano_32-3epochs",
        "runs/ablate-cifar10-cvt_nano_32+kv_stride=1-3epochs",
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "Got no table, expected one or several of 1, 2, 3, 5, 6, 7, 8."),
        (["4"], "Table 4 transfers weights of ImageNet-22k"),
        (["9"], "Got table '9'"),
        (["five"], "Got table 'five'"),
        (["5", "--budget", "3epochs"], "Got --budget without --data"),
        (["5", "--batch-size", "8"], "Got --batch-size without --data"),
        (["5", "-c", "x.yaml"], "Got --recipe without --data"),
        (["5", "--data", "digits"], "Got --data without --budget"),
        (["3", "--data", "digits", "--budget", "3epochs"], "Got table 3 with --data"),
        (["5", "--data", "digits", "--budget", "0epochs"], "Got budget '0epochs'"),
        (["5", "--data", "digits", "--budget", "3epochs", "--seeds", "0"], "Got --seeds 0"),
        (["5", "--data", "digits", "--budget", "3epochs", "--model", "x"], "--base NAME"),
        (["5", "--data", "digits", "--budget", "3epochs", "--epochs", "3"], "is --budget"),
        (["5", "--base", "cvt_nan_32"], "Did you mean 'cvt_nano_32'"),
        (["8", "--base", "tnt_nano_32"], "not made of stages"),
    ],
)
def test_mistakes(run, trained, arguments, words):
    code, out, err = run("ablate", *arguments)
    assert (code, out) == (2, "")
    assert words in err
    assert err.count("\n") == 1
    assert not trained
