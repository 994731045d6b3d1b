"""Weight merges by mergekit, which knows more rules than those of this package."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_opd.errors import ConfigError, MissingFileError, MissingPackageError
from lightning_opd.models.adapters import CONFIG_FILE, adapter_base
from lightning_opd.models.files import written_whole

WITHOUT_BASE = frozenset({"linear"})
"""Rules that mergekit refuses a base for."""


def merge_by_mergekit(
    base: Path, models: Sequence[Path], output: Path, rule: str, density: float | None, coefficient: float | None
) -> None:
    """Write what a rule of mergekit makes of several models, or of adapters on the base, as a whole model.

    Its TIES and DARE trim each tensor by itself, those of this package the whole model.

    Args:
        base: Folder of the model that the others started from.
        models: Folders of whole models, or of adapters.
        output: Folder to write.
        rule: Name of mergekit's `merge_method`, such as `della`, `breadcrumbs` or `sce`.
        density: Its `density`; by default its own.
        coefficient: Its `lambda`, which scales the merged differences; 1 by default. All models weigh the same.

    Raises:
        MissingPackageError: mergekit is not installed.
        MissingFileError: There is no such folder.
        ConfigError: mergekit refuses the rule or the models, with what it says; or `output` is one of the models.
    """
    if importlib.util.find_spec("mergekit") is None:
        msg = f"`--mergekit {rule}` needs the library mergekit. Install it: pip install mergekit."
        raise MissingPackageError(msg)
    for path in (base, *models):
        if not path.is_dir():
            msg = f"Expected the folder of a model or an adapter at `{path}`, found none. Correct the path."
            raise MissingFileError(msg)
        if path.resolve() == output.resolve():
            msg = f"`output` must be a new folder, got `{output}`, which is one of the models."
            raise ConfigError(msg)
    parameters = {"weight": 1.0} | ({} if density is None else {"density": density})
    named = [{"model": reference(base, model), "parameters": parameters} for model in models]
    settings: dict[str, Any] = {"merge_method": rule, "models": named}
    if coefficient is not None:
        settings["parameters"] = {"lambda": coefficient}
    if rule not in WITHOUT_BASE:
        settings["base_model"] = reference(base, base)
    with written_whole(output) as folder:
        try:
            kit = {name: importlib.import_module(f"mergekit.{name}") for name in ("config", "options", "merge")}
            options = kit["options"].MergeOptions(lora_merge_cache=str(folder / "adapters"))
            kit["merge"].run_merge(kit["config"].MergeConfiguration.model_validate(settings), str(folder), options)
        except Exception as error:  # whatever it raises
            msg = f"mergekit could not merge by `{rule}`: {type(error).__name__}: {' '.join(str(error).split())}"
            raise ConfigError(msg) from error


def reference(base: Path, model: Path) -> dict[str, Any]:
    """Return a model as mergekit names it, an adapter with its base; in a text, `+` and `@` would have a meaning."""
    if not (model / CONFIG_FILE).is_file():
        return {"model": {"path": str(model.resolve())}}
    own = adapter_base(str(model))
    if own is None or Path(own).resolve() != base.resolve():
        msg = f"The adapter `{model}` belongs on `{own}`, not on the base `{base}`. Name that one as `base`."
        raise ConfigError(msg)
    return {"model": {"path": str(base.resolve())}, "lora": {"path": str(model.resolve())}}
