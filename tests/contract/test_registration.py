"""Registration with timm, whichever is imported first, and what an import costs.

An import happens once, so each case has a process of its own: a fork of one that has imported
torch and torchvision, as timm does in any case, and neither timm nor this package.
"""

import json
import subprocess
import sys
import textwrap

import pytest

from cvt.systems.cvt import ROWS

# Reads code, a line each as JSON, and writes the `answer` that each leaves.
SERVER = """
import json, os, sys, traceback, warnings
import torch, torchvision
# Python 3.12 and newer warn about any fork of a process with threads, which torch has.
warnings.filterwarnings("ignore", ".*multi-threaded.*fork", DeprecationWarning)
assert not {"timm", "cvt"} & set(sys.modules)
for line in sys.stdin:
    child = os.fork()
    if not child:
        try:
            exec(json.loads(line), globals())  # timm looks into the module of what it registers
            said = {"answer": answer}
        except BaseException:
            said = {"error": traceback.format_exc()}
        print(json.dumps(said), flush=True)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        print(json.dumps({"error": "The process was lost."}), flush=True)
"""


@pytest.fixture(scope="module")
def run():
    """`run(code)`: the `answer` that code leaves in a process where warnings are errors."""
    command = [sys.executable, "-W", "error", "-c", SERVER]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:

        def call(code: str):
            print(json.dumps(textwrap.dedent(code)), file=server.stdin, flush=True)
            said = json.loads(server.stdout.readline())
            assert "error" not in said, said["error"]
            return said["answer"]

        yield call


def test_timm_first_and_nothing_heavy_is_added(run):
    answer = run("""
        import sys
        import timm
        before = set(sys.modules)
        import cvt
        answer = {
            "added": sorted({name.partition(".")[0] for name in set(sys.modules) - before}),
            "models": timm.list_models("cvt_[0-9mnw]*"),
            "published": len(timm.list_pretrained("cvt_*")),
            "home": type(timm.create_model("cvt_13", depth=1)).__module__,
        }
    """)
    assert set(answer["models"]) == ROWS.keys()
    assert answer["published"] == 7
    assert answer["home"] == "cvt.parts.backbone"
    added = {name for name in answer["added"] if not name.startswith("__")}
    assert added <= {"cvt"} | set(sys.stdlib_module_names)


def test_cvt_first_and_registering_again_is_quiet(run):
    answer = run("""
        import cvt
        import timm
        answer = {"models": len(timm.list_models("cvt_[0-9mnw]*"))}
        import importlib
        import cvt.zoo.timm_models
        importlib.reload(cvt.zoo.timm_models)
        answer["classes"] = timm.create_model("cvt_nano_32").num_classes
    """)
    assert answer == {"models": 8, "classes": 10}


@pytest.mark.parametrize(
    "first", ["cvt.parts.attention", "timm.layers", "cvt.weights.record", "cvt.prediction"]
)
def test_any_submodule_may_come_first(run, first):
    """timm may then be imported from inside one of our own modules, half executed."""
    answer = run(f"""
        import {first}
        import cvt
        import timm
        number = len(timm.list_models("cvt_[0-9mnw]*"))
        answer = [number, timm.create_model("cvt_nano_32").num_classes]
    """)
    assert answer == [8, 10]


def test_import_loads_nothing_heavy():
    heavy = ("torch", "timm", "numpy", "torchvision", "PIL", "transformers", "sklearn", "rich")
    code = f"import sys, cvt; print([name for name in {heavy} if name in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout == "[]\n"


def test_every_public_name_resolves(run):
    answer = run("""
        import cvt
        answer = {
            "missing": [name for name in cvt.__all__ if not hasattr(cvt, name)],
            "listed": set(cvt.__all__) <= set(dir(cvt)),
            "other": hasattr(cvt, "nothing"),
        }
    """)
    assert answer == {"missing": [], "listed": True, "other": False}


def test_a_model_that_timm_has_already_stays_timms_and_ours_is_beside_it(run):
    answer = run("""
        import warnings
        import timm
        import torch
        from timm.models import generate_default_cfgs, register_model

        theirs = {"first_conv": "stem", "classifier": "fc", "num_classes": 7}
        default_cfgs = generate_default_cfgs({"cvt_13.theirs": theirs})

        def cvt_13(pretrained=False, **kwargs):
            return torch.nn.Linear(1, 7)

        register_model(cvt_13)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            import cvt
        ours = cvt.create_model("cvt_13", depth=1)
        tagged = cvt.create_model("cvt_13.msft_in1k_384", depth=1)
        keys = ("architecture", "tag", "first_conv", "classifier", "num_classes", "input_size")
        answer = {
            "timm": type(timm.create_model("cvt_13")).__name__,
            "warnings": [str(w.message) for w in caught if "timm" in str(w.message)],
            "published": timm.list_pretrained("cvt_13*"),
            "others": timm.list_models("cvt_2*"),
            "ours": [type(ours).__name__, *(ours.pretrained_cfg[key] for key in keys)],
            "tagged": [type(tagged).__name__, *(tagged.pretrained_cfg[key] for key in keys)],
        }
    """)
    assert answer["timm"] == "Linear"
    (warning,) = answer["warnings"]
    assert "'cvt_13'" in warning
    assert "cvt.create_model('cvt_13')" in warning
    assert answer["published"] == []
    assert answer["others"] == ["cvt_21"]
    names = ["stages.0.embed.proj", "head", 1000]
    assert answer["ours"] == ["Backbone", "cvt_13", "msft_in1k", *names, [3, 224, 224]]
    assert answer["tagged"] == ["Backbone", "cvt_13", "msft_in1k_384", *names, [3, 384, 384]]
