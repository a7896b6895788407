import math

import pytest
import torch
from torch import nn

from cvt.train.config import OptimConfig
from cvt.train.optim import make_optimizer, make_scheduler
from cvt.zoo.create import create_model

CONFIG = OptimConfig(lr=2e-3, min_lr=1e-5, weight_decay=0.05, warmup_epochs=5.0)


def test_the_learning_rate_is_the_written_out_warm_up_and_cosine():
    updates_per_epoch, epochs = 10, 300
    optimizer = make_optimizer(nn.Linear(2, 2), CONFIG)
    scheduler = make_scheduler(optimizer, CONFIG, epochs, updates_per_epoch)
    for update in [*range(60), 1000, 1500, 2000, 2990, 2999]:
        scheduler.step_update(update)
        if update < 50:
            expected = 2e-6 + (2e-3 - 2e-6) * update / 50
        else:
            cosine = (1 + math.cos(math.pi * update / 3000)) / 2
            expected = 1e-5 + (2e-3 - 1e-5) * cosine
        for group in optimizer.param_groups:
            assert group["lr"] == pytest.approx(expected, rel=1e-9), update
    # the reference's per-epoch table at epochs 5, 150 and 299 (its curve, at the same points)
    for epoch, published in ((5, 1.9986e-3), (150, 1.005e-3), (299, 1.0055e-5)):
        scheduler.step_update(epoch * updates_per_epoch)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(published, rel=1e-4)


def test_the_shortest_run_has_a_learning_rate():
    optimizer = make_optimizer(nn.Linear(2, 2), CONFIG)
    make_scheduler(optimizer, CONFIG, epochs=1, updates_per_epoch=1).step_update(0)
    assert optimizer.param_groups[0]["lr"] == 2e-3


def test_weight_decay_groups_are_the_references():
    with torch.device("meta"):
        model = create_model("cvt_13", pos_embed=["table", "none", "none"])
    groups = make_optimizer(model, CONFIG).param_groups
    assert sorted(group["weight_decay"] for group in groups) == [0.0, 0.05]
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed = {
        names[id(each)] for group in groups if group["weight_decay"] for each in group["params"]
    }
    assert "stages.2.cls_token" not in decayed
    assert "stages.0.pos_embed.table" not in decayed
    assert not any(name.endswith("bias") for name in decayed)
    assert not any("norm" in name or ".bn." in name for name in decayed)
    # 3 embeddings, the head, and per block: 3 depthwise, 3 linear, proj and the MLP's two
    assert len(decayed) == 3 + 1 + 13 * (3 + 3 + 1 + 2)
    assert {"stages.0.embed.proj.weight", "stages.2.blocks.9.attn.q.conv.weight"} <= decayed


def test_it_is_adamw_with_torchs_defaults():
    optimizer = make_optimizer(nn.Linear(2, 2), CONFIG)
    assert type(optimizer) is torch.optim.AdamW
    assert optimizer.defaults["betas"] == (0.9, 0.999)
    assert optimizer.defaults["eps"] == 1e-8
