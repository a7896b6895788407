"""What may happen to a model before it is timed: a table with one entry a form.

The table is read by the command line too, so torch is imported only where a form is made.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
from collections.abc import Iterable

from cvt.errors import UserError, did_you_mean


@dataclass(frozen=True, kw_only=True)
class Wish:
    """In which arithmetic and where a model is to run.

    Args:
        dtype: torch.int8 where the form makes that.
        without: Passes of cvt.deploy that are left out.
        images: For int8, prepared pictures (N, C, H, W) to find ranges with.
    """

    dtype: "torch.dtype"
    device: "torch.device"
    without: tuple[str, ...] = ()
    images: "Tensor | None" = None


@dataclass(frozen=True, kw_only=True)
class Ready:
    """A model that is ready to be called.

    Args:
        call: Images (B, C, H, W) to whatever the model returns.
        dtype: That of the images which it takes.
    """

    call: "Callable[[Tensor], Any]"
    dtype: "torch.dtype"


@dataclass(frozen=True, kw_only=True)
class Form:
    """One entry.

    Args:
        words: What happens to the model, for the notes under the tables.
        infer: Makes a model in eval mode, on its device and in float32, ready for inference. It
            owns the model and may change it.
        train: Returns a model in training mode as it is called in training steps, which run under
            autocast in another dtype than float32; None if the form cannot be trained.
        has_passes: Whether it is made by cvt.deploy: passes can be left out, and it makes int8.
    """

    words: str
    infer: "Callable[[nn.Module, Wish], Ready]"
    train: "Callable[[nn.Module], Callable[[Tensor], Any]] | None" = None
    has_passes: bool = False


def _eager(model: "nn.Module", wish: Wish) -> Ready:
    return Ready(call=model.to(wish.dtype), dtype=wish.dtype)


def _autocast(model: "nn.Module", wish: Wish) -> Ready:
    import torch

    def call(images: "Tensor") -> Any:
        with torch.autocast(wish.device.type, wish.dtype, enabled=wish.dtype != torch.float32):
            return model(images)

    return Ready(call=call, dtype=torch.float32)


def _compiled(graphs: bool) -> "Callable[[nn.Module, Wish], Ready]":
    def make(model: "nn.Module", wish: Wish) -> Ready:
        return Ready(call=_compile(model.to(wish.dtype), graphs), dtype=wish.dtype)

    return make


def _compile(model: "nn.Module", graphs: bool = False) -> "Callable[[Tensor], Any]":
    import torch

    return torch.compile(model, mode="reduce-overhead" if graphs else None)


def _deployed(engine: str) -> "Callable[[nn.Module, Wish], Ready]":
    def make(model: "nn.Module", wish: Wish) -> Ready:
        return Ready(call=_deploy(model, wish, engine), dtype=_dtype_of_images(wish))

    return make


def _deployed_and_compiled(graphs: bool) -> "Callable[[nn.Module, Wish], Ready]":
    def make(model: "nn.Module", wish: Wish) -> Ready:
        # The compiler cannot look into weights that are packed already, and packs its own.
        without = tuple(dict.fromkeys((*wish.without, "pack")))
        deployed = _deploy(model, replace(wish, without=without), "torch")
        return Ready(call=_compile(deployed, graphs), dtype=_dtype_of_images(wish))

    return make


def _dtype_of_images(wish: Wish) -> "torch.dtype":
    import torch

    return torch.float32 if wish.dtype == torch.int8 else wish.dtype


def _deploy(model: "nn.Module", wish: Wish, engine: str) -> "nn.Module":
    import torch

    from cvt.inference.api import deploy

    return deploy(
        model,
        dtype=wish.dtype,
        device=wish.device,
        engine=engine,
        without=wish.without,
        # Other dtypes have no ranges to find, and PyTorch's int8 finds its own as it goes.
        calibration=wish.images if wish.dtype == torch.int8 and engine != "torch" else None,
    )


FORMS: Mapping[str, Form] = {
    "eager": Form(
        words="the model as it is; in inference its weights are cast to the dtype",
        infer=_eager,
        train=lambda model: model,
    ),
    "autocast": Form(
        words="float32 weights under torch.autocast, as training has them in every form",
        infer=_autocast,
        train=lambda model: model,
    ),
    "compile": Form(
        words="torch.compile with its default settings; in inference weights cast to the dtype",
        infer=_compiled(graphs=False),
        train=_compile,
    ),
    "compile-graphs": Form(
        words="torch.compile with CUDA graphs on a GPU (mode reduce-overhead)",
        infer=_compiled(graphs=True),
    ),
    "deploy": Form(words="cvt.deploy, in PyTorch", infer=_deployed("torch"), has_passes=True),
    "deploy-compile": Form(
        words="torch.compile with its default settings over cvt.deploy (but for its pass pack)",
        infer=_deployed_and_compiled(graphs=False),
        has_passes=True,
    ),
    "deploy-compile-graphs": Form(
        words="torch.compile with CUDA graphs on a GPU (mode reduce-overhead) over cvt.deploy (but "
        "for its pass pack)",
        infer=_deployed_and_compiled(graphs=True),
        has_passes=True,
    ),
    "openvino": Form(
        words="cvt.deploy with the engine openvino",
        infer=_deployed("openvino"),
        has_passes=True,
    ),
}


# --- Forms as they are named: `deploy`, `deploy-compile`, `deploy-without-pack-slices`.
#
# The command line reads them too, so nothing heavy is imported until the names of passes are
# needed.

WITHOUT, UP_TO, ALL = "without", "upto", "all"


@dataclass(frozen=True, kw_only=True)
class FormName:
    """A form, and which of cvt.inference's passes it is made with.

    Args:
        form: One of `FORMS`.
        without: Passes that are left out; `("all",)` for every one.
        up_to: The last pass that is applied; empty for no such limit.
    """

    form: str
    without: tuple[str, ...] = ()
    up_to: str = ""

    @property
    def entry(self) -> Form:
        """What is done to a model."""
        return FORMS[self.form]

    @property
    def words(self) -> str:
        """What is done to a model, for the notes under tables."""
        if self.up_to:
            return f"{self.entry.words}, with the passes up to {self.up_to} only"
        if self.without == (ALL,):
            return f"{self.entry.words}, without any of its passes"
        left_out = ", ".join(self.without)
        return f"{self.entry.words}{f', without its passes {left_out}' if left_out else ''}"

    def left_out(self) -> tuple[str, ...]:
        """Returns the passes that are not applied; this imports torch.

        Raises:
            UserError: There is no such pass (the nearest is named).
        """
        from cvt.inference.passes import PASSES

        for name in (*self.without, *([self.up_to] if self.up_to else [])):
            if name not in PASSES and (name, self.without) != (ALL, (ALL,)):
                raise UserError(
                    f"Got the pass {name!r} in a form, expected some of {', '.join(PASSES)}, or "
                    f"{ALL} by itself.{did_you_mean(name, PASSES)}"
                )
        if self.up_to:
            return PASSES[PASSES.index(self.up_to) + 1 :]
        return PASSES if self.without == (ALL,) else self.without


def read_form(text: str) -> FormName | None:
    """Reads `FORM`, `FORM-without-PASS-PASS`, `FORM-without-all` or `FORM-upto-PASS`.

    Passes are not looked up yet: see `FormName.left_out`. None if it is no form at all.
    """
    if text in FORMS:
        return FormName(form=text)
    for name, form in FORMS.items():
        if not form.has_passes:
            continue
        passes = tuple(text.removeprefix(f"{name}-{WITHOUT}-").split("-"))
        if text.startswith(f"{name}-{WITHOUT}-") and all(passes):
            return FormName(form=name, without=passes)
        last = text.removeprefix(f"{name}-{UP_TO}-")
        if text.startswith(f"{name}-{UP_TO}-") and last and "-" not in last:
            return FormName(form=name, up_to=last)
    return None


def named_form(text: str) -> FormName:
    """Reads the name of a form that was checked before."""
    found = read_form(text)
    assert found is not None
    return found


def check_forms(texts: Iterable[str]) -> None:
    """Makes sure that all of them are forms.

    Raises:
        UserError: One is not; the nearest is named.
    """
    for text in texts:
        if read_form(text) is None:
            more = ", ".join(f"{name}-{WITHOUT}-PASS" for name, f in FORMS.items() if f.has_passes)
            raise UserError(
                f"Got form {text!r}, expected one of {', '.join(FORMS)}, or a form without passes "
                f"of cvt.deploy: {more}.{did_you_mean(base_of(text), FORMS)}"
            )


def base_of(text: str) -> str:
    """Returns a form's name without what is said of passes, to look for typing errors in."""
    return text.partition(f"-{WITHOUT}")[0].partition(f"-{UP_TO}")[0]
