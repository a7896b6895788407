"""Processors that the machine need not have."""

import platform

import pytest
import torch


def pretend_cpu(monkeypatch: pytest.MonkeyPatch, *instructions: str) -> None:
    """Lets torch say that the processor is an x86 with these instruction sets and no others."""
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    has = dict.fromkeys(instructions, True)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has, raising=False)
