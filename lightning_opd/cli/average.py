"""The command `average`: averages, task arithmetic, TIES and DARE, the baselines of merging."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from lightning_opd.errors import ConfigError
from lightning_opd.options.outputs import check_output

if TYPE_CHECKING:
    from collections.abc import Callable

    from lightning_opd.models.merging_methods import WeightMerge

Method: TypeAlias = Literal["average", "task_arithmetic", "ties", "dare_linear", "dare_ties"]


def average(
    base: str,
    models: list[str],
    output: str,
    coefficient: float | None = None,
    method: Method | None = None,
    density: float | None = None,
    seed: int | None = None,
    mergekit: str | None = None,
) -> None:
    """Merge models by arithmetic on their weights.

    Writes the plain average of the models, or with a coefficient task arithmetic: base + coefficient × Σ (model −
    base). Other rules are chosen with METHOD: `ties` keeps the largest differences to the base, elects a sign for each
    weight and averages those that have it; `dare_linear` and `dare_ties` keep a random fraction of the differences,
    scaled up, and add them or elect signs. All are Hugging Face folders with safetensors of the same architecture.
    Computed in float32, saved in the base's dtype. By average and task arithmetic, LoRA adapters of one base become
    one adapter, exactly, whose rank is the sum of theirs; by the others, whose result has no low rank, a whole model.

    Args:
        base: Folder of the model that the others started from; its tokenizer and configuration are copied.
        models: Folders of the models to merge: whole models, or adapters all of them.
        output: Folder to write.
        coefficient: Scale of the summed differences; leave it out for the plain average.
        method: The rule; by default the average, or with a coefficient task arithmetic.
        density: Fraction of the differences that is kept; by default 0.2 for `ties`, 0.1 for `dare_...`.
        seed: Of what `dare_...` keeps; 0 by default.
        mergekit: A rule of mergekit instead, such as `della`, `breadcrumbs` or `sce`, where it is installed.
            COEFFICIENT is its `lambda`, DENSITY its `density`; the result is a whole model.
    """
    from lightning_opd.models.adapters import CONFIG_FILE
    from lightning_opd.models.merging import merge_folders
    from lightning_opd.models.merging_adapters import merge_adapters, merge_adapters_whole
    from lightning_opd.models.merging_methods import Average, TaskArithmetic

    check_output(Path(output), "output")
    if mergekit is not None:
        from lightning_opd.models.merging_mergekit import merge_by_mergekit

        if method is not None or seed is not None:
            useless = "method" if method is not None else "seed"
            msg = f"`--mergekit {mergekit}` has no use for `--{useless}`. Leave it out."
            raise ConfigError(msg)
        merge_by_mergekit(Path(base), [Path(model) for model in models], Path(output), mergekit, density, coefficient)
        sys.stdout.write(f"mergekit's {mergekit} of {len(models)} models written to {output}\n")
        return
    rule = _rule(method, coefficient, density, seed)
    folders = [Path(model) for model in models]
    if not folders or not all((folder / CONFIG_FILE).is_file() for folder in folders):
        merge_folders(Path(base), folders, Path(output), rule)
    elif isinstance(rule, (Average, TaskArithmetic)):
        merge_adapters(base, folders, Path(output), rule.coefficient if isinstance(rule, TaskArithmetic) else None)
    else:
        merge_adapters_whole(base, folders, Path(output), rule)
    sys.stdout.write(f"{rule.title} of {len(models)} models written to {output}\n")


def _rule(method: Method | None, coefficient: float | None, density: float | None, seed: int | None) -> WeightMerge:
    """Return the rule that the options choose; an option that it has no use for is refused."""
    from lightning_opd.models.merging_dare import Dare
    from lightning_opd.models.merging_methods import Average, TaskArithmetic
    from lightning_opd.models.merging_ties import Ties

    chosen = method or ("average" if coefficient is None else "task_arithmetic")
    given = {"coefficient": coefficient, "density": density, "seed": seed}
    rules: dict[str, tuple[Callable[..., WeightMerge], tuple[str, ...]]] = {
        "average": (Average, ()),
        "task_arithmetic": (TaskArithmetic, ("coefficient",)),
        "ties": (Ties, ("coefficient", "density")),
        "dare_linear": (Dare, ("coefficient", "density", "seed")),
        "dare_ties": (lambda **own: Dare(elects_sign=True, **own), ("coefficient", "density", "seed")),
    }
    build, takes = rules[chosen]
    useless = [name for name, value in given.items() if value is not None and name not in takes]
    if useless:
        msg = f"`--method {chosen}` has no use for `--{useless[0]}`. Leave it out, or choose another method."
        raise ConfigError(msg)
    return build(**{name: value for name, value in given.items() if value is not None})
