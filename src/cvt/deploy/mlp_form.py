"""The inference form of an MLP: dropout gone, the residual handed in."""

from typing import cast

from timm.layers import Mlp
from torch import Tensor, nn

from cvt.deploy.packed_linear import add_linear


class MlpForm(nn.Module):
    """Tokens (..., C) to fc2(act(fc1(tokens))), onto the residual if one is given."""

    def __init__(self, mlp: Mlp) -> None:
        super().__init__()
        self.fc1 = cast("nn.Linear", mlp.fc1)
        self.act: nn.Module = mlp.act
        self.fc2 = cast("nn.Linear", mlp.fc2)

    def forward(self, tokens: Tensor, residual: Tensor | None = None) -> Tensor:
        hidden = self.act(self.fc1(tokens))
        return self.fc2(hidden) if residual is None else add_linear(self.fc2, hidden, residual)
