"""Registration with timm, whichever is imported first, and what an import costs: each in its own
process, because an import happens once."""

import subprocess
import sys
import textwrap

import pytest

SHADOW = """
    import warnings
    import timm
    import torch
    from timm.models import generate_default_cfgs, register_model

    default_cfgs = generate_default_cfgs({
        "cvt_13.theirs": {"first_conv": "patch_embed.proj", "classifier": "fc", "num_classes": 7},
    })

    def cvt_13(pretrained=False, **kwargs):
        return torch.nn.Linear(1, 7)

    register_model(cvt_13)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        import cvt
"""


def run(code: str) -> str:
    """Runs code with warnings as errors and returns what it printed."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("first", ["timm", "cvt"])
def test_either_import_may_come_first(first):
    second = {"timm": "cvt", "cvt": "timm"}[first]
    out = run(f"""
        import {first}
        import {second}
        print(len(timm.list_models("cvt_*")), len(timm.list_pretrained("cvt_*")))
        print(type(timm.create_model("cvt_13", depth=1)).__module__)
    """)
    assert out.split() == ["5", "7", "cvt.parts.backbone"]


@pytest.mark.parametrize("first", ["cvt.parts.attention", "cvt.zoo.timm_models", "timm.layers"])
def test_any_submodule_may_come_first(first):
    """timm may then be imported from inside one of our own modules, half executed."""
    out = run(f"""
        import {first}
        import cvt
        import timm
        print(len(timm.list_models("cvt_*")), timm.create_model("cvt_nano_32").num_classes)
    """)
    assert out == "5 10"


def test_import_loads_nothing_heavy():
    heavy = ("torch", "timm", "numpy", "torchvision", "PIL", "transformers", "sklearn", "rich")
    out = run(f"""
        import sys
        import cvt
        print([name for name in {heavy} if name in sys.modules], cvt.__version__)
    """)
    assert out.startswith("[] ")


def test_import_of_both_loads_no_more_than_timm():
    out = run("""
        import sys
        import timm
        before = set(sys.modules)
        import cvt
        print(*sorted({name.partition(".")[0] for name in set(sys.modules) - before}))
    """)
    allowed = {"cvt", "wrapt", "_wrapt", "importlib"} | set(sys.stdlib_module_names)
    assert {name for name in out.split() if not name.startswith("__")} <= allowed


def test_every_public_name_resolves():
    assert run("""
        import cvt
        print([name for name in cvt.__all__ if getattr(cvt, name, None) is None])
        print(set(cvt.__all__) <= set(dir(cvt)), hasattr(cvt, "nothing"))
    """).split("\n") == ["[]", "True False"]


def test_a_model_that_timm_has_already_stays_timms():
    out = run(f"""
        {SHADOW}
        print(type(timm.create_model("cvt_13")).__name__)
        print(*[str(w.message) for w in caught if "timm" in str(w.message)])
        print(timm.list_pretrained("cvt_13*"), timm.list_models("cvt_2*"))
    """)
    theirs, warning, models = out.split("\n")
    assert theirs == "Linear"
    assert "'cvt_13'" in warning
    assert "cvt.create_model('cvt_13')" in warning
    assert models == "[] ['cvt_21']"


@pytest.mark.parametrize("name", ["cvt_13", "cvt_13.msft_in1k_384"])
def test_ours_is_to_be_had_beside_timms(name):
    out = run(f"""
        {SHADOW}
        model = cvt.create_model({name!r}, depth=1)
        cfg = model.pretrained_cfg
        print(type(model).__name__, cfg["architecture"], cfg["tag"])
        print(cfg["first_conv"], cfg["classifier"], cfg["num_classes"], cfg["input_size"][1])
    """)
    tag = name.partition(".")[2] or "msft_in1k"
    side = 384 if "384" in tag else 224
    assert out.split("\n") == [f"Backbone cvt_13 {tag}", f"stages.0.embed.proj head 1000 {side}"]


def test_registering_twice_is_quiet():
    assert run("""
        import importlib
        import cvt.zoo.timm_models
        import timm
        importlib.reload(cvt.zoo.timm_models)
        print(timm.create_model("cvt_nano_32").num_classes)
    """) == "10"
