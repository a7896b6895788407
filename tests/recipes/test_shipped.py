"""Every shipped recipe: that it loads and derives, what its header says, the paper's numbers."""

import re
import shlex
from pathlib import Path

import pytest
import torch
import yaml

from cvt.cli.main import make_app
from cvt.systems.catalog import ROWS as ROWS_OF_ALL
from cvt.systems.catalog import system_of
from cvt.systems.cvt import ROWS
from cvt.training.config import USUAL, DistillConfig, Layer, TrainConfig
from cvt.training.defaults import (
    DataFacts,
    derive,
    preprocessing_for,
    read_recipe,
    said,
    shipped_recipes,
)
from cvt.weights.published import PUBLISHED
from cvt.weights.record import Preprocessing, Record

ROOT = Path(__file__).parents[2]
RECIPES = shipped_recipes()
NAMES = list(RECIPES)
DEIT = ["deit_tiny_in1k", "deit_small_distilled_in1k"]
CPU, GPU = torch.device("cpu"), torch.device("meta")  # meta stands for any accelerator
LINES = ("What", "Command", "Many GPUs", "Hardware", "Time", "Expect", "Source", "Differs", "Run")

# How many pictures train after the split that the recipe asks for, and their median short side.
DATA = {
    "torch/imagenet": (1_281_167, 375),
    "imagenet22k": (14_126_136, 375),
    "torch/cifar10": (49_000, 32),
    "torch/cifar100": (49_000, 32),
    "torch/oxford_pets": (3_606, 375),
    "torch/flowers102": (1_020, 500),
    "tiny_imagenet": (30_000, 64),
    "digits": (1_293, 8),
    "photos": (180, 480),
}


def header(name: str) -> dict[str, str]:
    comment = RECIPES[name].read_text().split("\n\n")[0]
    assert all(line.startswith("# ") for line in comment.splitlines())
    text = re.sub(r"\n#   ", " ", comment)
    return dict(re.fullmatch(r"# ([\w ]+?): (.+)", line).groups() for line in text.splitlines())


def derived(name: str, **changes) -> TrainConfig:
    asked = said({**read_recipe(name), **changes}, "the recipe")
    num_images, median_side = DATA[asked["data"]]
    facts = DataFacts(name=asked["data"], num_images=num_images, median_side=median_side)
    return derive(asked, facts, GPU, start_of(asked))


def start_of(asked: Layer) -> Record | None:
    weights = asked.get("weights")
    if weights is None:
        return None
    if weights in PUBLISHED:
        published = PUBLISHED[weights]
        model, preprocessing = published.model, published.preprocessing
    elif weights == "runs/tiny_imagenet_48":
        model, preprocessing = "cvt_micro_96", Preprocessing()
    else:
        model = re.fullmatch(r"runs/(cvt_\w+)_in22k", weights)[1]
        preprocessing = Preprocessing()
    return Record(model=model, spec=ROWS[model], preprocessing=preprocessing)


def test_they_are_those_in_the_folder_and_in_the_wheel():
    import tomllib

    assert sorted(NAMES) == sorted(file.stem for file in (ROOT / "recipes").glob("*.yaml"))
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    assert build["targets"]["wheel"]["force-include"] == {"recipes": "cvt/recipes"}
    assert "recipes" in build["targets"]["sdist"]["include"]


@pytest.mark.parametrize("name", NAMES)
def test_it_leaves_nothing_open(name):
    assert None not in yaml.safe_load(RECIPES[name].read_text()).values()
    config = derived(name)
    assert derived(name, **config.to_dict()) == config


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("finetune_folder",)])
def test_no_preset_decides_how_it_learns(name):
    """The device changes presets: what a recipe reproduces must not hang on them."""
    asked = read_recipe(name)
    on_gpu = derived(name)
    facts = DataFacts(name="digits", num_images=DATA[asked["data"]][0], median_side=32)
    elsewhere = derive(asked, facts, CPU, start_of(asked))
    for group in ("augment", "mix"):
        assert getattr(elsewhere, group) == getattr(on_gpu, group)
    if name != "linear_probe":  # whose batch follows the folder
        assert elsewhere.optim == on_gpu.optim
        assert (elsewhere.epochs, elsewhere.batch_size) == (on_gpu.epochs, on_gpu.batch_size)
    assert elsewhere.ema_decay == on_gpu.ema_decay


@pytest.mark.parametrize("name", NAMES)
def test_its_header_says_what_it_has_to(name):
    said = header(name)
    assert tuple(said) == LINES
    assert all(text.endswith((".", "%")) or key in LINES[1:3] for key, text in said.items())
    if said["Run"].startswith("never"):
        assert re.search("estimate|not measured", said["Time"])
        assert re.search(
            "paper|CCT|published|depends on the folder|same network", said["Expect"]
        ), "whose figure is it?"
    else:
        assert re.match(r"20\d\d-\d\d-\d\d", said["Run"])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("line", ["Command", "Many GPUs"])
def test_its_commands_exist_and_share_the_batch_out(name, line):
    command = header(name)[line]
    if command.startswith("no use"):
        return
    words = shlex.split(command)
    processes = 1
    if words[0] == "torchrun":
        assert words[1] == "--nproc-per-node"
        assert words[3:5] == ["-m", "cvt"]
        processes, words = int(words[2]), words[4:]
    assert words[:2] == ["cvt", "train"]
    app = make_app()
    _, bound, _ = app.parse_args(words[1:], exit_on_error=False, print_error=False)
    assert bound.arguments["recipe"] == (name,)
    config = derived(name)
    flags = bound.arguments["flags"].layer() if "flags" in bound.arguments else {}
    chunks = processes * flags.get("accum_steps", USUAL["accum_steps"])
    assert config.batch_size % chunks == 0 or config.data == "photos"
    assert (flags.get("data_dir") == "DATA") == (config.data not in ("digits", "photos"))


README = (ROOT / "recipes" / "README.md").read_text()


def test_the_readmes_commands_exist():
    commands = re.findall(r"^cvt [^#\n]+", README, re.MULTILINE)
    assert len(commands) == 3
    for command in commands:
        words = shlex.split(command)[1:]
        make_app().parse_args(words, exit_on_error=False, print_error=False)


def test_the_table_lists_them_all():
    rows = re.findall(r"^\| \[(\w+)\]\((\w+)\.yaml\) \|.*\| ([\w-]+) \|$", README, re.MULTILINE)
    assert sorted(name for name, _, _ in rows) == sorted(NAMES)
    for name, file, run in rows:
        assert file == name
        assert header(name)["Run"].startswith(run), name


# facts of microsoft/CvT f851e68's YAML files: weight decay, rate for a GPU times intended GPUs
PAPER = {"cvt_13_in1k": (0.05, 2.5e-4 * 8), "cvt_21_in1k": (0.1, 1.25e-4 * 16),
         "cvt_w24_in1k": (0.1, 1.25e-4 * 16)}  # fmt: skip


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_imagenet_recipe(name):
    config = derived(name)
    weight_decay, lr = PAPER[name]
    assert config.batch_size == 2048
    assert config.optim.lr == pytest.approx(lr, rel=1e-12) == pytest.approx(2e-3)
    assert (config.optim.min_lr, config.optim.warmup_epochs) == (1e-5, 5)
    assert (config.optim.opt, config.optim.weight_decay) == ("adamw", weight_decay)
    assert (config.optim.clip_grad, config.optim.layer_decay, config.ema_decay) == (0, 1, 0)
    assert (config.epochs, config.updates) == (300, None)
    augment, mix = config.augment, config.mix
    assert (augment.crop, augment.scale, augment.hflip) == ("random_resized", (0.08, 1), 0.5)
    assert augment.ratio == pytest.approx((3 / 4, 4 / 3))
    assert (augment.auto_augment, augment.color_jitter) == ("rand-m9-mstd0.5-inc1", 0.4)
    assert (augment.re_prob, augment.re_mode, augment.repeats) == (0.25, "pixel", 1)
    assert (mix.mixup, mix.cutmix, mix.smoothing, mix.loss) == (0.8, 1.0, 0.1, "ce")
    assert config.model == name.removesuffix("_in1k")
    assert config.drop_path_rate is None  # the row's: 0, 0, 0.1 or 0.3
    assert config.image_size == (384 if name == "cvt_w24_in1k" else 224)


@pytest.mark.parametrize("name", ["cvt_13_deit_in1k", *DEIT])
def test_deits_recipe(name):
    config = derived(name)  # facebookresearch/deit 0282d2a, main.py
    assert (config.batch_size, config.epochs) == (1024, 300)
    assert config.optim.lr == pytest.approx(5e-4 * 1024 / 512)
    assert (config.optim.weight_decay, config.optim.min_lr) == (0.05, 1e-5)
    assert (config.ema_decay, config.augment.repeats) == (0.99996, 3)
    assert config.augment.auto_augment == "rand-m9-mstd0.5-inc1"
    assert (config.augment.re_prob, config.mix.mixup, config.mix.cutmix) == (0.25, 0.8, 1.0)
    assert config.mix.smoothing == 0.1


@pytest.mark.parametrize("name", DEIT)
def test_deits_own_networks_under_it(name):
    """Stochastic depth is main.py's default; the figures are those that the rows' facts have."""
    config = derived(name)
    assert config.drop_path_rate == 0.1
    facts = system_of(config.model).facts[config.model]
    assert header(name)["Expect"].startswith(f"{facts.top1} % was published")
    distilled = ROWS_OF_ALL[config.model].distilled
    assert config.is_taught is distilled
    if distilled:
        assert config.teacher == "timm/regnety_160.deit_in1k"
        assert config.distill == DistillConfig(kind="hard", alpha=0.5, tau=1.0)


@pytest.mark.parametrize(
    ("name", "batch_size", "lr", "weight_decay", "warmup_epochs", "repeats", "ema_decay"),
    [  # facts/systems.md of each; T2T-ViT 0f63dc9 and PVT 57e2dfa: main.py
        ("t2t_vit_14_in1k", 512, 5e-4, 0.05, 10, 1, 0.99996),
        ("t2t_vit_7_in1k", 512, 1e-3, 0.03, 10, 1, 0.99996),
        ("pvt_small_in1k", 1024, 1e-3, 0.05, 5, 3, 0),
        ("tnt_s_in1k", 1024, 1e-3, 0.05, 5, 3, 0.99996),
        ("cpvt_small_gap_in1k", 2048, 2e-3, 0.05, 5, 3, 0.99996),
    ],
)
def test_the_other_systems_recipes(
    name, batch_size, lr, weight_decay, warmup_epochs, repeats, ema_decay
):
    config = derived(name)
    optim, facts = config.optim, system_of(config.model).facts[config.model]
    assert (config.batch_size, config.epochs, config.drop_path_rate) == (batch_size, 300, 0.1)
    assert optim.lr == pytest.approx(lr)
    assert (optim.weight_decay, optim.warmup_epochs) == (weight_decay, warmup_epochs)
    assert (optim.min_lr, optim.clip_grad) == (1e-5, 0)
    assert (config.augment.repeats, config.ema_decay) == (repeats, ema_decay)
    assert (config.augment.re_prob, config.mix.mixup, config.mix.cutmix) == (0.25, 0.8, 1.0)
    assert header(name)["Expect"].startswith(f"{facts.top1} % was published")


@pytest.mark.parametrize(
    ("name", "updates", "epochs", "top1"),
    [  # paper, section 4.1 and Tables 3 and 4
        ("cvt_13_in1k_384", 20_000, 8, "83.0"),
        ("cvt_21_in1k_384", 20_000, 8, "83.3"),
        ("cvt_w24_in1k_384", 20_000, 8, "87.7"),
        ("cvt_13_cifar10", 10_000, 106, "98.83 % (CvT-21 99.16 %, CvT-W24 99.39 %)"),
        ("cvt_13_cifar100", 10_000, 106, "91.11 % (CvT-21 92.88 %, CvT-W24 94.09 %)"),
        ("cvt_13_pets", 500, 72, "93.25 % (CvT-21 94.03 %, CvT-W24 94.73 %)"),
        ("cvt_13_flowers102", 500, 500, "99.50 % (CvT-21 99.62 %, CvT-W24 99.72 %)"),
    ],
)
def test_the_papers_fine_tuning(name, updates, epochs, top1):
    config = derived(name)
    assert (config.optim.opt, config.optim.momentum) == ("sgd", 0.9)
    assert (config.batch_size, config.image_size) == (512, 384)
    assert (config.updates, config.epochs) == (updates, epochs)
    assert (config.optim.weight_decay, config.optim.clip_grad, config.optim.min_lr) == (0, 1, 0)
    assert top1 in header(name)["Expect"]
    per_epoch = DATA[config.data][0] // 512
    warmup = 500 if updates > 500 else 50
    assert round(config.optim.warmup_epochs * per_epoch) == pytest.approx(warmup, rel=0.02)
    used = preprocessing_for(config, 3, start_of(read_recipe(name)))
    assert (used.size, used.crop_pct, used.crop_mode) == ((384, 384), 1.0, "squash")


@pytest.mark.parametrize("model", ["cvt_13", "cvt_21", "cvt_w24"])
def test_pre_training_is_marked_as_unpublished_and_leads_to_fine_tuning(model):
    said = header(f"{model}_in22k")
    assert "Hyper-parameters unpublished" in said["What"]
    assert said["Source"].startswith("none")
    config = derived(f"{model}_in22k")
    assert (config.model, config.out) == (model, f"runs/{model}_in22k")
    tuned = derived(f"{model}_in1k_384", weights=config.out)
    assert tuned.model == model


# GMAC of an image by model and side, as tests/zoo counts them.
GMACS = {
    ("cvt_13", 224): 4.566,
    ("deit_tiny_patch16_224", 224): 1.254,
    ("deit_small_distilled_patch16_224", 224): 4.624,
    ("cpvt_small_gap", 224): 4.577,
    ("tnt_s_patch16_224", 224): 5.217,
    ("t2t_vit_14", 224): 4.783,
    ("t2t_vit_7", 224): 1.147,
    ("pvt_small", 224): 3.816,
    ("cvt_21", 224): 7.178,
    ("cvt_w24", 224): 60.917,
    ("cvt_13", 384): 16.269,
    ("cvt_21", 384): 24.849,
    ("cvt_w24", 384): 194.222,
}


@pytest.mark.parametrize("name", [name for name in NAMES if "image x" in header(name)["Time"]])
def test_the_estimates_arithmetic_holds(name):
    time = header(name)["Time"]
    config = derived(name)
    gmacs = GMACS[config.model, config.image_size]
    assert float(re.search(r"3 x 2 x ([\d.]+) GMAC", time)[1]) == gmacs
    images = config.epochs * (DATA[config.data][0] // 512 * 512)
    if config.updates:
        images = config.updates * config.batch_size
    flop = float(re.search(r"= ([\d.e]+) FLOP", time)[1])
    assert flop == pytest.approx(6e9 * gmacs * images, rel=0.01)
    number, unit, gpus = re.search(r"estimate ([\d.]+) (\w+) on (one|8)", time).groups()
    seconds = float(number) * {"minutes": 60, "hours": 3600, "days": 86_400}[unit]
    assert seconds == pytest.approx(flop / 50e12 / (8 if gpus == "8" else 1), rel=0.05)


def test_digits_are_what_train_does_without_a_word():
    facts = DataFacts(name="digits", num_images=1_293, median_side=8)
    assert derived("digits") == derive({}, facts, GPU)
