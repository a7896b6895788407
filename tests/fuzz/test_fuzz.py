"""Every reader of files of strangers, given thousands of bad ones; `pytest -m slow tests/fuzz`.

What comes of any input is a value or one sentence: no traceback, no program run, nothing written,
removed or sent, within bounds of time and memory.
"""

import dataclasses
import hashlib
import io
import json
import pickle
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import cvt
from cvt.data import BadImage, open_image
from cvt.data.parquet import parquet_splits
from cvt.data.shards import shard_splits
from cvt.errors import UserError
from cvt.plain import read_json, read_yaml
from cvt.runtime import ALONE
from cvt.training.checkpoints import Tensors, load_tensors, newest, save_state
from cvt.training.config import TrainConfig, save_config
from cvt.training.defaults import said
from cvt.training.run_folder import EpochRow, write_metrics
from cvt.training.runs import read_runs
from fuzz.strangers import as_json, check_sentence, damaged, examples, odd, refused_or
from trained import config_of

pytestmark = pytest.mark.slow


def picture(mode: str = "RGB", **how) -> bytes:
    noise = Image.effect_noise((24, 16), 90).convert(mode if mode != "I;16" else "L")
    if mode == "I;16":
        noise = Image.fromarray(np.asarray(noise).astype(np.uint16) * 16)
    buffer = io.BytesIO()
    noise.save(buffer, **how)
    return buffer.getvalue()


PICTURES = {
    "jpeg": picture(format="JPEG"),
    "progressive": picture(format="JPEG", progressive=True),
    "cmyk": picture("CMYK", format="JPEG"),
    "exif": picture(
        format="JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0"
    ),
    "png": picture("RGBA", format="PNG"),
    "palette": picture("P", format="PNG"),
    "png16": picture("I;16", format="PNG"),
    "gif": picture("P", format="GIF"),
    "webp": picture("RGBA", format="WEBP"),
    "bmp": picture(format="BMP"),
    "tiff": picture(format="TIFF", compression="tiff_lzw"),
    "tiff16": picture("I;16", format="TIFF"),
    "ppm": picture(format="PPM"),
}


@given(st.sampled_from(sorted(PICTURES)).flatmap(lambda name: damaged(PICTURES[name])))
@examples(20_000)
def test_pictures(content):
    result = refused_or(lambda: open_image(content))
    if isinstance(result, UserError):
        assert isinstance(result, BadImage)
    else:
        assert result.mode == "RGB"


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A network of 30,000 numbers, as a checkpoint and as folders of other libraries."""
    folder = tmp_path_factory.mktemp("small")
    model = cvt.create_model(
        "cvt_13", embed_dim=(8, 16, 24), num_heads=(1, 1, 2), depth=(1, 2, 3), num_classes=3
    )
    cvt.save_pretrained(model.eval(), folder / "timm")
    cvt.convert(folder / "timm", folder / "small.safetensors")
    cvt.convert(folder / "timm", folder / "hf")
    cvt.convert(folder / "timm", folder / "small.pth")
    return folder


def split_safetensors(content: bytes) -> tuple[dict, bytes]:
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def join_safetensors(header: bytes, tensors: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + tensors


def load(path: Path) -> None:
    result = refused_or(lambda: cvt.load(path))
    if isinstance(result, torch.nn.Module):
        assert sum(each.numel() for each in result.parameters()) < 10**6


@given(st.data())
@examples(3_000)
def test_records_of_checkpoints(small, data):
    header, tensors = split_safetensors((small / "small.safetensors").read_bytes())
    record = data.draw(odd(json.loads(header["__metadata__"]["cvt"])))
    header["__metadata__"]["cvt"] = as_json(record).decode()
    path = small / "odd.safetensors"
    path.write_bytes(join_safetensors(as_json(header), tensors))
    load(path)


@given(st.data())
@examples(10_000)
def test_safetensors(small, data):
    content = (small / "small.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    start = data.draw(damaged(content[: 8 + length]))
    path = small / "damaged.safetensors"
    path.write_bytes(start + content[8 + length :])
    load(path)


@given(st.data())
@examples(2_000)
def test_configs_of_other_libraries(small, data):
    kind, name = data.draw(
        st.sampled_from(
            [("timm", "config.json"), ("hf", "config.json"), ("hf", "preprocessor_config.json")]
        )
    )
    folder = small / kind
    good = (folder / name).read_bytes()
    tensors = (folder / "model.safetensors").read_bytes()
    try:
        # Without our own record, which would be read instead.
        header, rest = split_safetensors(tensors)
        header.pop("__metadata__", None)
        (folder / "model.safetensors").write_bytes(join_safetensors(as_json(header), rest))
        (folder / name).write_bytes(as_json(data.draw(odd(json.loads(good)))))
        load(folder)
    finally:
        (folder / name).write_bytes(good)
        (folder / "model.safetensors").write_bytes(tensors)


EVIL = [
    b"cos\nsystem\n(S'true'\ntR.",
    b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x04true\x85R.",
    b"\x80\x04\x8c\x08builtins\x8c\x04exec\x93\x8c\x04pass\x85R.",
    b"\x80\x04\x8c'torch.distributed.checkpoint.metadata\x8c\x09os.system\x93\x8c\x04true\x85R.",
    b"ctorch.utils.data\nos.system\n(S'true'\ntR.",
    pickle.dumps({"state_dict": {"a": [1, 2]}}),
    pickle.dumps({"model": {"x" * 100_000: None}}),
]


@given(st.data())
@examples(10_000)
def test_pickles(small, data):
    good = (small / "small.pth").read_bytes()
    content = data.draw(st.one_of(damaged(good), *(damaged(evil) | st.just(evil) for evil in EVIL)))
    path = small / data.draw(st.sampled_from(("odd.pth", "odd.bin", "odd.ckpt", "odd")))
    path.write_bytes(content)
    load(path)


def archive(members) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


SAMPLES = [
    member
    for number in range(4)
    for member in (
        (f"folder/{number}{'long' * 30}.png", PICTURES["png"]),
        (f"folder/{number}{'long' * 30}.json", b'{"label": %d}' % (number % 2)),
    )
]


def look(read) -> None:
    """Opens a data set and its first pictures."""
    splits = refused_or(read)
    if isinstance(splits, UserError):
        return
    for images in splits.values():
        for each in refused_or(lambda images=images: list(images.some(3))):
            if isinstance(each, BadImage):
                check_sentence(str(each))


@given(st.data())
@examples(10_000)
def test_shards(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp() / "shards"
    folder.mkdir(exist_ok=True)
    (folder / "train-0.tar").write_bytes(data.draw(damaged(archive(SAMPLES))))
    look(lambda: shard_splits(folder))


INFO = {
    "splits": {"train": {"filenames": ["train-0.tar"], "num_samples": 4, "alt_label": "label"}},
    "classes": ["ant", "bee"],
}


@given(odd(INFO), st.booleans())
@examples(10_000)
def test_lists_of_shards(tmp_path_factory, info, underscore):
    folder = tmp_path_factory.getbasetemp() / f"info{underscore}"
    folder.mkdir(exist_ok=True)
    (folder / "train-0.tar").write_bytes(archive(SAMPLES))
    (folder / ("_info.json" if underscore else "info.json")).write_bytes(as_json(info))
    look(lambda: shard_splits(folder))


@pytest.fixture(scope="module")
def table():
    return make_table(None)


def make_table(metadata: bytes | None) -> bytes:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    images = [{"bytes": PICTURES["png"], "path": f"{n}.png"} for n in range(6)]
    rows = pa.table({"image": images, "label": pa.array([0, 1] * 3, pa.int64())})
    if metadata is not None:
        rows = rows.replace_schema_metadata({"huggingface": metadata})
    buffer = io.BytesIO()
    pq.write_table(rows, buffer)
    return buffer.getvalue()


@given(st.data())
@examples(10_000)
def test_parquet_files(tmp_path_factory, table, data):
    file = tmp_path_factory.getbasetemp() / "train.parquet"
    file.write_bytes(data.draw(damaged(table)))
    look(lambda: parquet_splits(file))


FEATURES = {"info": {"features": {"label": {"names": ["ant", "bee"], "_type": "ClassLabel"}}}}


@given(odd(FEATURES))
@examples(10_000)
def test_metadata_of_parquet_files(tmp_path_factory, features):
    file = tmp_path_factory.getbasetemp() / "named.parquet"
    file.write_bytes(make_table(as_json(features)))
    look(lambda: parquet_splits(file))


YAML = b"data: photos/\nmodel_args:\n  kv_stride: [1, 2, 2]\noptim: {lr: 1.0e-3, opt: adamw}\n"


@given(damaged(YAML))
@examples(20_000)
def test_yaml(content):
    text = content.decode(errors="surrogateescape")
    refused_or(lambda: said(read_yaml(text, "it"), "it"))


@given(odd(config_of().to_dict()))
@examples(20_000)
def test_configs(plain):
    refused_or(lambda: TrainConfig.from_dict(plain))


@given(st.one_of(damaged(as_json(INFO)), odd(INFO).map(as_json)))
@examples(20_000)
def test_json(content):
    refused_or(lambda: read_json(content, "it"))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two layers' training: a checkpoint, and the small files beside it."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    save_state(folder, {"config": config_of().to_dict()}, made(), keep=1, world=ALONE)
    save_config(folder / "config.yaml", config_of())
    row = EpochRow(**{each.name: 1 for each in dataclasses.fields(EpochRow)})
    write_metrics(folder, [row, row])
    (folder / "result.json").write_text('{"best_epoch": 1, "test_top1": 50.0, "seconds": 2.5}')
    return folder


def made() -> Tensors:
    model = torch.nn.Linear(4, 3)
    return Tensors(model=model, optimizer=torch.optim.AdamW(model.parameters()))


def seal(folder: Path, state: object) -> None:
    """Makes all digests right, as whoever can write the folder can."""
    if isinstance(state, dict):
        state.pop("digest", None)
        content = (folder / "__0_0.distcp").read_bytes()
        if isinstance(state.get("digests"), dict) and "__0_0.distcp" in state["digests"]:
            state["digests"]["__0_0.distcp"] = hashlib.sha256(content).hexdigest()
        state = {**state, "digest": hashlib.sha256(as_json(state)).hexdigest()}
    (folder / "state.json").write_bytes(as_json(state))


@given(st.data())
@examples(6_000)
def test_checkpoints_of_runs(run, data):
    folder = run / "checkpoints" / "000000"
    state = json.loads((folder / "state.json").read_text())
    tensors = (folder / "__0_0.distcp").read_bytes()
    try:
        (folder / "__0_0.distcp").write_bytes(data.draw(st.just(tensors) | damaged(tensors)))
        seal(folder, data.draw(st.just(state) | odd(state)))
        refused_or(lambda: load_tensors(newest(run), made()))
    finally:
        (folder / "__0_0.distcp").write_bytes(tensors)
        (folder / "state.json").write_text(json.dumps(state))


@given(st.data())
@examples(6_000)
def test_files_of_runs(run, data):
    file = run / data.draw(st.sampled_from(("config.yaml", "metrics.csv", "result.json")))
    good = file.read_bytes()
    try:
        file.write_bytes(data.draw(damaged(good)))
        listed = refused_or(lambda: read_runs(run.parent))
        for sentence in [] if isinstance(listed, UserError) else listed[1]:
            check_sentence(sentence)
    finally:
        file.write_bytes(good)
