"""Whether a run that goes on is still the same run: its config, its data, its software."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from cvt.data import DataSplits
from cvt.errors import UserError
from cvt.plain import Range, from_plain
from cvt.train.checkpoints import read_facts
from cvt.train.config import TrainConfig
from cvt.train.machine import software

# What may differ when a run goes on, because it does not change what is computed.
_FREE = (
    "resume",
    "force",
    "device",
    "num_workers",
    "data_dir",
    "download",
    "accum_steps",
    "checkpoint_minutes",
    "keep_checkpoints",
)


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What a run's bits depend on besides its config.

    Args:
        data: For each split its number of pictures and a digest of their names and labels.
        software: Versions of this library and of those that it computes with.
        chunks: How many chunks a batch is dealt out to: processes times accumulation steps.
        teacher: Name and a digest of the network that is learned from; empty where there is none.
    """

    data: dict[str, tuple[int, str]]
    software: dict[str, str]
    chunks: Annotated[int, Range(1, 2**20)]
    teacher: tuple[str, ...] = ()

    @classmethod
    def of(cls, splits: DataSplits, chunks: int, teacher: Sequence[str] = ()) -> "Identity":
        """Looks at the data and the software at hand."""
        named = {"training": splits.train, "validation": splits.val, "test": splits.test}
        return cls(
            data={name: (len(each), each.fingerprint()) for name, each in named.items() if each},
            software={name: found for name, found in software().items() if name != "Python"},
            chunks=chunks,
            teacher=tuple(teacher),
        )

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data for JSON."""
        return {
            **asdict(self),
            "data": {name: list(found) for name, found in self.data.items()},
            "teacher": list(self.teacher),
        }

    def check(self, now: "Identity") -> None:
        """Makes sure that data, teacher and software are those that this run was started with.

        Raises:
            UserError: They are not; the message says what changed.
        """
        changes = []
        for name, (count, digest) in self.data.items():
            new_count, new_digest = now.data.get(name, (0, ""))
            if count != new_count:
                changes.append(f"the {name} split has {new_count} images instead of {count}")
            elif digest != new_digest:
                changes.append(f"names or labels of the {name} images differ")
        if self.teacher != now.teacher:
            old, new = (each.teacher[0] if each.teacher else "none" for each in (self, now))
            other = f"{new} instead of {old}" if new != old else f"{old} with other weights"
            changes.append(f"the teacher is {other}")
        for name, old in self.software.items():
            if now.software.get(name) != old:
                changes.append(f"{name} is {now.software.get(name)} instead of {old}")
        if changes:
            raise UserError(
                f"The run to resume would not be the same: {', '.join(changes)}; put that back, "
                "or go on all the same with --force."
            )


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """What a checkpoint says of its run; `TrainConfig`, `Record`, `Progress` read the rest."""

    config: dict[str, Any]
    identity: Identity
    record: dict[str, Any]
    progress: dict[str, Any]


def read_run_facts(checkpoint: Path) -> RunFacts:
    """Reads what a checkpoint says of its run.

    Raises:
        UserError: It is no checkpoint of a run, or of another version's.
    """
    plain = read_facts(checkpoint)
    names = [each.name for each in fields(RunFacts) if each.name in plain]
    return from_plain(RunFacts, {name: plain[name] for name in names}, f"the facts in {checkpoint}")


def resumed_config(given: TrainConfig, stored: TrainConfig) -> TrainConfig:
    """Returns the stored config with what the caller may change, such as device and workers.

    A field of `given` that has its default counts as not given. With `given.force` all changes
    are taken over.

    Raises:
        UserError: Another field is given and differs, so the run would not be the same.
    """
    return _merged(given, stored, TrainConfig(), "", given.force)


def same_chunks(config: TrainConfig, chunks: int, world_size: int) -> TrainConfig:
    """Returns the config with the accumulation steps that keep a batch's chunks as they were.

    Raises:
        UserError: The number of processes does not allow it.
    """
    if chunks % world_size and not config.force:
        raise UserError(
            f"Got {world_size} processes for a run whose batches have {chunks} chunks, expected a "
            f"divisor of {chunks}; start as many, or go on all the same with --force."
        )
    return replace(config, accum_steps=max(chunks // world_size, 1))


def _merged(given: Any, stored: Any, default: Any, prefix: str, force: bool) -> Any:
    merged = {}
    for each in fields(given):
        new, old, usual = (getattr(one, each.name) for one in (given, stored, default))
        if is_dataclass(new):
            merged[each.name] = _merged(new, old, usual, f"{each.name}.", force)
        elif new in (usual, old):
            merged[each.name] = old
        elif force or each.name in _FREE:
            merged[each.name] = new
        else:
            raise UserError(
                f"Got {prefix}{each.name} {new!r}, but the run to resume was started with "
                f"{old!r}; leave it out, start a new run, or change it all the same with --force."
            )
    return replace(stored, **merged)
