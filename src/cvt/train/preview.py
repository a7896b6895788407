"""What a run would be told, as text, without starting it."""

import os
from collections.abc import Mapping
from typing import Any, cast

import torch

from cvt.data import load_data
from cvt.errors import UserError
from cvt.files import expanded
from cvt.parts.contract import VisionModel
from cvt.plain import write_yaml
from cvt.train.checkpoints import newest
from cvt.train.config import TrainConfig, known
from cvt.train.defaults import derive, measure
from cvt.train.device import choose_device
from cvt.train.identity import read_run_facts, resumed_config
from cvt.train.setup import check_batch, row_changes
from cvt.weights.source import open_weights
from cvt.zoo.create import create_model


def preview(config: TrainConfig) -> str:
    """Returns the config that a run would work with as YAML, derived values included.

    Nothing is written or downloaded but weights to start from. Where data or weights are not at
    hand, a comment says so and the config stands as it was given.

    Raises:
        UserError: The config is wrong, or the run to resume cannot be.
    """
    if config.resume:
        stored = read_run_facts(newest(expanded(config.resume)))
        return write_yaml(resumed_config(config, TrainConfig.from_dict(stored.config)).to_dict())
    device = choose_device(config.device)
    changes = row_changes(config)
    if config.model and not config.weights:
        _check_row(config.model, changes, config.image_size)
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
    config = derive(config, facts, device, start)
    side = known(config.image_size)
    if start is not None:
        start.spec.change(**changes).grids((side, side))
    else:
        _check_row(known(config.model), row_changes(config), side)
    check_batch(config, len(splits.train), int(os.environ.get("WORLD_SIZE", "1")))
    return write_yaml(config.to_dict())


def _check_row(name: str, changes: Mapping[str, Any], side: int | None) -> None:
    """Builds a network as the run would, without memory for it."""
    with torch.device("meta"):
        model = cast("VisionModel", create_model(name, **changes))
    model.spec.grids((side, side) if side else model.spec.img_size)
