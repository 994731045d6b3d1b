from __future__ import annotations

import json
from pathlib import Path

import pytest

from lightning_opd.workflow.step import Step


@pytest.mark.parametrize("content", ['{"fingerp', "", "[]", "\0"])
def test_of_an_unreadable_marker_a_copy_stays_and_the_step_is_outdated(content: str, tmp_path: Path) -> None:
    step = Step("words", "script", tmp_path, {}, (), "abc")
    step.begin()
    step.mark(finished=True)
    assert step.state() == "finished"
    marker = tmp_path / "step.json"
    assert json.loads(marker.read_text())["finished"]
    marker.write_text(content)
    with pytest.warns(UserWarning, match=r"step.json` cannot be read and now is `step.json.unreadable`"):
        assert step.state() == "outdated"
    assert step.state() == "outdated"
    assert (tmp_path / "step.json.unreadable").read_text() == content
    step.mark(finished=True)
    assert step.state() == "finished"
    assert [path.name for path in tmp_path.glob("*.partial")] == []
