"""What may happen to a model before it is timed: a table with one entry a form, and their names.

The command line reads the table too, so torch is imported only where a form is made.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from cvt.errors import UserError, did_you_mean

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

ALL = "all"


@dataclass(frozen=True, kw_only=True)
class Wish:
    """In which arithmetic and where a model is to run, `without` some passes of cvt.deploy.

    Args:
        images: For int8, prepared images (N, C, H, W) to find ranges with.
    """

    dtype: "torch.dtype"
    device: "torch.device"
    without: tuple[str, ...] = ()
    images: "Tensor | None" = None


@dataclass(frozen=True, kw_only=True)
class Ready:
    """A model that is ready to be called with images (B, C, H, W) of a dtype."""

    call: "Callable[[Tensor], Any]"
    dtype: "torch.dtype"


@dataclass(frozen=True, kw_only=True)
class Form:
    """What happens to a model.

    Args:
        does: That in words, for the notes under the tables.
        infer: Makes a model in eval mode, on its device and in float32, ready for inference. It
            owns the model and may change it.
        train: Returns a model in training mode as it is called in training steps, which run under
            autocast in another dtype than float32; None if the form cannot be trained.
        has_passes: Whether it is made by cvt.deploy: passes can be left out, and it makes int8.
        without: Passes that are left out; `("all",)` for every one.
        up_to: The last pass that is applied; empty for no such limit.
    """

    does: str
    infer: "Callable[[nn.Module, Wish], Ready]"
    train: "Callable[[nn.Module], Callable[[Tensor], Any]] | None" = None
    has_passes: bool = False
    without: tuple[str, ...] = ()
    up_to: str = ""

    @property
    def words(self) -> str:
        """What happens, its passes included."""
        if self.up_to:
            return f"{self.does}, with the passes up to {self.up_to} only"
        if self.without == (ALL,):
            return f"{self.does}, without any of its passes"
        if self.without:
            return f"{self.does}, without its passes {', '.join(self.without)}"
        return self.does

    def left_out(self) -> tuple[str, ...]:
        """Returns the passes that are not applied, each of which there has to be."""
        from cvt.inference import PASSES

        for name in filter(None, (*self.without, self.up_to)):
            if name not in PASSES and (name, self.without) != (ALL, (ALL,)):
                raise UserError(
                    f"Got the pass {name!r} in a form, expected some of {', '.join(PASSES)}, or "
                    f"{ALL} by itself.{did_you_mean(name, PASSES)}"
                )
        if self.up_to:
            return PASSES[PASSES.index(self.up_to) + 1 :]
        return PASSES if self.without == (ALL,) else self.without


# --- How models are made ready.


def _eager(model: "nn.Module", wish: Wish) -> Ready:
    return Ready(call=model.to(wish.dtype), dtype=wish.dtype)


def _autocast(model: "nn.Module", wish: Wish) -> Ready:
    import torch

    def call(images: "Tensor") -> Any:
        with torch.autocast(wish.device.type, wish.dtype, enabled=wish.dtype != torch.float32):
            return model(images)

    return Ready(call=call, dtype=torch.float32)


def _compile(model: "Callable[[Tensor], Any]", graphs: bool = False) -> "Callable[[Tensor], Any]":
    import torch

    return torch.compile(model, mode="reduce-overhead" if graphs else None)


def _compiled(model: "nn.Module", wish: Wish, graphs: bool = False) -> Ready:
    return Ready(call=_compile(model.to(wish.dtype), graphs), dtype=wish.dtype)


def _deployed_and_compiled(model: "nn.Module", wish: Wish, graphs: bool = False) -> Ready:
    # The compiler cannot look into weights that are packed already, and packs its own.
    without = tuple(dict.fromkeys((*wish.without, "pack")))
    deployed = _deployed(model, replace(wish, without=without))
    return replace(deployed, call=_compile(deployed.call, graphs))


def _deployed(model: "nn.Module", wish: Wish, engine: str = "torch") -> Ready:
    import torch

    from cvt.inference import deploy

    is_int8 = wish.dtype == torch.int8
    deployed = deploy(
        model,
        dtype=wish.dtype,
        device=wish.device,
        engine=engine,
        without=wish.without,
        # Other dtypes have no ranges to find, and PyTorch's int8 finds its own as it goes.
        calibration=wish.images if is_int8 and engine != "torch" else None,
    )
    return Ready(call=deployed, dtype=torch.float32 if is_int8 else wish.dtype)


FORMS: Mapping[str, Form] = {
    "eager": Form(
        does="the model as it is; in inference its weights are cast to the dtype",
        infer=_eager,
        train=lambda model: model,
    ),
    "autocast": Form(
        does="float32 weights under torch.autocast, as training has them in every form",
        infer=_autocast,
        train=lambda model: model,
    ),
    "compile": Form(
        does="torch.compile with its default settings; in inference weights cast to the dtype",
        infer=_compiled,
        train=_compile,
    ),
    "compile-graphs": Form(
        does="torch.compile with CUDA graphs on a GPU (mode reduce-overhead)",
        infer=partial(_compiled, graphs=True),
    ),
    "deploy": Form(does="cvt.deploy, in PyTorch", infer=_deployed, has_passes=True),
    "deploy-compile": Form(
        does="torch.compile with its default settings over cvt.deploy (but for its pass pack)",
        infer=_deployed_and_compiled,
        has_passes=True,
    ),
    "deploy-compile-graphs": Form(
        does="torch.compile with CUDA graphs on a GPU (mode reduce-overhead) over cvt.deploy (but "
        "for its pass pack)",
        infer=partial(_deployed_and_compiled, graphs=True),
        has_passes=True,
    ),
    "openvino": Form(
        does="cvt.deploy with the engine openvino",
        infer=partial(_deployed, engine="openvino"),
        has_passes=True,
    ),
}

# --- Forms as they are named.

_WITHOUT, _UP_TO = "-without-", "-upto-"


def find_form(text: str) -> Form | None:
    """Returns `FORM`, `FORM-without-PASS-PASS`, `FORM-without-all` or `FORM-upto-PASS`.

    None if it is no form at all. Passes are not looked up yet: see `Form.left_out`.
    """
    if text in FORMS:
        return FORMS[text]
    for mark in (_WITHOUT, _UP_TO):
        name, _, rest = text.partition(mark)
        form, passes = FORMS.get(name), tuple(rest.split("-"))
        if form is not None and form.has_passes and all(passes):
            if mark == _WITHOUT:
                return replace(form, without=passes)
            if len(passes) == 1:
                return replace(form, up_to=rest)
    return None


def read_form(text: str) -> Form:
    """Returns what `find_form` finds, and refuses what is no form."""
    form = find_form(text)
    if form is None:
        more = ", ".join(f"{name}{_WITHOUT}PASS" for name, f in FORMS.items() if f.has_passes)
        raise UserError(
            f"Got form {text!r}, expected one of {', '.join(FORMS)}, or a form without passes "
            f"of cvt.deploy: {more}.{did_you_mean(base_of(text), FORMS)}"
        )
    return form


def base_of(text: str) -> str:
    """Returns a form's name without what is said of passes, to look for typing errors in."""
    return text.partition("-without")[0].partition("-upto")[0]


def forms_that(can: "Callable[[Form], object]") -> str:
    """Returns the names of some forms, for a message."""
    return ", ".join(name for name, form in FORMS.items() if can(form))
