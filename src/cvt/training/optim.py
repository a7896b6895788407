"""timm's optimisers with the reference's weight-decay groups, and a cosine with warm-up."""

from typing import Any

from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch import nn
from torch.optim import Optimizer

from cvt.training.config import OptimConfig

_ARGUMENTS: dict[str, dict[str, Any]] = {
    "adamw": {"fused": True},  # one kernel over all tensors, where there is one a tensor and step
    "sgd": {},
    "lamb": {"max_grad_norm": None},  # clip_grad alone decides
    "muon": {"momentum": 0.95},
}


def make_optimizer(model: nn.Module, config: OptimConfig) -> Optimizer:
    """Returns an optimiser of the parameters that learn; frozen ones are in none of its groups.

    `adamw` has betas 0.9 and 0.999 and eps 1e-8, `sgd` Nesterov momentum, `lamb` AdamW's betas
    and eps 1e-6. `muon` orthogonalises the steps of matrices and kernels and scales them to
    AdamW's size, so that rates are alike; what has one dimension is AdamW's (betas 0.9 and 0.95).
    Biases, norms, class tokens and position tables are not decayed; linear, embedding and depthwise
    kernels are. With `layer_decay` d, the classifier has the learning rate itself and each layer
    before it d times that of the next one: the blocks (the final norm goes with the last), the
    embeddings between the stages, and the stem.

    Source: microsoft/CvT f851e68, lib/optim/build.py and the YAML files' WITHOUT_WD_LIST; layer
    decay: BEiT, arXiv 2106.08254, through timm and the model's `group_matcher`; Muon: Jordan et
    al., kellerjordan.github.io/posts/muon, its scale Liu et al., arXiv 2502.16982.
    """
    opt, layer_decay = config.opt, config.layer_decay
    arguments: dict[str, Any] = {"momentum": config.momentum, **_ARGUMENTS[opt]}
    return create_optimizer_v2(
        model,
        opt=opt,
        lr=config.lr,
        weight_decay=config.weight_decay,
        layer_decay=None if layer_decay == 1 else layer_decay,
        **arguments,
    )


def make_scheduler(
    optimizer: Optimizer, config: OptimConfig, total_updates: int, updates_per_epoch: int
) -> CosineLRScheduler:
    """Returns timm's cosine over the whole run; call `step_update(updates_done)` after an update.

    The rate climbs linearly from a thousandth of the peak, then joins the cosine that began at
    the first update, as the reference's does. It is a pure function of the number of updates, and
    under layer decay each group has its share of it.

    Source: microsoft/CvT f851e68, YAML LR_SCHEDULER. Deviation: steps per update, not per epoch.
    """
    return CosineLRScheduler(
        optimizer,
        t_initial=total_updates,
        lr_min=config.min_lr,
        warmup_t=min(round(config.warmup_epochs * updates_per_epoch), total_updates - 1),
        warmup_lr_init=config.lr / 1000,
        t_in_epochs=False,
    )
