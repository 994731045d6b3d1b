from __future__ import annotations

import pytest

from tests.architectures import ARCHITECTURES
from tests.real import architectures, report


@pytest.fixture(scope="module")
def table() -> str:
    return architectures.markdown()


def test_the_table_of_architectures_is_what_the_code_does(table: str) -> None:
    assert table == report.written("architectures", report.README.read_text(encoding="utf-8"))


def test_no_architecture_is_wrong_and_most_go_the_whole_way(table: str) -> None:
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| ")][1:]
    assert len(rows) == len(ARCHITECTURES) >= 40
    assert "wrong" not in table
    assert "does not train" not in table
    refused = [row[0] for row in rows if any(cell.startswith("refused") for cell in row)]
    assert refused == ["recurrent_gemma", "rwkv"]
    assert all(row[3] == "≤ 1e-4" for row in rows if row[0] not in refused)
    for name, *_, lora, _, _ in rows:
        reached, adapted = lora.removeprefix("trains, ").split("/")
        assert reached == adapted, name
