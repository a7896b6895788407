import pytest
import torch

from cvt.errors import UserError
from cvt.runtime import number_format


def test_a_number_format_has_one_name_and_is_found_by_others():
    for name in ("bf16", "bfloat16", "torch.bfloat16", torch.bfloat16):
        assert number_format(name) == "bf16"
    assert [number_format(name) for name in ("fp32", torch.int8, "half")] == [
        "float32",
        "int8",
        "fp16",
    ]
    assert number_format("auto", ("auto", "float32")) == "auto"
    with pytest.raises(UserError, match=r"Got --dtype 'bflaot16', expected one of float32, bf16"):
        number_format("bflaot16", ("float32", "bf16"), "--dtype")
    with pytest.raises(UserError, match="Got dtype 'int8', expected one of float32, bf16"):
        number_format(torch.int8, ("float32", "bf16"))
