"""Fetching a repository of the Hugging Face hub, from its cache where the hub is out of reach."""

from pathlib import Path

from cvt.errors import UserError
from cvt.weights.hugging_face import INDEX_FILES, PREPROCESSOR_FILE, WEIGHT_FILES, shard_files

_TIMEOUT_S = 5


def fetch(repo_id: str) -> Path:
    """Returns a local folder with a hub repository's configuration and weights.

    Asks once whether the hub can be reached, instead of the half minute of retries that a
    download spends on it, and falls back to what an earlier download left in the cache.

    Raises:
        UserError: Offline and not in the cache; no such repository, or no weights in it.
    """
    online = _reachable()
    config = _file(repo_id, "config.json", online)
    _file(repo_id, PREPROCESSOR_FILE, online)
    if config and any(_weights(repo_id, name, online) for name in (*WEIGHT_FILES, *INDEX_FILES)):
        return config.parent
    if online:
        raise UserError(
            f"The hub repository {repo_id!r} has no config.json or none of "
            f"{', '.join((*WEIGHT_FILES, *INDEX_FILES))}, expected a model of transformers or timm."
        )
    raise _out_of_reach(repo_id)


def is_out_of_reach(repo_id: str) -> bool:
    """Whether the hub cannot be reached and its cache has no weights of a repository."""
    return not _reachable() and not any(_file(repo_id, name, False) for name in WEIGHT_FILES)


def _weights(repo_id: str, name: str, online: bool) -> bool:
    """Fetches the weights in one file, or those in all that an index names."""
    path = _file(repo_id, name, online)
    if path is None or name not in INDEX_FILES:
        return path is not None
    files = dict.fromkeys(shard_files(path).values())
    missing = [each for each in files if _file(repo_id, each, online) is None]
    if missing and online:
        raise UserError(f"The hub repository {repo_id!r} lacks {missing[0]}, which {name} names.")
    return not missing


def _reachable() -> bool:
    from huggingface_hub import constants, get_session
    from huggingface_hub.errors import HTTPError

    try:
        get_session().head(constants.ENDPOINT, timeout=_TIMEOUT_S)
    except (OSError, HTTPError):  # offline mode set by the user is an OSError as well
        return False
    return True


def _file(repo_id: str, name: str, online: bool) -> Path | None:
    """Downloads one file, or finds it in the cache; None if there is no such file."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HFValidationError,
        HTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        return Path(hf_hub_download(repo_id, name, local_files_only=not online))
    except LocalEntryNotFoundError as error:
        if online:  # the hub's front page answers, its files don't
            raise _out_of_reach(repo_id) from error
        return None
    except EntryNotFoundError:
        return None
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise UserError(
            f"There is no file or folder {repo_id!r} here, and the Hugging Face hub, which was "
            "asked for it, has no repository of that name that you can read; check the path, or "
            "the hub's OWNER/NAME."
        ) from error
    except (OSError, HTTPError) as error:
        first_line = str(error).strip().partition("\n")[0]
        raise UserError(f"Downloading {name} of {repo_id!r} failed: {first_line}") from error


def _out_of_reach(repo_id: str) -> UserError:
    return UserError(
        f"Cannot get {repo_id!r}: no file or folder here has that name, the Hugging Face hub is "
        "out of reach, and its cache does not have the weights; go online, or give the path of a "
        "file that you have."
    )
