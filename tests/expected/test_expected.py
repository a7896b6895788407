"""What users have, pinned: help, `--json`, derived configs, files of results, the front door.

A difference is either a mistake or asked for; `ACCEPT=1 python -m pytest tests/expected` takes all
of them over.
"""

import contextlib
import csv
import inspect
import io
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

import contests
import cvt
import speed_benches
from contests import FakeWork
from cvt.cli import main
from randomise import randomise
from shades import write_shades
from speed_benches import FakeSpeed

ROOT = Path(__file__).parents[2]
VERBS = (
    *("models", "show", "train", "compare", "ablate", "bench"),
    *("runs", "eval", "probe", "predict", "convert", "export"),
)
RECIPES = sorted(path.stem for path in (ROOT / "recipes").glob("*.yaml"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Twenty pictures of 12x12 pixels to learn from: dark ones and bright ones."""
    return write_shades(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def many_photos(tmp_path_factory):
    """Twice 1,300 photographs, all of them one: enough for the largest batch of a recipe."""
    root = tmp_path_factory.mktemp("photos")
    Image.effect_noise((160, 120), 80).convert("RGB").save(root / "one.jpg")
    for name in ("a", "b"):
        (root / name).mkdir()
        for number in range(1300):
            os.link(root / "one.jpg", root / name / f"{number}.jpg")
    (root / "one.jpg").unlink()
    return root


@pytest.fixture(scope="module")
def trained(pictures, tmp_path_factory):
    """A run of two epochs: its folder, and what it said for machines."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    flags = ["--model", "cvt_nano_32", "--model-args.depth", "1", "--image-size", "8"]
    flags += ["--batch-size", "8", "--num-workers", "0", "--device", "cpu", "--epochs", "2"]
    with contextlib.redirect_stdout(io.StringIO()) as said:
        code = main(["train", str(pictures), *flags, "--out", str(folder), "--json"])
    assert code == 0
    return folder, said.getvalue()


# ---------------------------------------------------------------------------------------- help


def test_help_of_all(run, expect):
    code, out, err = run("--help")
    assert (code, err) == (0, "")
    expect("help/cvt.txt", out)


@pytest.mark.parametrize("verb", VERBS)
def test_help(run, expect, verb):
    code, out, err = run(verb, "--help")
    assert (code, err) == (0, "")
    expect(f"help/{verb}.txt", out)


# -------------------------------------------------------------------------------------- --json


@pytest.fixture
def said(run, expect, machine_lines):
    """`said("models", ("models", "cvt_*"), ...)`: pins what a verb says for machines."""

    def check(name: str, arguments: tuple, *measured: str, code: int = 0) -> None:
        got, out, err = run(*arguments, "--json")
        assert got == code, err
        expect(f"json/{name}.json", machine_lines(out, *measured))

    return check


def test_models(said):
    said("models", ("models", "cvt_13*"))


@pytest.mark.parametrize("name", ["cvt_nano_32", "tnt_nano_32"])
def test_show(said, name):
    said(f"show-{name}", ("show", name))


def test_show_of_a_checkpoint(said, checkpoint):
    said("show-checkpoint", ("show", checkpoint, "--image-size", "64"))


# What training comes to, and how quickly.
TRAINED = ("best_epoch", "best_top1", "best_loss", "images_per_s", "seconds")


def test_train(expect, machine_lines, trained):
    expect("json/train.json", machine_lines(trained[1], *TRAINED))


def test_runs(said, trained):
    said("runs", ("runs", trained[0].parent), *TRAINED)


def test_eval(said, trained, pictures, tmp_path):
    flags = ("--split", "all", "--out", tmp_path / "drawn")
    said("eval", ("eval", trained[0], pictures, *flags), "float", "reliability")


@pytest.fixture
def of_imagenet(tmp_path):
    """A tiny network with a thousand nameless outputs."""
    model = cvt.create_model("cvt_nano_32", num_classes=1000, depth=1, embed_dim=8, num_heads=1)
    cvt.save_pretrained(randomise(model), tmp_path / "imagenet")
    return tmp_path / "imagenet"


def test_eval_of_a_benchmark(said, of_imagenet, tmp_path):
    (tmp_path / "val").mkdir()
    for number in (1, 2, 3, 4):
        image = Image.effect_noise((12, 12), 80).convert("RGB")
        image.save(tmp_path / "val" / f"ILSVRC2012_val_{number:08d}.JPEG")
    flags = ("--benchmark", "real", "--out", tmp_path / "drawn")
    said("eval-real", ("eval", of_imagenet, tmp_path / "val", *flags), "float", "reliability")


def test_probe(said, checkpoint, pictures):
    said("probe", ("probe", checkpoint, pictures, "-k", "3"), "float")


def test_predict(said, checkpoint, photos):
    (photos / "broken.png").write_text("no picture")
    said("predict", ("predict", checkpoint, photos, "-k", "3"), "labels", code=1)


def test_export(said, checkpoint, tmp_path):
    said("export", ("export", checkpoint, tmp_path / "a.pt2"), "error", "mean_error", "num_bytes")


def test_compare_without_data(said):
    said("compare-counts", ("compare", "cvt_nano_32", "cvt_13"))


CONTEST = ("--data", "digits", "--budget", "2epochs", "--seeds", "2", "--image-size", "8",
           "--batch-size", "32", "--device", "cpu", "--num-workers", "0")  # fmt: skip


@pytest.fixture
def work(monkeypatch):
    """Lets contests and benches end at once, by made-up figures."""
    monkeypatch.setattr(contests.WORK, FakeWork())
    monkeypatch.setattr(speed_benches.WORK, FakeSpeed())


def test_compare(said, expect, work, tmp_path):
    names = ("cvt_nano_32", "cvt_nano_32+depth=1", "vit_nano_32")
    said("compare", ("compare", *names, *CONTEST, "--out", tmp_path / "out"))
    expect("folders/compare.txt", contents(tmp_path / "out"))


# Counting the networks of some takes seconds, and the others have the same keys.
TABLES = [1, *(pytest.param(number, marks=pytest.mark.slow) for number in (2, 3, 6, 8)), 5, 7]


@pytest.mark.parametrize("table", TABLES)
def test_ablate_counts(said, table):
    said(f"ablate-{table}", ("ablate", table))


def test_ablate(said, expect, work, tmp_path):
    out = tmp_path / "out"
    said("ablate-trained", ("ablate", "7", "8", *CONTEST, "--out", out))
    expect("folders/ablate.txt", contents(out))


def test_bench(said, expect, work, tmp_path):
    names = ("cvt_13", "hf/cvt_13", "demo:deploy:bf16")
    flags = ("--repeats", "3", "--batch-size", "1,16", "--out", tmp_path / "out")
    said("bench", ("bench", *names, *flags))
    expect("folders/bench.txt", contents(tmp_path / "out"))


# ----------------------------------------------------------------------------- derived configs


@pytest.fixture
def printed(run, monkeypatch, tmp_path, without_places):
    """`printed(*arguments)`: what `cvt train ... --print-config` prints, on two cores."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)

    def call(*arguments) -> str:
        code, out, err = run("train", *arguments, "--print-config")
        assert (code, err) == (0, "")
        return without_places(out)

    return call


@pytest.mark.parametrize("name", RECIPES)
def test_derived_config_of_a_recipe(printed, expect, many_photos, name):
    """On photographs of two classes, in place of its data, from the demo's weights where any."""
    recipe = yaml.safe_load((ROOT / "recipes" / f"{name}.yaml").read_text())
    weights = ("--weights", "demo") if "weights" in recipe else ()
    text = printed(many_photos, "-c", name, "--device", "meta", *weights)
    expect(f"configs/{name}.yaml", text)


def test_config_of_a_recipe_whose_data_is_not_there(printed, expect):
    text = printed("-c", "cvt_13_in1k", "--data-dir", "nowhere", "--device", "cpu")
    expect("configs/not-derived.yaml", re.sub(r"\(The archive .*?\)", "(<words>)", text, count=1))


# By the kind of data and of the device, and how it is begun. Meta stands for any accelerator.
USUAL = {
    "digits-cpu": ("digits", "cpu"),
    "digits-gpu": ("digits", "meta"),
    "small-cpu": ("pictures", "cpu"),
    "small-gpu": ("pictures", "meta"),
    "small-fine-tuned": ("pictures", "cpu", "--weights", "demo"),
    "small-taught": ("pictures", "cpu", "--teacher", "demo"),
    "photos-cpu": ("photos", "cpu"),
    "photos-gpu": ("photos", "meta"),
    "photos-fine-tuned-cpu": ("photos", "cpu", "--weights", "demo"),
    "photos-fine-tuned-gpu": ("photos", "meta", "--weights", "demo"),
    "photos-probed": ("photos", "meta", "--weights", "demo", "--freeze", "backbone"),
    "photos-updates": ("photos", "meta", "--updates", "1000", "--optim.base-lr", "0.001"),
    "photos-384": ("photos", "meta", "--model", "cvt_13", "--image-size", "384"),
}


@pytest.mark.parametrize("name", USUAL)
def test_derived_config_of_the_defaults(printed, expect, pictures, many_photos, name):
    data, device, *flags = USUAL[name]
    data = {"digits": "digits", "pictures": pictures, "photos": many_photos}[data]
    expect(f"configs/default-{name}.yaml", printed(data, "--device", device, *flags))


# --------------------------------------------------------------------------- files of a result


def test_files_of_a_run(expect, trained):
    expect("folders/run.txt", contents(trained[0]))


# What a machine has, or measures, under keys of its own.
_OPEN = {"software", "hardware", "environment", "confusion", "contents", "digests"}


def contents(folder: Path) -> str:
    """Names all files, with the columns of tables and the keys and types of plain data."""
    lines, known = [], set()
    files = [each for each in folder.rglob("*") if each.is_file()]
    for path in sorted(each for each in files if each.name != "mistakes.png"):  # only if there are
        name = re.sub(r"(events\.out\.tfevents).*", r"\1.*", str(path.relative_to(folder)))
        inside = "".join(f"\n  {line}" for line in _inside(path))
        is_new = not inside or (path.name, inside) not in known
        known.add((path.name, inside))
        lines.append(name + (inside if is_new else "\n  as above"))
    return "\n".join(lines) + "\n"


def _inside(path: Path) -> list[str]:
    if path.suffix == ".csv":
        with open(path, newline="", encoding="utf-8") as file:
            return next(csv.reader(file))
    read = {".yaml": yaml.safe_load, ".json": json.loads}.get(path.suffix)
    return _keys("", read(path.read_text(encoding="utf-8"))) if read else []


def _keys(name: str, value: Any) -> list[str]:
    kind = type(value).__name__
    if name.rpartition(".")[2] in _OPEN or not isinstance(value, dict | list):
        return [f"{name}: {kind}"]
    if isinstance(value, dict):
        prefix = f"{name}." if name else ""
        return [line for key, each in value.items() for line in _keys(f"{prefix}{key}", each)]
    lines = [line for each in value for line in _keys(f"{name}[]", each)]
    return list(dict.fromkeys(lines)) or [f"{name}: empty list"]


# ------------------------------------------------------------------------------ the front door


def test_front_door(expect):
    """Names and signatures; where a type lives and which values it allows are left out."""
    lines = []
    for name in sorted(cvt.__all__):
        value = getattr(cvt, name)
        lines.append(name)
        if name != "UserError" and callable(value):
            lines += [f"  {line}" for line in _signature(value)]
    expect("front_door.txt", "\n".join(lines) + "\n")


def _signature(function: Any) -> list[str]:
    made, star = [], False
    signature = inspect.signature(function)
    for each in signature.parameters.values():
        if each.kind is each.KEYWORD_ONLY and not star:
            made.append("*")
            star = True
        star = star or each.kind is each.VAR_POSITIONAL
        made.append(_plain_types(str(each)))
    return [*made, f"-> {_plain_types(inspect.formatannotation(signature.return_annotation))}"]


_BOUNDED = re.compile(r"Annotated\[((?:[^][]|\[[^][]*\])*?), \w+\([^()]*\)\]")


def _plain_types(text: str) -> str:
    text = re.sub(r"(?:\b[a-z_]\w*\.)+(?=[A-Za-z_])", "", text)
    while (found := _BOUNDED.search(text)) is not None:
        text = text[: found.start()] + found[1] + text[found.end() :]
    return text


def test_this_test_reads_types():
    text = "Annotated[tuple[cvt.parts.spec.StageSpec, ...], Length(least=1, most=16)] = 0.5"
    assert _plain_types(text) == "tuple[StageSpec, ...] = 0.5"
    assert json.dumps(_keys("", {"a": [{"b": 1}, {"b": 2.0}]})) == '["a[].b: int", "a[].b: float"]'
