"""Weight merges by mergekit, which knows more rules than those of this package."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from lightning_opd.errors import ConfigError, MissingFileError, MissingPackageError
from lightning_opd.models.adapters import CONFIG_FILE, adapter_base

WITHOUT_BASE = frozenset({"linear"})
"""Rules that mergekit refuses a base for."""


def merge_by_mergekit(
    base: Path, models: Sequence[Path], output: Path, rule: str, density: float | None, coefficient: float | None
) -> None:
    """Write what a rule of mergekit makes of several models, or of adapters on the base, as a whole model.

    mergekit runs in a process of its own, with this interpreter. Its TIES and DARE trim each tensor by itself, those of
    this package the whole model.

    Args:
        base: Folder of the model that the others started from.
        models: Folders of whole models, or of adapters.
        output: Folder to write; there only if all went well.
        rule: Name of mergekit's `merge_method`, such as `della`, `breadcrumbs` or `sce`.
        density: Its `density`; by default its own.
        coefficient: Its `lambda`, which scales the merged differences; 1 by default. All models weigh the same.

    Raises:
        MissingPackageError: mergekit is not installed.
        MissingFileError: There is no such folder.
        ConfigError: It refuses the rule or the models; with what it says.
    """
    if importlib.util.find_spec("mergekit") is None:
        msg = f"`--mergekit {rule}` needs the library mergekit. Install it: pip install mergekit."
        raise MissingPackageError(msg)
    for path in (base, *models):
        if not path.is_dir():
            msg = f"Expected the folder of a model or an adapter at `{path}`, found none. Correct the path."
            raise MissingFileError(msg)
    parameters = {"weight": 1.0} | ({} if density is None else {"density": density})
    named = [{"model": model_name(base, model), "parameters": parameters} for model in models]
    settings: dict[str, Any] = {"merge_method": rule, "models": named}
    if coefficient is not None:
        settings["parameters"] = {"lambda": coefficient}
    if rule not in WITHOUT_BASE:
        settings["base_model"] = str(base)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as folder:
        (Path(folder) / "mergekit.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
        made = Path(folder) / "made"
        words = ["-m", "mergekit.scripts.run_yaml", str(Path(folder) / "mergekit.yaml"), str(made), "--quiet"]
        words += ["--lora-merge-cache", str(Path(folder) / "adapters")]
        done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
        if done.returncode != 0 or not (made / "config.json").is_file():
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            msg = f"mergekit could not merge by `{rule}`: {lines[-1].strip() if lines else 'it says no more'}"
            raise ConfigError(msg)
        made.rename(output)


def model_name(base: Path, model: Path) -> str:
    """Return a model as mergekit calls it; an adapter stands behind its base."""
    if not (model / CONFIG_FILE).is_file():
        return str(model)
    own = adapter_base(str(model))
    if own is None or Path(own).resolve() != base.resolve():
        msg = f"The adapter `{model}` belongs on `{own}`, not on the base `{base}`. Name that one as `base`."
        raise ConfigError(msg)
    return f"{base}+{model}"
