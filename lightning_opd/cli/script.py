"""The command `script`: a recipe's own Python step."""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_opd.errors import ConfigError, MissingFileError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def script(file: str, /, arguments: dict[str, Any] | None = None, seed: int = 0) -> None:
    """Call the function `main` of a Python file.

    What no command does, a recipe can do in its own folder: measure something, or train many variants in one process.
    Files beside it can be imported by their names. In a recipe, an interrupted script is called again with its folder
    as it left it; one that keeps partial results there can go on with the missing ones.

    Args:
        file: The Python file; it defines `main(seed, ...)`.
        arguments: Keyword arguments of `main`.
        seed: Also given to `main`.
    """
    path = Path(file)
    if not path.is_file():
        msg = f"`file` names `{file}`, which does not exist; give the path of a Python file with a function `main`."
        raise MissingFileError(msg)
    with _neighbours_of(path):
        main = _main_of(path)
        _check(main, arguments or {}, file)
        main(seed=seed, **(arguments or {}))


@contextlib.contextmanager
def _neighbours_of(path: Path) -> Iterator[None]:
    """Let a file import those beside it, and forget them afterwards: another recipe may use the same names."""
    folder = path.parent.resolve()
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name, module in list(sys.modules.items()):
            if Path(getattr(module, "__file__", None) or "/").parent == folder:
                del sys.modules[name]


def _main_of(path: Path) -> Callable[..., None]:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        msg = f"`{path}` is not a Python file."
        raise ConfigError(msg)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    main = getattr(module, "main", None)
    if not inspect.isfunction(main):
        msg = f"`{path}` has no function `main`; define `main(seed, ...)` with the arguments of the step."
        raise ConfigError(msg)
    return main


def _check(main: Callable[..., None], arguments: dict[str, Any], file: str) -> None:
    parameters = inspect.signature(main).parameters
    known = [name for name in parameters if name != "seed"]
    for name in arguments:
        if name not in known:
            cure = f"{did_you_mean(name, known)} Arguments: {', '.join(known)}."
            msg = f"`main` of `{file}` has no argument `{name}`.{cure}"
            raise ConfigError(msg)
    missing = [n for n in known if parameters[n].default is inspect.Parameter.empty and n not in arguments]
    if missing:
        msg = f"`main` of `{file}` needs {', '.join(f'`{name}`' for name in missing)}; set it under `arguments`."
        raise ConfigError(msg)
