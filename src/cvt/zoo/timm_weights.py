"""Trained networks of timm's: built, or a sentence that says why that cannot be."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from cvt.errors import UserError
from cvt.weights.hub import is_out_of_reach


def build_trained(
    name: str, build: Callable[..., nn.Module], changes: Mapping[str, Any]
) -> nn.Module:
    """Calls `build(pretrained=True, **changes)` for a network whose weights timm downloads.

    Args:
        name: timm's.

    Raises:
        UserError: The weights are not in the cache and cannot be downloaded, or timm cannot build
            the network with these changes.
    """
    import timm
    from huggingface_hub.errors import HTTPError

    config = timm.get_pretrained_cfg(name)
    if config is not None and config.hf_hub_id and is_out_of_reach(config.hf_hub_id):
        raise _not_at_hand(name)  # asked once, instead of the minute that timm's retries take
    try:
        return build(pretrained=True, **changes)
    except (OSError, HTTPError) as error:  # being offline is an OSError too
        raise _not_at_hand(name) from error
    except (TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise UserError(f"timm cannot build {name!r} with {dict(changes)}: {reason}.") from error


def _not_at_hand(name: str) -> UserError:
    return UserError(
        f"Cannot get timm's weights of {name!r}: they are not in the cache and cannot be "
        "downloaded now; go online, or give the path of weights that you have."
    )
