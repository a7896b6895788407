from dataclasses import replace
from itertools import pairwise

import pytest
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

import cvt
from cvt.errors import UserError, is_unsafe
from cvt.evaluation import ClassScore
from cvt.runtime import hardware, software
from cvt.training.card import CardFacts, write_card
from cvt.training.report import TrainResult, interval
from cvt.training.run_folder import EpochRow
from cvt.weights.checkpoint import load_checkpoint
from trained import config_of

CONFIG = config_of(
    data="torch/cifar10", model="cvt_nano_32", epochs=2, batch_size=64, seed=3, out="elsewhere",
    optim={"opt": "adamw", "lr": 1e-3}, mix={"mixup": 0.2},
)  # fmt: skip
FACTS = CardFacts(
    num_params=1_234_567, num_images={"training": 45_000, "validation": 5_000, "test": 10_000},
    val_was_cut=True, hardware="2 x Fast|GPU", processes=2,
    software={"cvt": "0.1.0", "torch": "2.15"},
)  # fmt: skip
HISTORY = [
    EpochRow(
        epoch=epoch, train_loss=1.0, val_loss=0.5, val_top1=90.0, lr=1e-3, images_per_s=1000.0,
        seconds=45.0, data_wait=0.25, memory_mb=2048.0,
    )
    for epoch in (1, 2)
]  # fmt: skip


@pytest.fixture
def make(tmp_path, checkpoint):
    """`make(result={...}, config={...}, ...)`: the text of a card."""

    def write(result=None, config=None, record=None, facts=None):
        run = tmp_path / "my run"
        run.mkdir(exist_ok=True)
        values = {
            "run": run, "data": CONFIG.data, "best_epoch": 2, "best_top1": 90.0, "best_loss": 0.5,
            "test_top1": 89.5, "test_loss": 0.6, "seconds": 100.0,
        }  # fmt: skip
        path = write_card(
            replace(CONFIG, **(config or {})),
            replace(load_checkpoint(checkpoint)[1], **(record or {})),
            TrainResult(**values | (result or {})),
            HISTORY,
            replace(FACTS, **(facts or {})),
        )
        assert path == run / "README.md"
        return path.read_text()

    return write


def tables(content):
    """The cells of a card's tables, line by line."""
    tokens = MarkdownIt("commonmark").enable("table").parse(ModelCard(content).text)
    lines = []
    for token, inside in pairwise(tokens):
        if token.type == "tr_open":
            lines.append([])
        if token.type in ("td_open", "th_open"):
            lines[-1].append("".join(child.content for child in inside.children))
    return lines


def test_the_hub_understands_the_header(make):
    data = ModelCard(make()).data
    assert data.license == "apache-2.0"
    assert data.pipeline_tag == "image-classification"
    assert data.library_name == "cvt"
    assert data.datasets == ["uoft-cs/cifar10"]
    assert "arxiv:2103.15808" in data.tags
    assert data.model_name == "my run"
    figures = {each.dataset_split: each.metric_value for each in data.eval_results}
    assert figures == {"validation": 0.9, "test": 0.895}
    assert data.base_model is None


def test_the_header_says_nothing_that_is_not_known(make, tmp_path):
    content = make(
        config={"data": str(tmp_path), "weights": "cvt_13.msft_in1k"},
        record={"licence": None},
        result={"test_top1": None, "test_loss": None},
    )
    data = ModelCard(content).data
    assert data.license is None
    assert data.datasets is None
    assert data.base_model == "microsoft/cvt-13"
    assert [each.dataset_split for each in data.eval_results] == ["validation"]
    assert "Licence: none was stated." in content
    assert "There was no test split" in content
    assert "from the weights `cvt_13.msft_in1k`" in content


def test_an_unusual_licence_is_named(make):
    data = ModelCard(make(record={"licence": "Ask: me"})).data
    assert (data.license, data.license_name) == ("other", "Ask: me")


@pytest.mark.parametrize(
    ("data", "dataset"),
    [("hfds/ylecun/mnist", "ylecun/mnist"), ("hfds//data/mnist", None), ("digits", None)],
)
def test_only_the_hub_s_data_sets_are_linked(make, data, dataset):
    assert ModelCard(make(config={"data": data})).data.datasets == (dataset and [dataset])


def test_figures_come_with_how_many_images_they_are_of(make):
    lines = tables(make())
    assert ["validation", "5,000", "90.00", "89.14 to 90.80", "0.5000"] in lines
    assert ["test", "10,000", "89.50", "88.88 to 90.09", "0.6000"] in lines


def test_the_recipe_is_complete(make):
    lines = dict(line for line in tables(make()) if len(line) == 2)
    assert lines["optim.lr"] == "0.001"
    assert lines["mix.mixup"] == "0.2"
    assert lines["seed"] == "3"
    assert "out" not in lines
    assert lines["machine"] == "2 x Fast|GPU"
    assert lines["images/s in training"] == "1,000"
    assert lines["training time"].startswith("1 min 30 s")
    assert lines["time waited for data"] == "25%"
    assert lines["peak memory"] == "2.0 GB"
    assert lines["software"] == "cvt 0.1.0, torch 2.15"


def scores(*accuracies):
    return tuple(
        ClassScore(name=f"kind|{number}", num_images=number, accuracy=each, precision=None)
        for number, each in enumerate(accuracies, start=1)
    )


def test_classes_come_with_their_accuracies_the_worst_first(make):
    content = make(facts={"classes": scores(90.0, 75.0, 100.0), "classes_of": "test"})
    assert "On the test images, the worst first." in content
    at = tables(content).index(["class", "images", "recognised %", "right when named %"])
    assert tables(content)[at + 1 : at + 4] == [
        ["kind|2", "2", "75.0", "-"], ["kind|1", "1", "90.0", "-"], ["kind|3", "3", "100.0", "-"]
    ]  # fmt: skip
    assert "By class" not in make()


def test_of_many_classes_both_ends_are_shown(make):
    content = make(facts={"classes": scores(*range(50))})
    assert "the 10 worst and the 10 best of 50 classes" in content
    shown = [line[0] for line in tables(content) if line[0].startswith("kind|")]
    assert shown == [f"kind|{number}" for number in (*range(1, 11), *range(41, 51))]


def test_images_that_are_there_are_shown(make, tmp_path):
    assert "What it looks like" not in make()
    for name in ("batch.png", "mistakes.png"):
        (tmp_path / "my run" / name).touch()
    html = MarkdownIt("commonmark").render(ModelCard(make()).text)
    assert 'src="batch.png"' in html
    assert 'href="mistakes.csv"' in html
    assert "confusion.png" not in html
    (tmp_path / "my run" / "mistakes.png").unlink()
    assert "no answer was wrong" in make(result={"best_top1": 100.0, "test_top1": None})
    assert "no answer was wrong" not in make(result={"best_top1": 100.0, "test_top1": 99.0})


def test_it_says_what_the_figures_do_not(make):
    content = make(result={"bad": tuple(f"file_{number}*.png is empty" for number in range(12))})
    for words in (
        "chose the best of 2 epochs",
        "10% of the training images",
        "measured once",
        "seed 3",
        "12 images could not be read",
        r"file_9\*.png is empty",
        "and 2 more",
    ):
        assert words in content
    assert "file_10" not in content


def test_the_code_in_it_runs(make, tmp_path, monkeypatch, checkpoint, photos):
    content = make()
    (tmp_path / "my run" / "best.safetensors").write_bytes(checkpoint.read_bytes())
    (tmp_path / "photo.jpg").write_bytes((photos / "a.jpg").read_bytes())
    monkeypatch.chdir(tmp_path)
    exec(content.split("```python\n")[1].split("```")[0], {})
    assert "cvt predict 'my run' photo.jpg" in content
    assert "cvt export 'my run' 'my run.onnx'" in content
    assert "6 classes: ant, bee, cat, dog, eel, fox." in content


def test_strange_names_break_nothing(make, checkpoint):
    classes = ("a|b", "`c`", "*d*", "<e>", "f\ng", "- h")
    content = make(
        config={"data": "pets|`x`", "model_args": {"act_layer": "a|b"}},
        record={"class_names": classes},
        result={"bad": ("# no *title*",)},
    )
    lines = dict(line for line in tables(content) if len(line) == 2)
    assert lines["data"] == "pets|`x`"
    assert lines["model_args"] == "act_layer=a|b"
    assert ModelCard(content).data.eval_results[0].dataset_name == "pets|`x`"
    html = MarkdownIt("commonmark").render(content)
    assert "a|b, `c`, *d*, &lt;e&gt;, f g, - h." in html
    assert "# no *title*" in html


FOLD = "<details>\n<summary>All settings, derived values included</summary>\n"
UNSAFE = [
    "a\nb", "a\r\n# b", "\x1b[31mred", "caf\udce9", "\u202egnp", "under $5", "p$5_to_$10", ":car:",
    "![x](javascript:y)", "<script>", "猫", "```",
]  # fmt: skip


def test_names_act_on_no_page_and_are_all_there(make, checkpoint):
    spec = replace(load_checkpoint(checkpoint)[1].spec, num_classes=len(UNSAFE))
    content = make(
        result={"data": "x\n---\ny\udcff", "bad": tuple(f"{name}.png: broken" for name in UNSAFE)},
        config={"data": "x\n---\ny\udcff"},
        record={"class_names": tuple(UNSAFE), "spec": spec},
    )
    assert not [each for each in content if is_unsafe(each) and each != "\n"]
    [line] = [line for line in content.splitlines() if line.startswith(f"{len(UNSAFE)} classes:")]
    assert [word in line for word in ("red", "caf", "gnp", "5", "car", "script", "猫")] == [
        True
    ] * 7
    tokens = MarkdownIt().parse(content.partition("\n---\n")[2])
    html = [token.content for token in tokens if token.type == "html_block"]
    assert html == [FOLD, "</details>\n"]


def test_interval_is_wilson_s():
    # Newcombe, Statistics in Medicine 17 (1998), Table I, method 3.
    assert interval(100 * 81 / 263, 263) == pytest.approx((25.53, 36.62), abs=0.005)
    assert interval(100 * 15 / 148, 148) == pytest.approx((6.24, 16.05), abs=0.005)
    assert interval(0, 20) == pytest.approx((0, 16.11), abs=0.005)
    assert interval(100, 29) == pytest.approx((88.30, 100), abs=0.005)


def test_a_place_that_cannot_be_written_is_named(make, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Cannot write"):
        make(result={"run": tmp_path / "file"})


def test_machine_says_what_computes():
    import torch

    assert hardware(torch.device("cpu"), 4).removesuffix("s").endswith(" core")
    assert len(hardware(torch.device("cpu")).split(", ")[0]) > 2
    assert software()["cvt"] == cvt.__version__
    assert software()["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
