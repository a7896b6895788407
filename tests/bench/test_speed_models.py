"""Models by name: built on the meta device, so that they cost next to nothing."""

import re
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import cvt
from cvt import describe
from cvt.bench.speed.facts import (
    count,
    describe_cpu,
    describe_device,
    find_facts,
    instruction_sets,
)
from cvt.bench.speed.models import build, channels_of, is_checkpoint
from cvt.errors import UserError
from processors import pretend_cpu

MINE = """
import torch
from torch import nn

class Deep:
    @staticmethod
    def make():
        return nn.Sequential(nn.Flatten(), nn.LazyLinear(4))

def small():
    return nn.Sequential(nn.Conv2d(3, 5, 8, 8), nn.Flatten(), nn.Linear(80, 7))

def reads():
    return nn.Linear(int(torch.ones(1).item()), 2)

def number():
    return 3

def broken():
    raise KeyError("lost")
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    (tmp_path / "my_nets.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield "my_nets"
    sys.modules.pop("my_nets", None)


def test_a_users_module_hides_none_that_is_installed(mine, tmp_path):
    """Naming a module in the current folder is no leave to run whatever else lies there."""
    for name in ("timm", "colorsys", "bench_sibling"):
        (tmp_path / f"{name}.py").write_text("lie = True")
    text = "import bench_sibling\nfrom torch import nn\nimport timm\nimport colorsys\n"
    text += "def real():\n    assert timm.create_model and colorsys.hsv_to_rgb\n"
    (tmp_path / "my_nets.py").write_text(text + "    return nn.Linear(3, 3)\n")
    before = list(sys.path)
    try:
        assert isinstance(build("my_nets:real", 32), torch.nn.Linear)
        with pytest.raises(UserError, match=r"no model from .*colorsys\.py \(AttributeError"):
            build("colorsys:net", 32)
    finally:
        sys.modules.pop("bench_sibling", None)
    assert sys.path == before


@pytest.mark.parametrize("name", ["cvt_13", "cvt_nano_32"])
def test_ours_count_as_describe_says(name):
    sheet = describe(name, 96)
    assert count(name, [96]) == {"num_params": sheet.num_params, "macs": {"96": sheet.macs}}


def test_transformers_is_built_from_the_same_figures():
    ours, theirs = count("cvt_13", [224]), count("hf/cvt_13", [224])
    assert theirs["num_params"] == ours["num_params"] == 19_997_480
    assert theirs["macs"]["224"] == pytest.approx(ours["macs"]["224"], rel=0.01)
    with torch.device("meta"):
        assert type(build("hf/cvt_21+depth=[1,2,3]", 64)).__name__ == "CvtForImageClassification"


def test_without_transformers_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r"needs transformers.*'cvt\[hf\]'"):
        build("hf/cvt_13", 224)


def test_what_transformers_cannot_compute_is_refused():
    with pytest.raises(UserError, match=r"Hugging Face's CvT.*projection"):
        build("hf/cvt_13+projection=linear", 224)


@pytest.mark.parametrize(
    ("name", "size"), [("timm/resnet18", 64), ("timm/vit_tiny_patch16_224", 96)]
)
def test_timm_is_built_at_the_size(name, size):
    with torch.device("meta"):
        model = build(name, size)
        assert model.eval()(torch.empty(1, 3, size, size)).shape == (1, 1000)


def test_names_of_timm_that_are_none():
    with pytest.raises(UserError, match="Did you mean 'timm/resnet18'"):
        build("timm/resnet_18", 224)


def test_a_users_own(mine):
    assert count(f"{mine}:small", [32, 40]) == {
        "num_params": 3 * 5 * 64 + 5 + 80 * 7 + 7,
        # at 40 pixels it cannot run, which is said when it is timed
        "macs": {"32": 16 * 5 * 3 * 64 + 80 * 7, "40": None},
    }
    assert isinstance(build(f"{mine}:Deep.make", 32), nn.Sequential)
    assert count(f"{mine}:reads", [8])["num_params"] == 4  # not to be built on meta


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("my_nets:number", "returned int, expected a torch.nn.Module"),
        ("my_nets:broken", "KeyError: 'lost'"),
        ("my_nets:smal", "AttributeError"),
        ("no_such_module:make", "ModuleNotFoundError"),
    ],
)
def test_a_users_own_that_gives_no_model(mine, name, words):
    with pytest.raises(UserError, match=words):
        build(name, 32)


def test_channels():
    assert channels_of(nn.Identity()) == 3
    with torch.device("meta"):
        assert channels_of(build("cvt_nano_32+in_chans=1", 32)) == 1
        assert channels_of(build("hf/cvt_13+in_chans=4", 32)) == 4


def test_facts_of_the_machine(monkeypatch):
    monkeypatch.setenv("OMP_PROC_BIND", "true")
    facts = find_facts([], [32], ["float32"], ["cpu"], None)
    assert facts.devices == ["cpu"]
    assert facts.threads == [torch.get_num_threads()]
    assert facts.environment["OMP_PROC_BIND"] == "true"
    assert facts.software["torch"] == torch.__version__.partition("+")[0] or torch.__version__
    assert facts.hardware["cpu"]
    assert find_facts([], [32], [], ["cpu"], [1, 3]).threads == [1, 3]


@pytest.fixture
def no_bf16(monkeypatch):
    pretend_cpu(monkeypatch, "avx512_f")


def test_a_device_or_dtype_that_is_not_there_is_told(no_bf16):
    facts = find_facts([], [32], ["float32", "bf16", "int8"], ["cpu", "xpu:7"], None)
    assert facts.devices == ["cpu", "xpu:7"]
    assert list(facts.lacking["cpu"]) == ["bf16"]
    assert "dtype bf16" in facts.lacking["cpu"]["bf16"]
    assert set(facts.lacking["xpu:7"]) == {"float32", "bf16", "int8"}
    assert "'xpu:7'" in facts.lacking["xpu:7"]["int8"]
    assert set(facts.hardware) == {"cpu"}


def test_where_nothing_can_be_measured_it_is_refused(no_bf16):
    with pytest.raises(UserError, match="'xpu:7'"):
        find_facts([], [32], ["float32"], ["xpu:7"], None)
    with pytest.raises(UserError, match="dtype bf16"):
        find_facts([], [32], ["bf16"], ["cpu"], None)


def test_passes_and_images_are_looked_up_before_anything_runs(tmp_path):
    with pytest.raises(UserError, match="Did you mean 'pack'"):
        find_facts([], [32], [], ["cpu"], None, forms=["deploy", "deploy-without-pakc"])
    with pytest.raises(UserError, match="There is no data at"):
        find_facts([], [32], [], ["cpu"], None, calibration=str(tmp_path / "lost"))


def test_the_machine_is_described_as_quotes_need_it(monkeypatch, tmp_path):
    info = tmp_path / "cpuinfo"
    info.write_text("processor: 0\nmodel name: X\nflags\t\t: fpu avx avx2 avx512f amx_int8\n")
    assert instruction_sets(info) == ["AVX2", "AVX-512", "AMX-INT8"]
    words = describe_cpu(info)
    assert "AVX2 AVX-512 AMX-INT8" in words
    assert re.search(r", \d+ cores?, .*, \d+ GiB of memory", words)
    properties = SimpleNamespace(name="H", total_memory=80 * 2**30, major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    words = describe_device(torch.device("cuda"))
    assert words == "H, 80 GiB, compute capability 9.0"


def test_weights_are_known_again_in_benches_made_before():
    assert count("cvt_nano_32.cifar10", [32])["weights"] == "bf8ef4cdddcf"


def test_a_checkpoint_is_built_with_its_weights(checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stored = cvt.load(checkpoint).state_dict()
    built = build(str(checkpoint), 64).state_dict()
    assert all(torch.equal(stored[name], built[name]) for name in stored)
    counted = count(str(checkpoint), [32, 64])
    assert counted["num_params"] == sum(each.numel() for each in cvt.load(checkpoint).parameters())
    assert counted["macs"]["64"] > 3 * counted["macs"]["32"]
    assert re.fullmatch("[0-9a-f]{12}", counted["weights"])
    assert counted["weights"] != count("demo", [32])["weights"]
    assert "weights" not in count("cvt_nano_32", [32])
    (tmp_path / "run").mkdir()
    assert not is_checkpoint("run")
    (tmp_path / "run" / "best.safetensors").write_bytes(checkpoint.read_bytes())
    assert is_checkpoint("run")
    assert is_checkpoint("demo")
    (tmp_path / "cvt_13").mkdir()
    (tmp_path / "cvt_13" / "config.json").touch()
    assert not is_checkpoint("cvt_13")
