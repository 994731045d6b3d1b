"""Keeps the layers of the package by reading the sources: imports, cycles, and who may know what."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "lightning_opd"
LAYERS = {
    0: {"errors", "functional", "processes", "types"},
    1: {"interfaces", "options"},
    2: {"models", "servers", "tokenization"},
    3: {"tasks"},
    4: {"rollouts", "teachers", "objectives"},
    5: {"collection", "merge", "workflow"},
    6: {"modules", "data", "callbacks", "analysis"},
    7: {"preflight"},
    8: {"cli", "__main__"},
}
LAYER_OF = {name: layer for layer, names in LAYERS.items() for name in sorted(names)}
TOP_LEVEL = {
    "pyproject.toml",
    "README.md",
    "lightning_opd",
    "configs",
    "tests",
    "recipes",
    "LICENSE",
    "CITATION.cff",
}
DOT_FILES = {".gitignore", ".pre-commit-config.yaml", ".ci", ".github"}
MAX_LINES = 300
READERS_OF_OPTIONS = {"cli", "options", "__main__"}
COMMAND_LINES = ("argparse", "jsonargparse", "lightning.pytorch.cli", "click", "typer")
TYPES_OF_THE_COMMAND_LINE = {  # aliases for annotations, without which Lightning cannot build an optimiser from YAML
    "lightning.pytorch.cli.OptimizerCallable",
    "lightning.pytorch.cli.LRSchedulerCallable",
}


@functools.cache
def modules() -> dict[str, Path]:
    """Return every module of the package by its dotted name; a package's own name stands for its `__init__`."""
    names = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


@functools.cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


@functools.cache
def imports(module: str) -> frozenset[str]:
    """Return the dotted names a module imports anywhere: at the top, in functions, for type checking only."""
    found: set[str] = set()
    for node in ast.walk(tree(modules()[module])):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively in line {node.lineno}"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(found)


def own_modules(module: str) -> Iterator[str]:
    """Yield the modules of the package that a module imports, the name inside them cut off."""
    for name in imports(module):
        if name == "lightning_opd" or name.startswith("lightning_opd."):
            yield name if name in modules() else name.rpartition(".")[0]


def foreign_packages(module: str) -> set[str]:
    packages = {name.partition(".")[0] for name in imports(module)}
    return packages - set(sys.stdlib_module_names) - {"lightning_opd"}


def folder_of(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


def in_folder(name: str) -> list[str]:
    return [module for module in modules() if folder_of(module) == name]


def test_every_folder_has_a_layer() -> None:
    assert {folder_of(module) for module in modules()} - {"__init__"} <= set(LAYER_OF)


def wrong_imports(module: str) -> Iterator[str]:
    """Yield what is wrong with each import of the package's own modules."""
    layer = LAYER_OF[folder_of(module)]
    for target in own_modules(module):
        if target == "lightning_opd":
            if "lightning_opd.__version__" not in imports(module):
                yield "imports from the table of public names: import from the folder itself"
        elif target not in modules():
            yield f"imports {target}, which does not exist"
        elif target == "lightning_opd.errors":
            continue  # imports nothing of the package: every layer may raise its errors
        elif (
            folder_of(target) != folder_of(module)
            and LAYER_OF[folder_of(target)] >= layer
            and folder_of(module) != "__main__"
        ):
            yield f"(layer {layer}) imports {target} (layer {LAYER_OF[folder_of(target)]}): move what they share down"


@pytest.mark.parametrize(
    "module", [m for m in modules() if folder_of(m) != "__init__"]
)  # the lazy table may point anywhere
def test_a_module_imports_only_its_own_folder_and_lower_layers(module: str) -> None:
    wrong = [f"{module} {wrong}" for wrong in wrong_imports(module)]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", LAYER_OF)
def test_imports_inside_a_folder_have_no_cycle(name: str) -> None:
    circle = {(module, t) for module in in_folder(name) for t in own_modules(module) if folder_of(t) == name}
    while True:  # peel off what imports nothing, and what nothing imports
        importers, imported = {a for a, _ in circle}, {b for _, b in circle}
        inner = {(a, b) for a, b in circle if a in imported and b in importers}
        if inner == circle:
            break
        circle = inner
    assert not circle, "\n".join(f"{a} imports {b}" for a, b in sorted(circle))


@pytest.mark.parametrize("module", [m for m in modules() if folder_of(m) in {"functional", "types"}])
def test_mathematics_and_types_know_only_torch(module: str) -> None:
    assert foreign_packages(module) <= {"torch", "jaxtyping", "typing_extensions"}


@pytest.mark.parametrize("module", [m for m in modules() if folder_of(m) not in READERS_OF_OPTIONS])
def test_only_the_command_line_knows_a_command_line(module: str) -> None:
    known = {n for n in imports(module) for c in COMMAND_LINES if n == c or n.startswith(f"{c}.")}
    assert known <= TYPES_OF_THE_COMMAND_LINE
    for node in ast.walk(tree(modules()[module])):
        if isinstance(node, ast.Attribute):
            assert node.attr != "argv", f"{module} reads the command line in line {node.lineno}"
    assert "sys.argv" not in imports(module)


@pytest.mark.parametrize("module", [m for m in modules() if m != "lightning_opd.models.distributed"])
def test_collectives_live_in_one_file(module: str) -> None:
    names = {node.attr for node in ast.walk(tree(modules()[module])) if isinstance(node, ast.Attribute)}
    assert not names & {"all_reduce", "all_gather", "all_gather_object", "broadcast_object_list", "gather_object"}


@pytest.mark.parametrize("module", modules())
def test_masks_are_never_multiplied(module: str) -> None:
    for node in ast.walk(tree(modules()[module])):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
            for side in (node.left, node.right):
                name = getattr(side, "id", getattr(side, "attr", ""))
                assert not str(name).endswith("mask"), f"{module}:{node.lineno} multiplies `{name}`: use torch.where"


def test_no_file_is_long() -> None:
    sources = [*PACKAGE.rglob("*.py"), *(ROOT / "tests").rglob("*.py")]
    lengths = {str(p.relative_to(ROOT)): len(p.read_text(encoding="utf-8").splitlines()) for p in sources}
    assert {name: length for name, length in lengths.items() if length > MAX_LINES} == {}


def test_the_visible_top_level_is_fixed() -> None:
    try:
        listed = subprocess.run(
            ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True, timeout=60
        ).stdout
    except (FileNotFoundError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    tracked = {name.split("/")[0] for name in listed.split("\0") if name}
    if not tracked:
        pytest.skip("nothing is committed yet")
    assert tracked == TOP_LEVEL | DOT_FILES


def test_tests_mirror_the_package() -> None:
    beside = {"benchmarks", "integration", "recipes", "configs", "real"}
    folders = {folder_of(module) for module in modules()} - {"__init__", "__main__"}
    tested = {
        p.relative_to(ROOT / "tests").parts[0] for p in (ROOT / "tests").rglob("test_*.py") if p.parent.name != "tests"
    }
    assert tested - beside <= folders, "a folder of tests mirrors no folder of the package"
    files = {p.stem.removeprefix("test_") for p in (ROOT / "tests").glob("test_*.py")}
    untested = {name for name in folders - tested if not any(f == name or f.startswith(f"{name}_") for f in files)}
    assert not untested, f"folders without tests of their own: {sorted(untested)}"


def test_every_file_of_mathematics_has_its_tests() -> None:
    sources = {p.stem for p in (PACKAGE / "functional").glob("*.py")} - {"__init__"}
    assert sources == {p.stem.removeprefix("test_") for p in (ROOT / "tests" / "functional").glob("test_*.py")}
