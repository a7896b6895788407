"""The page on other libraries, executed block by block where its libraries are installed."""

import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import timm
import torch

import cvt
from networks import NAMES, small

PAGE = (Path(__file__).parents[2] / "docs" / "neighbours.md").read_text()
BLOCKS = re.findall(r"^## (.*?)$(?:(?!^## ).)*?```python\n(.*?)```", PAGE, re.DOTALL | re.MULTILINE)
(COMMAND,) = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)


def test_every_chapter_has_code():
    assert [title for title, _ in BLOCKS] == re.findall(r"^## (.*)$", PAGE, re.MULTILINE)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("title", "code"), BLOCKS, ids=[title for title, _ in BLOCKS])
def test_code_runs(title, code, tmp_path, monkeypatch):
    imported = re.findall(r"^(?:import|from) (.+?)(?: import.*| as .*)?$", code, re.MULTILINE)
    packages = {each.strip().partition(".")[0] for line in imported for each in line.split(",")}
    missing = [each for each in packages if find_spec(each) is None]
    if missing:
        pytest.skip(f"without {missing}")
    monkeypatch.chdir(tmp_path)
    scope: dict = {"__name__": "page"}
    exec(compile(code, title, "exec"), scope)
    if title == "Grad-CAM":
        assert scope["heat"].shape == (1, 224, 224)
        assert scope["heat"].max() > 0
    if title in ("Lightning", "accelerate"):
        assert cvt.load("five-classes").num_classes == 5


def test_the_prefix_makes_any_timm_script_know_our_models(tmp_path):
    """The script is a stand-in that knows timm alone; its arguments arrive."""
    script = tmp_path / "train.py"
    script.write_text(
        "import sys, timm, torch\n"
        "assert __name__ == '__main__'\n"
        "with torch.device('meta'):\n"
        "    model = timm.create_model(sys.argv[sys.argv.index('--model') + 1])\n"
        "print(type(model).__name__, sys.argv[1:])\n"
    )
    python, flag, prefix, name, *arguments = shlex.split(COMMAND.replace("\\\n", " "))
    assert (python, name) == ("python", "train.py")
    done = subprocess.run(
        [sys.executable, flag, prefix, str(script), *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == f"Backbone {arguments}\n", done.stderr


@pytest.mark.parametrize("name", NAMES)
def test_fastai_builds_the_head_for_pooled_features(name):
    """It asks `pool_size` whether to take `forward_features`, a map, or the pooled `forward`."""
    from cvt.systems.catalog import timm_name

    with torch.device("meta"):
        model = timm.create_model(timm_name(name), num_classes=0)
        features = model(torch.empty(2, *model.default_cfg["input_size"]))
    assert model.default_cfg["pool_size"] is None
    assert features.shape == (2, model.num_features)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("of_block", [False, True], ids=["norm1", "block"])
@pytest.mark.parametrize("name", ["cvt_13", "cvt_nano_32", "deit_nano_32", "pvt_nano_32"])
def test_grad_cam_is_the_formula(name, of_block):
    """Channels weighted by their mean gradient, summed, the negative cut off, scaled to 0..1."""
    grad_cam = pytest.importorskip("pytorch_grad_cam")
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    model = small(name, num_classes=5).eval()
    if of_block and model.global_pool == "token":
        model = small(name, num_classes=5, **_mean_of(name)).eval()
    side = 64 if name == "cvt_13" else 16
    images = torch.randn(1, 3, side, 2 * side, generator=torch.Generator().manual_seed(0))
    grid = model.spec.grids((side, 2 * side))[-1]
    block = model.stages[-1].blocks[-1]

    def to_map(tokens):
        tokens = tokens[0] if isinstance(tokens, tuple) else tokens
        return tokens[:, -grid[0] * grid[1] :].transpose(1, 2).unflatten(2, grid)

    layer = block if of_block else block.norm1
    cam = grad_cam.GradCAM(model=model, target_layers=[layer], reshape_transform=to_map)
    cam.batch_size = 1
    (found,) = cam(input_tensor=images, targets=[ClassifierOutputTarget(2)])

    kept = []
    handle = layer.register_forward_hook(
        lambda *call: kept.append(call[2][0] if of_block else call[2])
    )
    logits = model(images)
    handle.remove()
    fmap = to_map(kept[0])
    (gradient,) = torch.autograd.grad(logits[0, 2], kept[0])
    weights = to_map(gradient).mean(dim=(2, 3), keepdim=True)
    heat = (weights * fmap).sum(dim=1).relu()[0].detach()
    assert heat.max() > 0
    heat = (heat - heat.min()) / (heat.max() - heat.min() + 1e-7)
    assert found.shape == (side, 2 * side)
    # It enlarges the map bilinearly; where it peaks is the same to a cell.
    peak = divmod(int(found.argmax()), 2 * side)
    row, column = peak[0] * grid[0] // side, peak[1] * grid[1] // (2 * side)
    around = heat[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2]
    assert around.max() == heat.max()


def _mean_of(name: str) -> dict:
    """Another pooling for a row with a class token; with a distillation token there is none."""
    return {"global_pool": "avg", **({"distilled": False} if "deit" in name else {})}
