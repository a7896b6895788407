import os
import random
import signal
import socket
import threading
import time

import numpy as np
import pytest
import torch
from torch import distributed as dist

from cvt.errors import UserError
from cvt.runtime import (
    World,
    generators_kept,
    is_lost_peer,
    join_world,
    number_format,
    seed_all,
    stop_requests,
)
from processes import in_processes


def test_a_number_format_has_one_name_and_is_found_by_others():
    for name in ("bf16", "bfloat16", "torch.bfloat16", torch.bfloat16):
        assert number_format(name) == "bf16"
    assert [number_format(name) for name in ("fp32", torch.int8, "half")] == [
        "float32",
        "int8",
        "fp16",
    ]
    assert number_format("auto", ("auto", "float32")) == "auto"
    with pytest.raises(UserError, match=r"Got --dtype 'bflaot16', expected one of float32, bf16"):
        number_format("bflaot16", ("float32", "bf16"), "--dtype")
    with pytest.raises(UserError, match="Got dtype 'int8', expected one of float32, bf16"):
        number_format(torch.int8, ("float32", "bf16"))


@pytest.mark.parametrize("variables", [{}, {"RANK": "0"}], ids=["none", "half of it"])
def test_alone_nothing_is_joined_and_everything_is_its_own(variables, monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with join_world("cpu") as world:
        assert world == World(rank=0, size=1, local_rank=0, is_restarted=False)
        assert world.is_main
        assert not dist.is_initialized()
        numbers = torch.tensor([1.0, 2.0])
        assert world.sum(numbers) is numbers
        value = object()
        assert world.from_main(value) is value
        assert world.gather(value) == [value]
        assert world.on_main(lambda: value) is value
        assert world.in_turn(lambda: value) is value
        world.wait()
        mistake = UserError("Got it wrong.")
        for share in (world.on_main, world.in_turn):
            with pytest.raises(UserError) as raised:
                share(lambda: _raise(mistake))
            assert raised.value is mistake
            assert not raised.value.is_told_elsewhere


def _raise(error: BaseException):
    raise error


def talk(folder):
    """What a process of three hears from the others, and in which order they work."""
    heard = {}
    with join_world("cpu") as world:
        heard["world"] = (world.rank, world.size, world.local_rank, world.is_restarted)
        heard["sum"] = world.sum(torch.tensor([1.0, world.rank])).tolist()
        heard["gather"] = world.gather(f"from {world.rank}")
        heard["from main"] = world.from_main({"rank": world.rank})
        heard["on main"] = world.on_main(lambda: f"worked in {world.rank}")
        heard["in turn"] = world.in_turn(lambda: _names_seen(folder, world))
        world.wait()
        heard["none"] = world.on_main(lambda: None)
        with join_world("cpu") as again:
            heard["again"] = again.gather(again.rank)
        heard["still there"] = dist.is_initialized()
    heard["left"] = dist.is_initialized()
    return heard


def _names_seen(folder, world):
    if world.is_main:
        time.sleep(0.2)  # the others would be here first
    names = sorted(os.listdir(folder))
    (folder / str(world.rank)).touch()
    return names


def test_processes_hear_from_each_other(tmp_path):
    heard = in_processes(3, talk, tmp_path)
    assert [each["world"] for each in heard] == [(rank, 3, rank, False) for rank in range(3)]
    for each in heard:
        assert each["sum"] == [3.0, 3.0]
        assert each["gather"] == ["from 0", "from 1", "from 2"]
        assert each["from main"] == {"rank": 0}
        assert each["on main"] == "worked in 0"
        assert each["none"] is None
        assert each["again"] == [0, 1, 2]
        assert (each["still there"], each["left"]) == (True, False)
    assert heard[0]["in turn"] == []
    assert all("0" in each["in turn"] for each in heard[1:])


def err():
    """What a process of two gets to hear of mistakes in the one, the other, or both of them."""
    heard = []
    with join_world("cpu") as world:
        for share in (world.on_main, world.in_turn):
            for wrong in ([0], [1], [0, 1]):
                heard.append(_complaint(share, world, wrong))
        heard.append(world.is_restarted)
    return heard


def _complaint(share, world, wrong):
    def work():
        if world.rank in wrong:
            raise UserError(f"Process {world.rank} got it wrong.")
        return "well"

    try:
        return share(work)
    except UserError as error:
        return str(error), error.is_told_elsewhere


def test_a_mistake_of_one_is_everyones_and_told_once():
    mains, others = in_processes(2, err, TORCHELASTIC_RESTART_COUNT="1")
    told, heard = (
        [(f"Process {rank} got it wrong.", is_told_elsewhere) for rank in range(2)]
        for is_told_elsewhere in (False, True)
    )
    # on_main: only what the main process does can go wrong.
    assert mains == [told[0], "well", told[0], told[0], heard[1], told[0], True]
    assert others == [heard[0], "well", heard[0], heard[0], told[1], heard[0], True]


def test_processes_that_do_not_find_each_other_are_told_what_to_do(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and never listens
        port = taken.getsockname()[1]
        for name, value in {
            "RANK": "0",
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }.items():
            monkeypatch.setenv(name, value)
        with (
            pytest.raises(UserError, match=r"processes do not find each other \(.+\); start them"),
            join_world("cpu"),
        ):
            pass
    monkeypatch.delenv("MASTER_ADDR")
    with pytest.raises(UserError, match=r"environment variable MASTER_ADDR"), join_world("cpu"):
        pass


def test_what_a_lost_process_looks_like():
    assert is_lost_peer(dist.DistBackendError("NCCL communicator was aborted"))
    assert is_lost_peer(RuntimeError("[gloo/transport/tcp/pair.cc:561] Connection closed by peer"))
    assert not is_lost_peer(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_lost_peer(ValueError("Connection closed by peer"))


@pytest.mark.parametrize("which", [signal.SIGINT, signal.SIGTERM])
def test_the_first_request_waits_and_the_second_does_not(which):
    before = signal.getsignal(which)
    with stop_requests() as stop:
        assert not stop.is_set
        os.kill(os.getpid(), which)
        assert stop.is_set
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), which)
    assert signal.getsignal(which) is before


def test_other_threads_work_without_signals():
    seen = []

    def work():
        with stop_requests() as stop:
            seen.append(stop.is_set)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]


# --- Seeds: a function of the key alone, the same on every machine, unlike for unlike keys.


def draws(*key):
    seed_all(*key)
    return random.random(), float(np.random.rand()), float(torch.rand(1, dtype=torch.float64))


def test_these_draws_never_change():
    """A run that is resumed with a newer version goes on with the same numbers."""
    assert draws(0, 1, 2) == pytest.approx(
        (0.21177582726470057, 0.2672475281045621, 0.7863622804534456), abs=1e-15
    )


def test_the_kind_of_number_does_not_matter():
    assert draws(3, 2**40, 5) == draws(np.int64(3), 2**40, np.int32(5))


def test_keys_are_told_apart():
    keys = [(a, b, c) for a in range(4) for b in range(4) for c in range(40)]
    keys += [(1,), (1, 1), (11,), (0, 11), (2**64,), (2**64 + 1,)]
    seen = np.array([draws(*key) for key in keys])
    for column in seen.T:
        assert len(set(column)) == len(keys)
        assert 0.45 < column.mean() < 0.55
    neighbours = np.corrcoef(seen[:639].ravel(), seen[1:640].ravel())[0, 1]
    between = np.corrcoef(seen.T)[np.triu_indices(3, 1)]
    assert abs(neighbours) < 0.1
    assert (abs(between) < 0.13).all()


def draw_and_fail():
    seed_all(8)
    random.gauss(0, 1)  # Python's generator keeps a second number from this
    np.random.standard_normal()
    raise RuntimeError("broken")


def test_generators_go_back_even_after_an_error():
    seed_all(7)
    expected = random.random(), np.random.rand(), torch.rand(3)
    seed_all(7)
    with pytest.raises(RuntimeError, match="broken"), generators_kept():
        draw_and_fail()
    got = random.random(), np.random.rand(), torch.rand(3)
    assert got[:2] == expected[:2]
    assert torch.equal(got[2], expected[2])
