"""CONTRIBUTING shows how to follow one prompt: the named code exists, and is as long as the page says."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / ".github" / "CONTRIBUTING.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| \d \| `([\w/.]+)` \| (.+?) \| (\d+) \|", re.MULTILINE)
MAX_FILES, MAX_LINES = 9, 700


def definitions(path: Path) -> dict[str, int]:
    """Return the lines of every function, method and class of a file, by its dotted name."""
    found: dict[str, int] = {}

    def visit(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.ClassDef):
                assert child.end_lineno is not None
                first = min([child.lineno, *(decorator.lineno for decorator in child.decorator_list)])
                found[f"{prefix}{child.name}"] = child.end_lineno - first + 1
                visit(child, f"{prefix}{child.name}.")

    visit(ast.parse(path.read_text(encoding="utf-8")), "")
    return found


def lines_to_read(file: str, names: str) -> int:
    path = ROOT / "lightning_opd" / file
    if names == "all":
        return len(path.read_text(encoding="utf-8").splitlines())
    lengths = definitions(path)
    return sum(lengths[name] for name in re.findall(r"`([\w.]+)`", names))


def test_the_way_of_a_prompt_is_as_long_as_the_page_says() -> None:
    rows = ROW.findall(PAGE)
    assert len(rows) > 5
    assert {file: int(lines) for file, _, lines in rows} == {
        file: lines_to_read(file, names) for file, names, _ in rows
    }


def test_the_way_of_a_prompt_is_read_in_a_quarter_of_an_hour() -> None:
    rows = ROW.findall(PAGE)
    assert len(rows) <= MAX_FILES
    assert sum(int(lines) for *_, lines in rows) <= MAX_LINES
    assert f"{sum(int(lines) for *_, lines in rows)} lines" in PAGE
