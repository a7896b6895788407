"""Streams: an epoch's batches are a function of (seed, epoch), whoever decodes them and when."""

import io
import threading
import time
from itertools import chain

import numpy as np
import pytest
import torch
from PIL import Image

from cvt.data import (
    Augment,
    batch_names,
    eval_transform,
    load_data,
    load_split,
    make_eval_loader,
    make_loader,
    train_transform,
)
from cvt.data.image import BadImage
from cvt.data.order import Share
from cvt.data.streams import Row, StreamSet, decoded, read_ahead
from cvt.errors import UserError
from cvt.weights.record import Preprocessing

PREPROCESSING = Preprocessing(input_size=(3, 16, 16))
TRAIN = train_transform(PREPROCESSING, Augment())
EVAL = eval_transform(PREPROCESSING)

# Python 3.12 and newer warn about any fork of a process with threads, which torch has.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")


def png(number):
    random = np.random.default_rng(number)
    out = io.BytesIO()
    Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(out, "PNG")
    return out.getvalue()


def stream(count=22, promised=None, bad=(), fails_at=None):
    """A stream of noise whose shuffling is a plain permutation."""

    def rows(seed):
        order = range(count) if seed is None else np.random.default_rng(seed).permutation(count)
        for place, number in enumerate(map(int, order)):
            if place == fails_at:
                raise ConnectionError("Server Disconnected.")
            content = b"" if number in bad else png(number)
            yield Row(place, content, number % 3, f"noise {number}")

    return StreamSet(rows, promised or count, "abc", "noise")


def batches(images=None, transform=TRAIN, **options):
    given = {"batch_size": 4, "shuffle": True, **options}
    return list(make_loader(images or stream(), transform, **given))


def equal(first, second):
    return len(first) == len(second) and all(
        torch.equal(a.images, b.images)
        and torch.equal(a.labels, b.labels)
        and torch.equal(a.indices, b.indices)
        and a.bad == b.bad
        for a, b in zip(first, second, strict=True)
    )


def test_every_picture_once_in_another_order_each_epoch():
    labels = [torch.cat([b.labels for b in batches(epoch=epoch)]).tolist() for epoch in (0, 1)]
    assert sorted(labels[0]) == sorted(labels[1]) == sorted(n % 3 for n in range(22))
    assert labels[0] != labels[1]
    assert [len(b.labels) for b in batches(drop_last=True)] == [4] * 5
    assert torch.cat([b.indices for b in batches()]).tolist() == list(range(22))


def test_workers_and_start_change_nothing():
    whole = batches(stream(bad=(5, 6)), seed=1, epoch=2)
    assert equal(whole, batches(stream(bad=(5, 6)), seed=1, epoch=2, num_workers=2))
    for start in (1, 5, 6):
        options = {"seed": 1, "epoch": 2, "start_batch": start, "num_workers": start % 2}
        assert equal(whole[start:], batches(stream(bad=(5, 6)), **options))


def test_seed_and_epoch_are_told_apart():
    orders = {
        key: torch.cat([b.labels for b in batches(seed=key[0], epoch=key[1])]).tolist()
        for key in ((1, 2), (2, 1), (0, 3))
    }
    assert orders[1, 2] != orders[2, 1] != orders[0, 3]


def test_a_bad_picture_is_named_and_moves_no_other():
    good, bad = batches(), batches(stream(bad=(7, 20)))
    said = sorted(sentence.partition(" is")[0] for each in bad for sentence in each.bad)
    assert said == ["noise 20", "noise 7"]
    for whole, part in zip(good, bad, strict=True):
        kept = torch.isin(whole.indices, part.indices)
        assert torch.equal(part.images, whole.images[kept])
        assert torch.equal(part.labels, whole.labels[kept])
        assert len(part.bad) == int((~kept).sum())


def test_processes_share_every_batch():
    whole = batches(drop_last=True)
    for world, accum in ((2, 1), (1, 2), (2, 2)):
        shares = [Share(rank, world, accum) for rank in range(world)]
        ranks = [iter(batches(share=share, drop_last=True)) for share in shares]
        for batch in whole:
            chunks = [next(ranks[number % world]) for number in range(world * accum)]
            for number, chunk in enumerate(chunks):
                assert torch.equal(chunk.images, batch.images[number :: world * accum])
        assert all(next(rank, None) is None for rank in ranks)
    with pytest.raises(UserError, match="batch_size 4 for 3 processes"):
        batches(share=Share(world_size=3))


def test_repeats():
    plain = torch.cat([b.labels for b in batches(seed=4)])[:8]
    seen = batches(seed=4, repeats=3)
    assert sum(len(b.labels) for b in seen) == 22
    assert torch.equal(torch.cat([b.labels for b in seen]), plain.repeat_interleave(3)[:22])
    assert torch.cat([b.indices for b in seen]).tolist() == [n // 3 for n in range(22)]
    images = torch.cat([b.images for b in seen])
    assert not torch.equal(images[0], images[1])
    assert torch.equal(images[0], batches(seed=4)[0].images[0])


@pytest.mark.parametrize("world", [1, 2, 3])
def test_measuring_covers_all_in_order(world):
    found = []
    for rank in range(world):
        options = {"batch_size": 4, "rank": rank, "world_size": world}
        found.append(list(make_eval_loader(stream(10), EVAL, **options)))
    assert len({len(each) for each in found}) == 1
    indices = torch.cat([batch.indices for batch in chain(*found)])
    images = torch.cat([batch.images for batch in chain(*found)])
    assert indices.sort().values.tolist() == list(range(10))
    expected = EVAL(Image.open(io.BytesIO(png(7))))
    assert torch.equal(images[indices.tolist().index(7)], expected)


def test_names_of_a_batch():
    options = {"seed": 1, "epoch": 2, "repeats": 1, "batch": 3, "batch_size": 4}
    labels = batches(seed=1, epoch=2)[3].labels.tolist()
    names = batch_names(stream(), **options)
    assert [int(name.split()[1]) % 3 for name in names] == labels


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_stream_that_breaks_off(num_workers):
    seen = []
    loader = make_loader(
        stream(fails_at=9), EVAL, batch_size=4, shuffle=True, num_workers=num_workers
    )
    with pytest.raises(UserError, match=r"broke off after 9 of 22 .*Server Disconnected\); check"):
        seen.extend(loader)
    with pytest.raises(UserError, match="ended after 22 of the 30 images"):
        batches(stream(22, promised=30))


def test_more_than_promised_is_not_read():
    images = stream(22, promised=10)
    assert sum(len(b.labels) for b in batches(images)) == 10
    measured = make_eval_loader(images, EVAL, batch_size=4)
    assert torch.cat([b.indices for b in measured]).tolist() == list(range(10))


def test_what_a_stream_cannot_do_is_said():
    images = stream()
    for ask in (
        lambda: images.labels,
        lambda: images.image(3),
        lambda: images.subset([1]),
    ):
        with pytest.raises(UserError, match=r"noise is a stream.*hfds/ instead of hfids/"):
            ask()
    with pytest.raises(AttributeError, match="labls"):
        images.labls  # noqa: B018
    first = list(stream(bad=(1,)).some(3))
    assert [isinstance(each, BadImage) for each in first] == [False, True, False]
    assert images.fingerprint() == stream().fingerprint()


def test_a_picture_may_be_an_address(tmp_path):
    pytest.importorskip("fsspec")
    (tmp_path / "a.png").write_bytes(png(3))
    for source in (f"file://{tmp_path}/a.png", str(tmp_path / "a.png")):
        image = decoded(Row(0, source, 1, "a"))
        assert np.array_equal(image, Image.open(io.BytesIO(png(3))))
    assert "picture c has no class" in str(decoded(Row(0, png(3), -1, "picture c")))
    missing = decoded(Row(0, f"file://{tmp_path}/b.png", 1, "picture b"))
    assert isinstance(missing, BadImage)
    assert "Cannot read picture b" in str(missing)


def test_reading_ahead():
    read, closed, waiting = [], [], threading.Event()

    def numbers():
        try:
            for number in range(100):
                read.append(number)
                yield number
        finally:
            closed.append(threading.current_thread().name)

    ahead = read_ahead(numbers(), 3)
    assert next(ahead) == 0
    deadline = time.monotonic() + 10
    while len(read) < 5 and time.monotonic() < deadline:
        waiting.wait(0.01)
    waiting.wait(0.05)
    assert read == list(range(5))  # one is out, three wait, one is at the door
    assert next(ahead) == 1
    ahead.close()
    assert "read ahead" not in [thread.name for thread in threading.enumerate()]
    assert closed == ["read ahead"]
    assert list(read_ahead((letter for letter in "abc"), 1)) == ["a", "b", "c"]


# What follows needs the `datasets` library.


@pytest.fixture
def parquet_stream(tmp_path, monkeypatch):
    """A folder as the hub has them: two files for training, one for validation."""
    datasets = pytest.importorskip("datasets")
    # Newer versions sleep at the end of a shuffled stream, to let threads of pyarrow's end.
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0, raising=False)
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}
    )

    def write(name, numbers, bad=()):
        cells = [{"bytes": b"" if n in bad else png(n), "path": f"{n}.png"} for n in numbers]
        labels = [n % 2 for n in numbers]
        rows = datasets.Dataset.from_dict({"image": cells, "label": labels}, features=features)
        (tmp_path / "set/data").mkdir(parents=True, exist_ok=True)
        rows.to_parquet(tmp_path / f"set/data/{name}.parquet")

    write("train-00000-of-00002", range(12), bad=[4])
    write("train-00001-of-00002", range(12, 20))
    write("validation-00000-of-00001", range(20, 26))
    return tmp_path / "set"


def test_a_hub_stream(parquet_stream):
    data = load_data(f"hfids/{parquet_stream}")
    assert (len(data.train), len(data.val), data.classes) == (20, 6, ("cat", "dog"))
    whole = batches(data.train, drop_last=True)
    assert len(whole) == 5
    said = [sentence for batch in whole for sentence in batch.bad]
    assert [sentence.partition(" is empty")[0] for sentence in said] == [
        f"{parquet_stream} train 4.png"
    ]
    assert equal(whole[3:], batches(data.train, drop_last=True, start_batch=3, num_workers=2))
    other = [batch.images.sum().item() for batch in batches(data.train, EVAL, epoch=1)]
    assert sorted(other) != sorted(b.images.sum().item() for b in batches(data.train, EVAL))
    val = list(make_eval_loader(load_split(f"hfids/{parquet_stream}", "val"), EVAL, batch_size=4))
    assert torch.cat([batch.labels for batch in val]).tolist() == [0, 1] * 3


def test_the_number_of_images_is_taken_from_the_card(parquet_stream):
    lines = ["---", "dataset_info:", "  splits:"]
    for split, count in (("train", 18), ("validation", 6)):
        lines += [f"  - name: {split}", f"    num_examples: {count}", "    num_bytes: 1"]
    (parquet_stream / "README.md").write_text("\n".join([*lines, "---"]))
    assert len(load_data(f"hfids/{parquet_stream}").train) == 18


def test_a_stream_of_files(class_folder, tmp_path):
    pytest.importorskip("datasets")
    class_folder({"cat": 3, "dog": 3}, "set/train")
    class_folder({"cat": 1, "dog": 1}, "set/validation")
    data = load_data("hfids/" + str(tmp_path / "set"))
    (batch,) = batches(data.train, EVAL, batch_size=6)
    assert sorted(batch.labels.tolist()) == [0, 0, 0, 1, 1, 1]
    with pytest.raises(UserError, match="is a stream"):
        load_split("hfids/" + str(tmp_path / "set"), "all")


def test_splits_of_a_stream_are_matched_by_name(parquet_stream):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["dog", "owl", "cat"])}
    )
    cells = [{"bytes": png(n), "path": None} for n in range(4)]
    columns = {"image": cells, "label": [0, 1, 2, 0]}
    test = datasets.Dataset.from_dict(columns, features=features)
    cache = str(parquet_stream / "cache")
    train = datasets.load_dataset(str(parquet_stream), split="train", cache_dir=cache)
    both = datasets.DatasetDict(train=train, validation=train, test=test)
    both.save_to_disk(str(parquet_stream / "both"))
    data = load_data(f"hfids/{parquet_stream}/both")
    assert data.test.classes == ("cat", "dog")
    (batch,) = make_eval_loader(data.test, EVAL, batch_size=4)
    assert batch.labels.tolist() == [1, 0, 1]
    assert "image 1 has no class" in batch.bad[0]


def test_a_stream_opens_no_file_outside_of_the_data_set(parquet_stream, tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    Image.new("L", (4, 4), 99).save(tmp_path / "out.png")
    path = parquet_stream / "data/validation-00000-of-00001.parquet"
    kept = pq.read_table(path)
    out = [str(tmp_path / "out.png"), f"file://{tmp_path}/out.png", "../out.png"]
    cells = [{"bytes": None, "path": each} for each in out] * 2
    images = pa.array(cells, kept.schema.field("image").type)
    pq.write_table(kept.set_column(0, kept.schema.field("image"), images), path)
    data = load_data(f"hfids/{parquet_stream}")
    (batch,) = make_eval_loader(data.val, EVAL, batch_size=6)
    assert len(batch.labels) == 0
    assert sum("none of the data set's own" in sentence for sentence in batch.bad) == 4
    assert sum("leads out of the data set" in sentence for sentence in batch.bad) == 2


def test_a_stream_needs_a_validation_split(parquet_stream):
    (parquet_stream / "data/validation-00000-of-00001.parquet").unlink()
    with pytest.raises(UserError, match="no validation split, and none can be cut out"):
        load_data(f"hfids/{parquet_stream}")


def test_a_data_set_on_disk_as_a_stream(parquet_stream, tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = datasets.load_dataset(str(parquet_stream), cache_dir=str(tmp_path / "cache"))
    rows.save_to_disk(str(tmp_path / "saved"))
    data = load_data(f"hfids/{tmp_path}/saved")
    assert len(data.train) == 20
    assert sum(len(batch.labels) for batch in batches(data.train, EVAL)) == 19


def test_an_unknown_number_of_images(parquet_stream, monkeypatch):
    datasets = pytest.importorskip("datasets")
    loaded = datasets.load_dataset(str(parquet_stream), streaming=True)
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **options: loaded)
    with pytest.raises(UserError, match="not known how many images the stream somebody/set train"):
        load_data("hfids/somebody/set")
