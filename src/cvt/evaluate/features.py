"""What a frozen model makes of pictures before its classifier sees it."""

from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from cvt.data import ImageSet
from cvt.errors import UserError
from cvt.evaluate.answers import Pace, answers
from cvt.evaluate.model_facts import preprocessing_of
from cvt.parts.contract import VisionModel
from cvt.train.world import World


@dataclass(frozen=True, eq=False)
class Features:
    """The pooled features of the pictures that could be read, N of them.

    Args:
        vectors: float32, shape (N, num_features).
        labels: int64, shape (N,).
        bad: One sentence for each picture that could not be read.
    """

    vectors: np.ndarray
    labels: np.ndarray
    bad: tuple[str, ...] = ()


def extract(network: VisionModel, data: ImageSet, pace: Pace, world: World) -> Features:
    """Returns what the classifier is fed with, in eval mode: BatchNorm stays as it was trained.

    Raises:
        UserError: The model does not pool, or not a single picture could be read.
    """
    if not network.global_pool:
        raise UserError("Got a model without pooling, expected one vector a picture; set a pool.")
    found = answers(_Features(network), data, preprocessing_of(network), pace, world)
    return Features(found.logits.numpy(), found.labels.numpy(), found.bad)


class _Features(nn.Module):
    def __init__(self, network: VisionModel) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        return self.network.forward_head(self.network.forward_features(image), pre_logits=True)
