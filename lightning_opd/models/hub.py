"""Where the name of a model or data set leads: to a folder, to the hub, or nowhere, which is said at once."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Literal, TypedDict

from lightning_opd.errors import ConfigError, MissingFileError, closest

TIMEOUT = 5.0
"""Seconds to wait for the hub's answer to the first question about a model or a data set."""

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


class HubOptions(TypedDict, total=False):
    """What `from_pretrained` is told beside the name; nothing for a folder."""

    revision: str
    local_files_only: bool


def locate(path: str, what: str, revision: str | None = None) -> HubOptions:
    """Return how transformers should look for a model: in its folder, on the hub, or in the hub's cache.

    A path that is no folder is looked for on the hub only if it looks like `org/name`. The hub is asked once, for a
    few seconds; where it does not answer, what was downloaded before is used.

    Args:
        path: Folder or hub name.
        what: What is looked for, with its article.
        revision: Branch, tag or commit on the hub.

    Raises:
        MissingFileError: There is nothing at `path`.
        ConfigError: A revision is given for a folder.
    """
    if not path.strip():
        msg = f"Expected {what}, got an empty path. Give a folder, or a model's name on the hub such as org/name."
        raise MissingFileError(msg)
    if Path(path).is_dir():
        if revision is not None:
            msg = f"`revision: {revision}` chooses a version on the hub, and `{path}` is a folder. Leave it out."
            raise ConfigError(msg)
        return {}
    if Path(path).exists():
        msg = f"Expected {what} at `{path}`, which is a file. Name the folder that holds `config.json`."
        raise MissingFileError(msg)
    if not HUB_NAME.fullmatch(path):
        near = _near_folder(Path(path))
        cure = f"Did you mean `{near}`?" if near else "Check the path, or run the step that makes it first."
        msg = f"Expected {what} at `{path}`, which is no folder and no hub name such as org/name. {cure}"
        raise MissingFileError(msg)
    problem = hub_problem(path, "model", revision)
    options: HubOptions = {} if revision is None else {"revision": revision}
    if problem is None:
        return options
    if not _is_cached(path, revision):
        near = _near_folder(Path(path))
        cure = f"Did you mean the folder `{near}`?" if near else "Check the path, or run the step that makes it first."
        msg = f"Expected {what} at `{path}`, which is no folder{problem}. {cure}"
        raise MissingFileError(msg)
    return {**options, "local_files_only": True}


@functools.cache
def hub_problem(name: str, kind: Literal["model", "dataset"], revision: str | None = None) -> str | None:
    """Return why the hub does not have something or does not answer, or None; asked once per process.

    Args:
        name: On the hub, such as `org/name`.
        kind: What it is a name of.
        revision: Branch, tag or commit on the hub.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    what = "data set" if kind == "dataset" else kind
    if constants.HF_HUB_OFFLINE:
        return ", is not in the hub's cache, and HF_HUB_OFFLINE forbids to ask the hub"
    try:
        HfApi().repo_info(name, repo_type=kind, revision=revision, timeout=TIMEOUT)
    except RevisionNotFoundError:
        return f", and the hub's {what} of that name has no revision `{revision}`"
    except RepositoryNotFoundError:
        return f" and no {what} on the hub (a private one needs `hf auth login`)"
    except HfHubHTTPError as error:
        return f", and the hub refuses it ({' '.join(str(error).split())[:160]})"
    except Exception as error:  # whatever the HTTP library raises where there is no network
        return f", is not in the hub's cache, and the hub cannot be reached ({type(error).__name__})"
    return None


def _is_cached(name: str, revision: str | None) -> bool:
    from huggingface_hub import try_to_load_from_cache

    files = ("config.json", "tokenizer_config.json", "tokenizer.json")
    return any(isinstance(try_to_load_from_cache(name, file, revision=revision), str) for file in files)


def _near_folder(path: Path) -> str | None:
    """Return the folder whose name is most like the first part of a path that does not exist; None for none."""
    missing = next((p for p in reversed([path, *path.parents]) if not p.exists()), path)
    try:
        names = [folder.name for folder in missing.parent.iterdir() if folder.is_dir()]
    except OSError:
        return None
    best = closest(missing.name, names)
    return None if best is None else str(missing.parent / best)
