"""What a run would be told, as text, without starting it."""

from pathlib import Path

from cvt.data import load_data
from cvt.errors import UserError
from cvt.plain import write_yaml
from cvt.train.checkpoints import newest
from cvt.train.config import TrainConfig
from cvt.train.defaults import derive, measure
from cvt.train.device import choose_device
from cvt.train.identity import read_run_facts, resumed_config
from cvt.weights.source import open_weights


def preview(config: TrainConfig) -> str:
    """Returns the config that a run would work with as YAML, derived values included.

    Nothing is written or downloaded but weights to start from. Where data or weights are not at
    hand, a comment says so and the config stands as it was given.

    Raises:
        UserError: The config is wrong, or the run to resume cannot be.
    """
    if config.resume:
        stored = read_run_facts(newest(Path(config.resume).expanduser()))
        return write_yaml(resumed_config(config, TrainConfig.from_dict(stored.config)).to_dict())
    device = choose_device(config.device)
    try:
        splits = load_data(
            config.data,
            data_dir=config.data_dir,
            val_fraction=config.val_fraction,
            seed=config.seed,
        )
        facts = measure(splits)
        start = open_weights(config.weights)[1] if config.weights else None
    except UserError as error:
        why = " ".join(str(error).split())
        return f"# Not derived, null stands for what will be: {why}\n" + write_yaml(
            config.to_dict()
        )
    return write_yaml(derive(config, facts, device, start).to_dict())
