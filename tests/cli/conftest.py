import pytest
import torch

from cvt.cli.main import Verb, main
from cvt.weights.checkpoint import load_checkpoint, save_checkpoint


@pytest.fixture
def run(capfd):
    """`run("show", "cvt_13")`: exit code, standard output and standard error of one call.

    A function instead is a verb of its own.
    """

    def call(*arguments):
        if callable(arguments[0]):
            code = main(["verb"], {"verb": Verb(arguments[0], "")})
        else:
            code = main([str(argument) for argument in arguments])
        return code, *capfd.readouterr()

    return call


@pytest.fixture
def without_numbers(checkpoint, tmp_path):
    """The checkpoint with a classifier that goes beyond all numbers."""
    tensors, record = load_checkpoint(checkpoint)
    large = torch.full_like(tensors["head.weight"], 3e38)
    path = tmp_path / "large" / "tiny.safetensors"
    save_checkpoint(path, {**tensors, "head.weight": large}, record)
    return path
