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
    if not Path(file).is_file():
        msg = f"`file` names `{file}`, which does not exist; give the path of a Python file with a function `main`."
        raise MissingFileError(msg)
    with _neighbours_of(Path(file)):
        main = _main_of(file)
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


def _main_of(file: str) -> Callable[..., None]:
    if Path(file).suffix != ".py":
        msg = f"`{file}` is no Python file: its name must end in .py."
        raise ConfigError(msg)
    try:
        compile(Path(file).read_bytes(), file, "exec")
    except (SyntaxError, ValueError) as error:  # a ValueError for null bytes, in some versions
        line = f" in line {error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        msg = f"`{file}` is not Python in UTF-8{line}: {getattr(error, 'msg', error)}. Correct the file."
        raise ConfigError(msg) from error
    spec = importlib.util.spec_from_file_location(Path(file).stem, file)
    module = importlib.util.module_from_spec(spec) if spec and spec.loader else None
    if spec and spec.loader and module:
        spec.loader.exec_module(module)
    main = getattr(module, "main", None)
    if not inspect.isfunction(main):
        msg = f"`{file}` has no function `main`; define `main(seed, ...)` with the arguments of the step."
        raise ConfigError(msg)
    return main


def _check(main: Callable[..., None], arguments: dict[str, Any], file: str) -> None:
    parameters = inspect.signature(main).parameters
    if "seed" not in parameters and all(p.kind is not inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        msg = f"`main` of `{file}` takes no `seed`; define `main(seed, ...)` with the arguments of the step."
        raise ConfigError(msg)
    known = {name: p for name, p in parameters.items() if name != "seed"}
    for name in [name for name in arguments if name not in known]:
        cure = f"{did_you_mean(name, known)} Arguments: {', '.join(known)}."
        msg = f"`main` of `{file}` has no argument `{name}`.{cure}"
        raise ConfigError(msg)
    missing = [f"`{n}`" for n, p in known.items() if p.default is inspect.Parameter.empty and n not in arguments]
    if missing:
        msg = f"`main` of `{file}` needs {', '.join(missing)}; set it under `arguments`."
        raise ConfigError(msg)
