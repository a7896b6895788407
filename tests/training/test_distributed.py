"""Several processes train as one does: to the bit where it says so, else to rounding."""

import shutil
import signal
from dataclasses import replace

import pytest
import torch

from cvt.data import epoch_order, load_data
from cvt.weights.checkpoint import load_checkpoint
from processes import in_processes
from shades import write_shades
from stored import stored_facts
from trained import Event, differences, farthest, session, sessions

TINY_MODEL = {
    "embed_dim": [8, 8, 16],
    "depth": [1, 1, 2],
    "num_heads": [1, 1, 2],
    "embed_stride": [2, 2, 1],
}

STEP = "cvt.training.loop.train_step"
# In the middle of an epoch; of the first, only one process hears.
CUT, CUT_SOON = Event(STEP, 5, rank=1), Event(STEP, 2)


@pytest.fixture(scope="module")
def uneven_folder(tmp_path_factory):
    """Twelve training images, but five and three to measure: two cannot share them evenly."""
    counts = {"train": (6, 6), "val": (3, 2), "test": (1, 2)}
    return write_shades(tmp_path_factory.mktemp("uneven"), counts)


@pytest.fixture(scope="module")
def run_of(tiny_run, uneven_folder):
    """`run_of(out, **changes)`: every kind of randomness, repeated images and an average."""

    def make(out, **changes) -> dict:
        config = tiny_run(out, data=str(uneven_folder), ema_decay=0.9, **changes)
        return {**config, "augment": {**config["augment"], "repeats": 3}}

    return make


@pytest.fixture(scope="module")
def one(run_of, tmp_path_factory):
    """The run of one process that works through each batch in two chunks."""
    config = run_of(tmp_path_factory.mktemp("one"), accum_steps=2)
    return session(config).result


@pytest.fixture(scope="module")
def two(run_of, tmp_path_factory):
    """The same run of two processes: their two results."""
    ended = in_processes(2, session, run_of(tmp_path_factory.mktemp("two")))
    return [each.result for each in ended]


@pytest.fixture(scope="module")
def cut(run_of, tmp_path_factory):
    """The folder of that run of two, stopped in its second epoch."""
    out = tmp_path_factory.mktemp("cut")
    main, other = in_processes(2, session, run_of(out), CUT)
    assert main.error == other.error == "Interrupted"
    assert f"after 2 updates of it. Go on with: cvt train --resume {out}" in main.text
    assert (main.is_told_elsewhere, other.is_told_elsewhere) == (False, True)
    return out


@pytest.fixture
def cut_again(cut, tmp_path):
    """A copy of that folder."""
    return shutil.copytree(cut, tmp_path / "again")


def test_two_processes_are_one_that_accumulates(one, two):
    """To the bit: there are two chunks in a batch, and a sum of two is the same either way."""
    assert differences(one.run, two[0].run) == []
    for each in two:
        assert replace(each, run=one.run, seconds=one.seconds) == one


def test_the_whole_split_is_measured_once(two, uneven_folder, run_of):
    """Five images over two processes: the figures are those of one process that sees them all."""
    from cvt.evaluation import evaluate

    for figures, split in ((two[0].best_top1, "val"), (two[0].test_top1, "test")):
        measured = evaluate(str(two[0].run), str(uneven_folder), split=split, device="cpu")
        assert measured.num_images == {"val": 5, "test": 3}[split]
        assert measured.top1 == pytest.approx(figures, abs=1e-9)
    loss = evaluate(str(two[0].run), str(uneven_folder), split="val", device="cpu").loss
    assert two[0].best_loss == pytest.approx(loss, rel=1e-6)


def test_stopped_in_one_process_and_resumed_is_the_same_run(two, cut_again):
    """Also with other processes loading the images than before."""
    config = {"resume": str(cut_again), "num_workers": 1}
    in_processes(2, session, config)
    assert differences(two[0].run, cut_again) == []


def test_one_process_goes_on_where_two_stopped(two, cut_again):
    ended = session({"resume": str(cut_again)})
    assert ended.result.best_top1 == two[0].best_top1
    assert differences(two[0].run, cut_again) == []


@pytest.fixture(scope="module")
def exact_of(tiny_run):
    """`exact_of(out, **changes)`: SGD, whose updates are as exact as their gradients are.

    AdamW divides by what a gradient usually is, so where that is next to nothing the last bit of
    a sum decides about a whole step.
    """

    def make(out, **changes) -> dict:
        values = {
            "epochs": None,
            "updates": 4,
            "optim": {"opt": "sgd", "lr": 0.1, "warmup_epochs": 0.0, "clip_grad": 1.0},
            **changes,
        }
        return tiny_run(out, **values)

    return make


# Float32 rounds to 6e-8 of a number. Gradients of norm 1 (clipped), summed up in another order,
# differ by a few dozen such roundings, and an update moves weights by 0.1 of them, or 1 at most
# where momentum has piled up ten.
ROUNDING = 1e-5


def test_shares_of_the_model_train_like_the_whole(exact_of, tmp_path):
    """FSDP2 is DDP, to rounding, batch statistics and average included."""
    configs = [
        exact_of(tmp_path / parallel, updates=2, parallel=parallel, ema_decay=0.5)
        for parallel in ("ddp", "fsdp")
    ]
    for ended in in_processes(2, sessions, configs):
        losses = [each.result.best_loss for each in ended]
        assert losses[0] == pytest.approx(losses[1], rel=ROUNDING)
    for kind in ("model.", "ema.", "moments."):
        assert farthest(tmp_path / "ddp", tmp_path / "fsdp", kind) < ROUNDING
    weights = [load_checkpoint(tmp_path / each / "last.safetensors")[0] for each in ("ddp", "fsdp")]
    for name, mine in weights[0].items():
        torch.testing.assert_close(mine, weights[1][name], rtol=0, atol=ROUNDING)
    start = load_checkpoint(tmp_path / "ddp" / "last.safetensors")[0]
    assert max(each.abs().max() for each in start.values()) > 100 * ROUNDING


@pytest.fixture(scope="module")
def broken_folder(tiny_folder, tmp_path_factory):
    """Of the first batch's two chunks of three, one lacks a image; of the second's, all three."""
    root = shutil.copytree(tiny_folder, tmp_path_factory.mktemp("broken") / "data")
    images = load_data(str(root)).train
    order = epoch_order(12, shuffle=True, seed=0, epoch=0)
    first, second = order[:6], order[6:]
    broken = [*first[1::2][:1], *second[1::2]]
    for number in broken:
        (root / "train" / images.name(number).partition("train/")[2]).write_bytes(b"")
    return root, {images.name(number) for number in broken}


def test_the_mean_is_over_the_good_images_whoever_has_them(broken_folder, exact_of, tmp_path):
    """Without batch statistics two processes, two chunks and one big batch are the same."""
    folder, broken = broken_folder
    still = {
        "data": str(folder),
        "batch_size": 6,
        "updates": 2,
        "model_args": {**TINY_MODEL, "projection": "linear"},
        "drop_path_rate": 0.0,
        "mix": {"mixup": 0.0, "cutmix": 0.0, "smoothing": 0.1},
    }
    results = [
        session(exact_of(tmp_path / "whole", **still)).result,
        session(exact_of(tmp_path / "chunks", accum_steps=2, **still)).result,
        *(each.result for each in in_processes(2, session, exact_of(tmp_path / "two", **still))),
    ]
    for result in results:
        assert len(result.bad) == 4
        assert {name for name in broken for sentence in result.bad if name in sentence} == broken
    runs = [result.run for result in results]
    assert differences(runs[1], runs[2]) == []
    assert farthest(runs[0], runs[1], "model.") < ROUNDING
    assert farthest(runs[0], runs[1], "moments.") < ROUNDING
    losses = [stored_facts(run)["progress"]["history"][0]["train_loss"] for run in runs]
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)


@pytest.mark.parametrize("batch_size", [5, 2])
def test_a_batch_that_cannot_be_shared_is_refused_once(batch_size, tiny_run, tmp_path):
    config = tiny_run(tmp_path / "run", batch_size=batch_size)
    main, other = in_processes(2, session, config)
    assert main.error == "UserError"
    assert f"Got batch_size {batch_size} for 2 processes with accum_steps 1" in main.text
    assert "expected a multiple of 2 with two for each; take 4," in main.text
    assert other.text == main.text
    assert (main.is_told_elsewhere, other.is_told_elsewhere) == (False, True)
    assert not (tmp_path / "run").exists()


def test_other_processes_than_the_batches_were_dealt_for(cut_again):
    expected = {False: "expected a divisor of 2; start as many", True: "take 6, which changes"}
    for force, words in expected.items():
        config = {"resume": str(cut_again), "force": force}
        ended = in_processes(3, session, config)
        assert words in ended[0].text
        assert [each.is_told_elsewhere for each in ended] == [False, True, True]


def test_a_process_that_dies_ends_the_others_and_they_go_on(two, run_of, tmp_path):
    """Killed in an update; then the main one as a checkpoint is read, and as one is written."""
    config, resumed = run_of(tmp_path / "run"), {"resume": str(tmp_path / "run")}
    killed = Event(STEP, 4, signal.SIGKILL, rank=1)
    main, _ = in_processes(2, session, config, killed, dies=(1,))
    assert main.error == "UserError"
    assert main.text.startswith("Process 0 of 2 lost touch with another one")
    assert "--resume" in main.text
    for moment in ("load", "save"):
        killed = Event(f"torch.distributed.checkpoint.{moment}", 1, signal.SIGKILL, rank=0)
        _, other = in_processes(2, session, resumed, killed, dies=(0,))
        assert other.text.startswith("Process 1 of 2 lost touch with another one")
        assert not other.is_told_elsewhere
    assert list((tmp_path / "run" / "checkpoints").glob(".*.tmp"))
    in_processes(2, session, resumed)
    assert not list((tmp_path / "run" / "checkpoints").glob(".*.tmp"))
    assert differences(two[0].run, tmp_path / "run") == []


@pytest.mark.slow
def test_shares_of_the_model_resume_to_the_bit(exact_of, tmp_path):
    """FSDP2 stopped and resumed is FSDP2; forced to go on from a run of DDP, it is near that."""
    for parallel in ("ddp", "fsdp"):
        config = exact_of(tmp_path / parallel, parallel=parallel, ema_decay=0.5)
        in_processes(2, session, config)
        in_processes(2, session, {**config, "out": str(tmp_path / f"{parallel} cut")}, CUT_SOON)
    resumed = {"resume": str(tmp_path / "fsdp cut")}
    in_processes(2, session, resumed)
    assert differences(tmp_path / "fsdp", tmp_path / "fsdp cut") == []
    other = {"resume": str(tmp_path / "ddp cut"), "parallel": "fsdp"}
    main, _ = in_processes(2, session, other)
    assert "Got parallel 'fsdp', but the run to resume was started with 'ddp'" in main.text
    in_processes(2, session, {**other, "force": True})
    for kind in ("model.", "ema.", "moments."):
        assert farthest(tmp_path / "ddp", tmp_path / "ddp cut", kind) < ROUNDING
