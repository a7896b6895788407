"""A process of its own for each piece of work: `python -P -m cvt.bench.worker TASK INPUT OUTPUT`.

Peak memory is then that of one run, and a crash takes nothing else along. The process ends itself,
saving its state, when its standard input closes: so also when whoever started it was killed.
"""

import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cvt.errors import UserError
from cvt.plain import read_yaml

STOPPED = 130


def main(arguments: Sequence[str]) -> int:
    """Does a task; returns 0, 2 with a sentence on stderr, or 130 if it was asked to stop."""
    task, source, target = arguments
    # A shell's background jobs are started deaf to it, and what they start as well.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=_watch, args=(sys.stdin.fileno(),), daemon=True).start()
    try:
        answer = TASKS[task](read_yaml(Path(source).read_text(encoding="utf-8")))
    except UserError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return STOPPED
    Path(target).write_text(json.dumps(answer), encoding="utf-8")
    return 0


def _watch(handle: int) -> None:
    """Waits until nobody holds the other end, and then does what Ctrl-C does."""
    while os.read(handle, 1):
        pass
    os.kill(os.getpid(), signal.SIGINT)


def _train(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Trains, or goes on with a run that was begun; the run's folder says the rest."""
    from cvt.train.config import TrainConfig
    from cvt.train.interrupt import Interrupted
    from cvt.train.loop import train
    from cvt.train.run_folder import CONFIG_FILE

    config = TrainConfig.from_dict(plain)
    run = Path(str(config.out))
    if (run / CONFIG_FILE).exists():
        config = TrainConfig(
            resume=str(run),
            device=config.device,
            num_workers=config.num_workers,
            data_dir=config.data_dir,
        )
    try:
        train(config, progress=False)
    except Interrupted:
        raise KeyboardInterrupt from None
    return {}


def _pace(plain: Mapping[str, Any]) -> dict[str, Any]:
    from cvt.bench.pace import seconds_per_update
    from cvt.train.config import TrainConfig

    return {"seconds_per_update": seconds_per_update(TrainConfig.from_dict(plain))}


def _speed(plain: Mapping[str, Any]) -> dict[str, Any]:
    from cvt.bench.speed import images_per_s

    return images_per_s(**plain)


def _bench_facts(plain: Mapping[str, Any]) -> dict[str, Any]:
    from cvt.bench.speed_facts import find_facts

    return find_facts(**plain)


def _bench(plain: Mapping[str, Any]) -> dict[str, Any]:
    from cvt.bench.speed_measure import die_first, measure

    die_first()
    return measure(**plain)


TASKS: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "train": _train,
    "pace": _pace,
    "speed": _speed,
    "bench_facts": _bench_facts,
    "bench": _bench,
}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
