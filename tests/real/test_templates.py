from __future__ import annotations

import pytest

from lightning_opd.tokenization.rendering import render
from tests.real import fetch, report, templates


@pytest.fixture(scope="module")
def table() -> str:
    return templates.markdown()


def test_the_table_of_templates_is_what_the_code_does(table: str) -> None:
    assert table == report.written("templates", report.README.read_text(encoding="utf-8"))


def test_no_template_is_wrong_and_every_refusal_is_worded(table: str) -> None:
    rows = [line.split(" | ")[2:] for line in table.splitlines() if line.startswith("| ")][1:]
    cells = [cell.strip(" |") for row in rows for cell in row]
    assert len(rows) == len(fetch.chat_templates())
    assert all(cell == "=" or cell.startswith("refused (") for cell in cells)
    assert sum(cell == "=" for cell in cells) > len(cells) / 2


@pytest.mark.parametrize("template", ["llama3_2", "gptoss", "muse_glimmer"])
def test_no_template_reads_the_clock(template: str) -> None:
    text = render(templates.tokenizer_of(template), [templates.USER], add_generation_prompt=True)
    assert "26 Jul 2024" in text or "2024-07-26" in text
