from __future__ import annotations

import pytest

from lightning_opd.collection.prompt_report import Found, PromptReport
from lightning_opd.preflight.report import Check, Report, Status
from lightning_opd.preflight.table import show

STRANGE = "\x1b[2J\x1b]0;owned\x07math"


@pytest.mark.parametrize("is_terminal", [False, True])
def test_control_sequences_in_names_are_shown_escaped(
    is_terminal: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("rich.console.Console.is_terminal", is_terminal)
    report = Report()
    report.add(Check(STRANGE, f"teacher {STRANGE} fails", Status.FAILED))
    show(report)
    out = capsys.readouterr().out
    assert "\\x1b[2J" in out
    assert "owned" in out
    assert "\x07" not in out
    assert "\x1b]" not in out
    assert "\x1b[2J" not in out


def test_teachers_are_counted_by_names_that_a_terminal_does_not_obey() -> None:
    no = Found()
    counts = {STRANGE: 1}, {"math": 1}
    said = str(PromptReport(1, 1, (3, 3, 3), *counts, no, no, no, no, no, {}, 4, 9, refuses_long=True))
    assert "owned" in said
    assert "\x1b" not in said
