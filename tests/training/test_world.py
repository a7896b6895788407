import os
import socket
import time

import pytest
import torch
from torch import distributed as dist

from cvt.errors import UserError
from cvt.runtime import World, is_lost_peer, join_world
from processes import in_processes


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
