"""Forms as they are named: `deploy`, `deploy-compile`, `deploy-without-pack-slices`.

The command line reads them too, so nothing heavy is imported until the names of passes are needed.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from cvt.bench.speed_forms import FORMS, Form
from cvt.errors import UserError, did_you_mean

WITHOUT, UP_TO, ALL = "without", "upto", "all"


@dataclass(frozen=True, kw_only=True)
class FormName:
    """A form, and which of cvt.deploy's passes it is made with.

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
        from cvt.deploy.passes import PASSES

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
