"""AdamW with the reference's weight-decay groups, and a cosine with warm-up at every update."""

from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch import nn
from torch.optim import Optimizer

from cvt.train.config import OptimConfig, known


def make_optimizer(model: nn.Module, config: OptimConfig) -> Optimizer:
    """Returns AdamW (betas 0.9 and 0.999, eps 1e-8) over two groups of parameters.

    Biases, norms, class tokens and position tables are not decayed; linear, embedding and
    depthwise kernels are.

    Source: microsoft/CvT f851e68, lib/optim/build.py and the YAML files' WITHOUT_WD_LIST.
    """
    return create_optimizer_v2(
        model,
        opt="adamw",
        lr=known(config.lr),
        weight_decay=known(config.weight_decay),
        fused=True,  # one kernel over all tensors, where there is one a tensor and operation
    )


def make_scheduler(
    optimizer: Optimizer, config: OptimConfig, epochs: int, updates_per_epoch: int
) -> CosineLRScheduler:
    """Returns timm's cosine over the whole run; call `step_update(updates_done)` after an update.

    The rate climbs linearly from a thousandth of the peak, then joins the cosine that began at
    the first update, as the reference's does. It is a pure function of the number of updates.

    Source: microsoft/CvT f851e68, YAML LR_SCHEDULER. Deviation: steps per update, not per epoch.
    """
    updates = epochs * updates_per_epoch
    return CosineLRScheduler(
        optimizer,
        t_initial=updates,
        lr_min=known(config.min_lr),
        warmup_t=min(round(known(config.warmup_epochs) * updates_per_epoch), updates - 1),
        warmup_lr_init=known(config.lr) / 1000,
        t_in_epochs=False,
    )
