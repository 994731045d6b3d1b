"""One table of wrong inputs: each is answered by one message of a screen, at once, and leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_opd.cli.main import main
from tests.bad_inputs import commands, files, folders, numbers, outputs
from tests.bad_inputs.row import Bad, contents, filled

TABLE = [*commands.TABLE, *files.TABLE, *folders.TABLE, *numbers.TABLE, *outputs.TABLE]
MAX_LINES, MAX_CHARACTERS = 6, 1200
"""One screen: a message wraps, and names files by their whole paths."""

RESULTS = {".ckpt", ".safetensors", ".partial"}
"""Files by which an earlier run is known, or taken for finished."""


def test_the_table_is_long_and_its_names_are_its_own() -> None:
    assert len([row for row in TABLE if not row.is_slow]) >= 120
    assert len({row.name for row in TABLE}) == len(TABLE)


@pytest.mark.parametrize(
    "row",
    [pytest.param(row, marks=[pytest.mark.slow] if row.is_slow else []) for row in TABLE],
    ids=lambda row: row.name,
)
def test_a_wrong_input_is_answered_by_what_is_wrong_and_what_to_do(
    row: Bad, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["lightning-opd"])
    monkeypatch.chdir(tmp_path)
    words = row.arguments(world, tmp_path)
    before = contents(tmp_path)
    code = main(words)
    text = capsys.readouterr().err
    assert code == 2, text
    assert "Traceback" not in text
    assert len([line for line in text.splitlines() if line.startswith("error: ")]) == 1, text
    message = text[text.index("error: ") :]
    assert len(message.splitlines()) <= MAX_LINES
    assert len(message) <= MAX_CHARACTERS
    for part in row.says:
        assert filled(part, world, tmp_path) in message
    after = contents(tmp_path)
    assert {path: content for path, content in after.items() if path in before} == before
    assert not [path for path in after.keys() - before.keys() if path.suffix in RESULTS or path.name == "step.json"]


def test_the_run_that_the_table_spoils_is_good(world: Path, tmp_path: Path) -> None:
    assert main(Bad("nothing", ()).arguments(world, tmp_path)) == 0
