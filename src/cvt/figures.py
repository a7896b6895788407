"""Drawing: the one place that makes plots, so that any name can stand in them.

Names of classes, data and runs are other people's. In a plot they read as they do in a table: `$`
starts no formula, controls are escaped, and letters that no installed font has stop nothing.
"""

import warnings
from collections.abc import Generator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from cvt.errors import UserError, remark, shown
from cvt.files import atomic_path

_LATIN = "DejaVu Sans"  # comes with matplotlib
_WIDE = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC", "Noto Sans JP", "Source Han Sans",
    "WenQuanYi Zen Hei", "WenQuanYi Micro Hei", "Droid Sans Fallback", "Microsoft YaHei", "SimHei",
    "PingFang SC", "Hiragino Sans", "Yu Gothic", "MS Gothic", "IPAexGothic", "Malgun Gothic",
    "NanumGothic", "Noto Sans Arabic", "Noto Sans Devanagari", "Noto Sans Thai", "Noto Emoji",
    "Arial Unicode MS", "Unifont",
)  # fmt: skip
_FAILURES = (ValueError, TypeError, RuntimeError, ArithmeticError, LookupError, MemoryError)


@contextmanager
def drawing(path: Path, *, dpi: int = 150, **options: Any) -> Generator[Any]:
    """Yields an empty matplotlib figure to draw on, and writes it once the block has ended well.

    Args:
        path: Its suffix is the format; without one it is PNG.
        options: What `matplotlib.figure.Figure` takes.
    """
    import matplotlib
    from matplotlib.figure import Figure

    plain: Any = {"text.parse_math": False, "text.usetex": False, "font.family": _families()}
    try:
        with matplotlib.rc_context(plain), _fonts_remarked():
            figure = Figure(dpi=dpi, **options)
            yield figure
            with atomic_path(path) as temporary:
                figure.savefig(temporary, format=path.suffix.lstrip(".") or "png", dpi=dpi)
    except UserError:
        raise
    except _FAILURES as error:
        raise UserError(f"Cannot draw {path}: {error}.") from error


@contextmanager
def if_possible() -> Generator[None]:
    """Surrounds drawing that is no more than an extra: should it fail, a remark says why."""
    try:
        yield
    except UserError as error:
        remark(f"There is no plot: {error}")


def words(text: object, most: int = 60) -> str:
    """Returns a name as it is drawn: on one line, and no longer than so many characters.

    Of a longer one the end stays as well: long names often differ there.
    """
    text = shown(text)
    tail = (most - 1) // 3
    return text if len(text) <= most else f"{text[: most - 1 - tail]}…{text[len(text) - tail :]}"


@cache
def _families() -> list[str]:
    """The fonts to look for a letter in, one after the other, of those that are installed."""
    from matplotlib.font_manager import fontManager

    installed = {each.name for each in fontManager.ttflist}
    return [_LATIN, *(name for name in _WIDE if name in installed)]


@contextmanager
def _fonts_remarked() -> Generator[None]:
    """Turns matplotlib's warnings of single glyphs into one remark; leaves other warnings alone."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.filterwarnings("always", message="Glyph .* missing from")
        warnings.filterwarnings("ignore", message=".*layout not applied")  # for want of room
        yield
    missing = [each for each in caught if str(each.message).startswith("Glyph ")]
    for each in caught:
        if each not in missing:
            warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)
    if missing:
        remark(
            "Some letters of names are drawn as boxes in plots, as no font here has them; install "
            "one that does, such as Noto Sans CJK."
        )
