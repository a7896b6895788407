import pytest
import torch
from torch import nn

from cvt.data import Batch
from cvt.errors import UserError
from cvt.evaluation import Logits, validate

CPU = torch.device("cpu")


class Sees(nn.Module):
    """Answers with the first pixels of an image, and remembers its mode."""

    def forward(self, images):
        self.was_training = self.training
        assert not torch.is_grad_enabled()
        return images[:, 0, 0, :3]


def batch(
    logits: list[list[float]], labels: list[int], bad: tuple[str, ...] = (), start: int = 0
) -> Batch:
    images = torch.tensor(logits).reshape(-1, 1, 1, 3)
    indices = torch.arange(start, start + len(labels))
    return Batch(images, torch.tensor(labels), indices, bad)


def test_answers_come_back_in_order_with_the_bad_ones_named():
    model, sizes = Sees(), []
    batches = [
        batch([[1, 0, 0], [0, 1, 0]], [0, 2]),
        batch([], [], ("a.png is empty",)),
        batch([[0, 0, 1]], [2], ("b.png is empty",), start=3),
    ]
    answers = validate(model, batches, CPU, on_batch=sizes.append)
    assert torch.equal(answers.logits, torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]]))
    assert answers.labels.tolist() == [0, 2, 2]
    assert answers.indices.tolist() == [0, 1, 3]
    assert answers.bad == ("a.png is empty", "b.png is empty")
    assert sizes == [2, 0, 1]
    assert not model.was_training
    assert model.training


def test_nothing_readable_is_an_error():
    with pytest.raises(UserError, match=r"None of the 1 images could be read; the first: a.png"):
        validate(Sees(), [batch([], [], ("a.png is empty",))], CPU)


def test_top_k_and_loss():
    logits = torch.tensor([[3.0, 2, 1, 0], [0, 1, 2, 3], [0, 3, 2, 1], [1, 0, 2, 3]])
    answers = Logits(logits, torch.tensor([0, 2, 0, 0]))
    assert [answers.top_k(k) for k in (1, 2, 3, 4)] == [25, 50, 75, 100]
    expected = -logits.log_softmax(dim=1)[torch.arange(4), answers.labels].mean()
    assert answers.loss() == pytest.approx(expected.item())
