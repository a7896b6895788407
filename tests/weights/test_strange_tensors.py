"""Tensors that are none of a network's: refused in a sentence, whatever file they come in."""

import io
import json
import zipfile

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import cvt
from cvt.errors import UserError
from cvt.systems.catalog import ROWS
from cvt.weights.checkpoint import read_safetensors, save_checkpoint, write_safetensors
from cvt.weights.convert import convert
from cvt.weights.layouts import to_microsoft
from cvt.weights.record import Record
from cvt.weights.source import open_weights

NAME = "stages.1.blocks.0.mlp.fc1.weight"
STRANGE = {
    "sparse_coo": lambda t: t.to_sparse(),
    "sparse_csr": lambda t: t.to_sparse_csr(),
    "quantised": lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8),
    "meta": lambda t: t.to("meta"),
    "nested": lambda t: torch.nested.nested_tensor([t]),
    "complex": lambda t: t.to(torch.complex64),
    "int8": lambda t: t.to(torch.int8),
    "bool": lambda t: t > 0,
    "float8_e4m3fn": lambda t: t.to(torch.float8_e4m3fn),
}


@pytest.fixture(scope="module")
def model():
    return cvt.create_model("cvt_nano_32", num_classes=3).eval()


@pytest.fixture(scope="module")
def state(model):
    return model.state_dict()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", STRANGE)
def test_tensors_of_other_kinds_are_named(tmp_path, state, kind):
    changed = {**state, NAME: STRANGE[kind](state[NAME])}
    for rename in (dict, to_microsoft):
        torch.save(rename(changed), tmp_path / "m.pth")
        with pytest.raises(UserError, match=kind):
            open_weights(tmp_path / "m.pth")
        with pytest.raises(UserError, match=kind):
            convert(tmp_path / "m.pth", tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_read(tmp_path, state, dtype):
    torch.save(
        {n: t.to(dtype) if t.is_floating_point() else t for n, t in state.items()},
        tmp_path / "m.pth",
    )
    model = cvt.load(tmp_path / "m.pth")
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_views_of_odd_strides_are_read_and_written(tmp_path, state, same):
    """A transposed one, one with gaps, one of a larger storage, one with a stride of 0."""
    views = {n: t.clone() for n, t in state.items()}
    views[NAME] = views[NAME].t().contiguous().t()
    views["head.weight"] = torch.stack([views["head.weight"]] * 2, dim=2)[:, :, 0]
    views["head.bias"] = torch.zeros(1).expand(3)
    flat = torch.cat([views["norm.weight"], views["norm.bias"]])
    views["norm.weight"], views["norm.bias"] = flat.chunk(2)
    torch.save(views, tmp_path / "m.pth")
    convert(tmp_path / "m.pth", tmp_path / "out.safetensors")
    expected = {**state, "head.bias": torch.zeros(3)}
    assert same(read_safetensors(tmp_path / "out.safetensors")[0], expected)


def test_few_numbers_that_stand_for_many_are_refused(tmp_path, state):
    torch.save({n: torch.zeros(()).expand(t.shape) for n, t in state.items()}, tmp_path / "m.pth")
    assert (tmp_path / "m.pth").stat().st_size < 100_000
    with pytest.raises(UserError, match=r"that repeat the same .* at most twice as many"):
        open_weights(tmp_path / "m.pth")


def test_an_archive_that_unpacks_to_much_more_is_refused(tmp_path):
    buffer = io.BytesIO()
    torch.save({"a": torch.zeros(10**6)}, buffer)
    with (
        zipfile.ZipFile(buffer) as stored,
        zipfile.ZipFile(tmp_path / "m.pth", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in stored.namelist():
            packed.writestr(name, stored.read(name))
    with pytest.raises(UserError, match="expected at most 10 times its size"):
        open_weights(tmp_path / "m.pth")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["one", "all", "running_var"])
def test_weights_that_are_not_finite_are_refused(tmp_path, state, value, name):
    broken = {n: t.clone() for n, t in state.items()}
    if name == "all":
        broken = {
            n: torch.full_like(t, value) if t.is_floating_point() else t for n, t in broken.items()
        }
    else:
        where = NAME if name == "one" else next(n for n in broken if n.endswith(name))
        broken[where].view(-1)[7] = value
    record = Record(model="cvt_nano_32", spec=ROWS["cvt_nano_32"].change(num_classes=3))
    record = Record(
        model=record.model,
        spec=record.spec,
        preprocessing=cvt.weights.record.Preprocessing.default(record.spec),
    )
    save_checkpoint(tmp_path / "m.safetensors", broken, record)
    torch.save(to_microsoft(broken), tmp_path / "m.pth")
    for file in ("m.safetensors", "m.pth"):
        with pytest.raises(UserError, match=r"of \d+ tensors in .*hold NaN or infinity"):
            cvt.load(tmp_path / file)


def test_large_finite_weights_are_read(tmp_path, state):
    """Their sum overflows; they don't."""
    large = {**state, NAME: torch.full_like(state[NAME], 3e38)}
    torch.save(large, tmp_path / "m.pth")
    assert torch.equal(open_weights(tmp_path / "m.pth")[0][NAME], large[NAME])


def test_counters_of_batch_norms_may_be_missing(tmp_path, model, state):
    without = {n: t for n, t in state.items() if not n.endswith("num_batches_tracked")}
    assert len(without) < len(state)
    image = torch.randn(2, 3, 32, 32)
    for rename in (dict, to_microsoft):
        torch.save(rename(without), tmp_path / "m.pth")
        with torch.no_grad():
            assert torch.equal(cvt.load(tmp_path / "m.pth")(image), model(image))


@pytest.mark.parametrize(
    "change",
    [
        {"depth": 100},
        {"embed_dim": 16384, "num_heads": 1},
        {"mlp_ratio": 64.0},
        {"pos_embed": "table"},
    ],
)
def test_a_record_of_another_size_is_refused_before_it_is_built(
    tmp_path, state, change, monkeypatch
):
    spec = ROWS["cvt_nano_32"].change(num_classes=3, img_size=4096, **change)
    record = Record(model="cvt_nano_32", spec=spec)
    save_checkpoint(tmp_path / "m.safetensors", state, record)
    monkeypatch.setattr("cvt.zoo.create.build", lambda *_, **__: pytest.fail("was built"))
    with pytest.raises(UserError, match="not those of the model that it describes"):
        cvt.load(tmp_path / "m.safetensors")


def test_a_record_that_contradicts_itself_is_refused(tmp_path, state):
    spec = ROWS["cvt_nano_32"].change(num_classes=3)
    grey = cvt.weights.record.Preprocessing(input_size=(1, 32, 32), mean=(0.5,), std=(0.5,))
    for record, says in (
        (Record(model="resnet50", spec=spec), "Got a network of stages for resnet50"),
        (Record(model="cvt_nano_33", spec=spec), "Did you mean 'cvt_nano_32'"),
        (
            Record(model="cvt_nano_32", spec=spec, preprocessing=grey),
            "a preprocessing of 1 channels",
        ),
    ):
        save_checkpoint(tmp_path / "m.safetensors", state, record)
        with pytest.raises(UserError, match=says):
            cvt.load(tmp_path / "m.safetensors")


def test_a_head_that_is_promised_has_to_be_there(tmp_path, state):
    """Class names over a fresh classifier would be an answer by chance."""
    spec = ROWS["cvt_nano_32"].change(num_classes=3)
    headless = {n: t for n, t in state.items() if not n.startswith("head.")}
    save_checkpoint(tmp_path / "m.safetensors", headless, Record(model="cvt_nano_32", spec=spec))
    with pytest.raises(UserError, match="not those of the model"):
        cvt.load(tmp_path / "m.safetensors")


STATES = {
    name: cvt.create_model(name, num_classes=2).state_dict()
    for name in ("cvt_nano_32", "tnt_nano_32", "t2t_nano_32")
}


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data(), name=st.sampled_from(sorted(STATES)))
def test_any_shape_anywhere_is_right_or_a_sentence(tmp_path, data, name):
    state = dict(STATES[name])
    for key in data.draw(st.lists(st.sampled_from(sorted(state)), min_size=1, max_size=3)):
        shape = data.draw(st.lists(st.integers(0, 4), max_size=4))
        state[key] = torch.zeros(shape)
    torch.save(state, tmp_path / "m.pth")
    try:
        cvt.load(tmp_path / "m.pth")
    except UserError as error:
        assert str(error).strip()  # noqa: PT017


def test_metadata_of_others_is_left_alone(tmp_path, state):
    """`cvt` is a key that strangers may use too."""
    write_safetensors(tmp_path / "m.safetensors", state, {"cvt": json.dumps({"a": 1})})
    with pytest.raises(UserError, match="unknown key 'a'"):
        open_weights(tmp_path / "m.safetensors")
