"""What a run's newest checkpoint holds, for tests to compare."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from cvt.training.checkpoints import newest, read_facts


def stored_tensors(run: Path) -> dict[str, Tensor]:
    """Returns all tensors by their path, such as `moments.head.weight.exp_avg`."""
    file = Path(run) / "all.pt"
    dcp_to_torch_save(newest(Path(run)), file)
    state = torch.load(file, weights_only=True)
    file.unlink()
    return dict(_flat("", state))


def stored_facts(run: Path) -> dict[str, Any]:
    """Returns config, progress and the other plain facts."""
    return read_facts(newest(Path(run)))


def _flat(prefix: str, value: Any):
    if isinstance(value, Tensor):
        yield prefix, value
    else:
        for name, item in value.items():
            yield from _flat(f"{prefix}.{name}".lstrip("."), item)
