"""Which output of a model stands for which class of some data."""

from collections.abc import Sequence

import torch
from torch import Tensor

from cvt.errors import UserError


def matched_labels(data: Sequence[str], model: Sequence[str] | None, num_outputs: int) -> Tensor:
    """Returns, for each class of the data, its position among the model's outputs: int64, (N,).

    The same names in another order are matched by name. Names that have nothing in common, as
    words and WordNet numbers, or names that the model does not know, are matched by position.

    Raises:
        UserError: The numbers of classes differ, or only some of the names are the same.
    """
    if len(data) != num_outputs:
        raise UserError(
            f"Got data with {len(data)} classes for a model with {num_outputs} outputs; "
            "give data with the classes that the model was trained on."
        )
    if model is None or set(data).isdisjoint(model):
        return torch.arange(num_outputs)
    missing = [name for name in data if name not in model]
    if missing:
        raise UserError(
            f"Got data with the class {missing[0]!r}, which the model does not have "
            f"({len(missing)} of {len(data)} are missing); rename the classes as in training."
        )
    position = {name: index for index, name in enumerate(model)}
    return torch.tensor([position[name] for name in data])
