"""Keeping parts of a network as they are: BatchNorm, or all but the classifier."""

from typing import Literal, cast

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from cvt.parts.contract import VisionModel

Mode = Literal["none", "bn", "backbone"]


def freeze(model: nn.Module, mode: Mode) -> None:
    """Takes the gradient from what is to stay as it is; twice does what once does.

    Call it before optimisers are made, and `set_train_mode` instead of `model.train()` after it.

    Args:
        mode: `none` leaves the model alone; `bn` keeps every BatchNorm's statistics, scale and
            shift; `backbone` keeps all but the classifier, as linear probing does.
    """
    if mode == "bn":
        for module in _batch_norms(model):
            module.requires_grad_(False)
    elif mode == "backbone":
        model.requires_grad_(False)
        classifier = cast("VisionModel", model).get_classifier()
        for each in classifier if isinstance(classifier, tuple) else (classifier,):
            each.requires_grad_(True)


def set_train_mode(network: nn.Module, mode: Mode) -> None:
    """Puts a network into training mode, but what `freeze` froze into evaluation mode.

    So BatchNorm's statistics stay where they are, and frozen layers drop nothing out.

    Args:
        network: A model that went through `freeze`, or what wraps it.
    """
    network.train(mode != "backbone")
    if mode == "bn":
        for module in _batch_norms(network):
            module.eval()
    elif mode == "backbone":
        for module in network.modules():
            if any(each.requires_grad for each in module.parameters(recurse=False)):
                module.train()
            elif getattr(module, "distilled_training", False):
                module.training = True  # the flag alone: that both classifiers' logits come out


def _batch_norms(network: nn.Module) -> list[nn.Module]:
    return [module for module in network.modules() if isinstance(module, _BatchNorm)]
