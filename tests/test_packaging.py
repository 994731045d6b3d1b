from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

import lightning_opd

ROOT = Path(__file__).parents[1]
SHIPPED = "lightning_opd/_shipped"
MAX_WHEEL_BYTES = 1_500_000
WHEEL_COMMANDS = (
    ["--help"],
    ["run", "--help"],
    ["fit", "--config", "opd.yaml", "--config", "configs/trainer/fsdp.yaml", "--print_config"],
    ["fit", "--config", "recipes/merge_tiny/merge.yaml", "--print_config"],
    ["run", "merge_tiny", "--until", "tokenizer"],
    ["run", "recipes/merge_tiny", "--until", "tokenizer"],
    ["copy", "opd.yaml"],
)
"""What works in an empty folder, where the wheel is installed and the repository is not."""


def pyproject() -> dict[str, object]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_every_public_name_can_be_imported() -> None:
    assert lightning_opd.__all__ == sorted(lightning_opd.__all__)
    assert dir(lightning_opd) == lightning_opd.__all__
    for name in lightning_opd.__all__:
        assert getattr(lightning_opd, name) is not None
    with pytest.raises(AttributeError, match="NoSuchName"):
        lightning_opd.NoSuchName  # noqa: B018  # the access is the test


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import sys, lightning_opd; print({'torch', 'lightning', 'transformers', 'numpy'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True, text=True, timeout=60)
    assert out.stdout.strip() == "set()"


def test_the_version_is_written_once() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*", lightning_opd.__version__)
    assert f"version: {lightning_opd.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert lightning_opd.__version__ in (ROOT / ".github" / "CHANGELOG.md").read_text(encoding="utf-8")
    try:
        installed = metadata.version("lightning-opd")
    except metadata.PackageNotFoundError:
        pytest.skip("the package is not installed")
    assert installed == lightning_opd.__version__


def test_the_console_script_points_at_a_function() -> None:
    project = pyproject()["project"]
    assert isinstance(project, dict)
    module, _, function = project["scripts"]["lightning-opd"].partition(":")
    assert callable(getattr(importlib.import_module(module), function))


@pytest.mark.parametrize("mark", ["merge_tiny", "tests"])
def test_the_readme_holds_each_promised_command_on_one_line(mark: str) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.findall(rf"<!-- ci:{mark} -->\n+```(?:bash|sh)\n(.*?)\n```", readme, flags=re.DOTALL)
    assert len(found) == 1
    assert "\n" not in found[0]
    assert "pip install -e" in found[0]


@pytest.mark.slow
def test_the_wheel_carries_configs_and_recipes_and_its_console_script_starts(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "-q", "--no-deps", "-w", str(tmp_path), str(ROOT)], check=True, timeout=240)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.stat().st_size < MAX_WHEEL_BYTES
    names = set(zipfile.ZipFile(wheel).namelist())
    assert "lightning_opd/py.typed" in names
    tracked = subprocess.run(
        ["git", "ls-files", "configs", "recipes"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert tracked.stdout
    assert {f"{SHIPPED}/{name}" for name in tracked.stdout.splitlines()} <= names
    assert not [name for name in names if name.startswith("tests/") or "__pycache__" in name]

    site = tmp_path / "site"
    subprocess.run([*pip, "install", "-q", "--no-deps", "--target", str(site), str(wheel)], check=True, timeout=240)
    empty = tmp_path / "empty"
    empty.mkdir()
    for words in WHEEL_COMMANDS:
        out = subprocess.run(
            [sys.executable, str(site / "bin" / "lightning-opd"), *words],
            cwd=empty,
            env={**os.environ, "PYTHONPATH": str(site)},
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
        )
        assert out.returncode == 0, out.stderr
        assert out.stdout
    assert (empty / "runs" / "merge_tiny" / "seed0" / "tokenizer" / "step.json").is_file()
    assert (empty / "opd.yaml").read_bytes() == (ROOT / "configs" / "opd.yaml").read_bytes()
