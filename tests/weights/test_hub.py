"""The hub, out of reach and pretended."""

import json
import time
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import EntryNotFoundError, HFValidationError, LocalEntryNotFoundError

from cvt import convert
from cvt.errors import Remark, UserError
from cvt.systems.cvt import ROWS
from cvt.weights import source as hub
from cvt.weights.checkpoint import save_checkpoint
from cvt.weights.published import AT_384
from cvt.weights.record import Record
from cvt.weights.source import fetch, names_weights, open_weights


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def offline(empty_cache, monkeypatch):
    """Nothing answers at the hub's address."""
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")


@pytest.fixture
def pretended(tmp_path, monkeypatch):
    """Returns a function that puts the files of a folder on a hub of our own."""

    def serve(folder: Path) -> None:
        def download(_repo_id: str, name: str, *, local_files_only: bool) -> str:
            assert not local_files_only
            if not (folder / name).is_file():
                raise EntryNotFoundError(name)
            return str(folder / name)

        monkeypatch.setattr(hub, "_reachable", lambda: True)
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)

    return serve


@pytest.mark.parametrize("source", ["microsoft/cvt-13", "cvt_13.msft_in1k", "some/thing"])
def test_offline_is_one_sentence_at_once(offline, source):
    start = time.perf_counter()
    with pytest.raises(UserError, match=r"hub is out of reach.* go online, give the path"):
        open_weights(source)
    assert time.perf_counter() - start < 5


def test_offline_mode_is_one_sentence(empty_cache, monkeypatch):
    """`HF_HUB_OFFLINE=1`, which huggingface_hub reads once, at its import."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="hub is out of reach"):
        fetch("microsoft/cvt-13")


def test_offline_falls_back_to_the_cache(offline, tmp_path, monkeypatch):
    folder = tmp_path / "cache" / "models--some--thing"
    snapshot = folder / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")
    for name in ("config.json", "pytorch_model.bin"):
        (snapshot / name).write_text("{}")
    assert fetch("some/thing") == snapshot


def test_published_weights_get_what_is_published(pretended, tmp_path, make_model):
    spec = ROWS["cvt_13"]
    folder = tmp_path / "hub"
    save = tmp_path / "m.safetensors"
    save_checkpoint(save, make_model(spec).state_dict(), Record(model="cvt_13", spec=spec))
    convert(save, folder, to="hugging_face")
    pretended(folder)
    _, record = open_weights("cvt_13.msft_in1k_384")
    assert record.preprocessing == AT_384
    assert record.source == "microsoft/cvt-13-384"
    assert record.metrics == {"top1": 83.0}
    assert record.class_names[0].startswith("tench")
    assert record.spec == spec


def test_a_repository_without_weights_is_a_sentence(pretended, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    pretended(tmp_path)
    with pytest.raises(UserError, match=r"'some/thing' has no config\.json or none of"):
        fetch("some/thing")


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (
            HFValidationError("bad id"),
            "no file or folder 'some/thing' here, and the .* hub, which was",
        ),
        (LocalEntryNotFoundError("blocked"), "hub is out of reach"),
        (OSError("connection reset\nmore"), "Downloading config.json .* failed: connection reset$"),
    ],
)
def test_what_goes_wrong_in_a_download_is_a_sentence(monkeypatch, error, says):
    def download(*_args, **_kwargs):
        raise error

    monkeypatch.setattr(hub, "_reachable", lambda: True)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(UserError, match=says):
        fetch("some/thing")


def test_weights_in_several_files_are_fetched(pretended, tmp_path):
    folder = tmp_path / "hub"
    folder.mkdir()
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    for name in ("config.json", "model-1.safetensors", "model-2.safetensors"):
        (folder / name).write_text("{}")
    pretended(folder)
    assert fetch("some/thing") == folder
    (folder / "model-2.safetensors").unlink()
    with pytest.raises(UserError, match=r"lacks model-2\.safetensors, which model\.safe"):
        fetch("some/thing")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../x"}}')
    with pytest.raises(UserError, match=r"Got the file '\.\./x'"):
        fetch("some/thing")


@pytest.mark.parametrize("prefix", ["hf-hub:", "hf_hub:"])
def test_a_prefix_asks_the_hub_whatever_lies_here(tmp_path, monkeypatch, prefix):
    asked = []

    def fetched(repo_id):
        asked.append(repo_id)
        raise UserError("asked")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("cvt.weights.source.fetch", fetched)
    Path("some/thing").mkdir(parents=True)
    with pytest.raises(UserError, match="asked"):
        open_weights(f"{prefix}some/thing")
    with pytest.raises(UserError, match="asked"):
        open_weights(f"{prefix}microsoft/cvt-13")
    assert asked == ["some/thing", "microsoft/cvt-13"]
    with pytest.raises(UserError, match="no checkpoint in the folder some/thing"):
        open_weights("some/thing")
    for wrong in ("thing", "a/b/c", "../x", "some/", ""):
        with pytest.raises(UserError, match=r"expected hf-hub:OWNER/NAME|There are no weights"):
            open_weights(f"{prefix}{wrong}")
    assert len(asked) == 2


@pytest.mark.parametrize(
    "source",
    [
        *("./a/b", "../a/b", "a/b/c", "/a/b", "a/b.onnx", "a/b.ckpt", "a/b.JPG", "a/b/", "~/b"),
        *("here/b", "a" * 97 + "/b", "a/b c", "a/" + "b" * 4000, "b" * 4000, "a\0/b", "a\0b"),
        *("x" * 300 + ".pth", "https://huggingface.co/microsoft/cvt-13", "a\nb/c", "é/b"),
    ],
)
def test_what_looks_like_a_path_is_never_sent_to_the_hub(tmp_path, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    Path("here").mkdir()
    monkeypatch.setattr("cvt.weights.source.fetch", lambda _: pytest.fail("asked the hub"))
    with pytest.raises(UserError, match=r"There (is|are) no|Got the URL") as raised:
        open_weights(source)
    assert len(str(raised.value)) < 1100
    assert str(raised.value).isprintable()
    assert not names_weights(source)


def test_a_folder_that_is_called_like_a_hub_id_is_named(tmp_path, monkeypatch, tiny_model):
    monkeypatch.chdir(tmp_path)
    record = Record(model="cvt_13", spec=tiny_model.spec)
    save_checkpoint("microsoft/cvt-13/best.safetensors", tiny_model.state_dict(), record)
    here = f"Took the folder {tmp_path}/microsoft/cvt-13, not the hub's .*hf-hub:microsoft/cvt-13"
    with pytest.warns(Remark, match=here):
        assert open_weights("microsoft/cvt-13")[1] == record
