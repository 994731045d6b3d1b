"""What the comparison of whole steps rests on: equal prompts, equal numbers of tokens, one step at a time."""

from __future__ import annotations

import dataclasses
import io
import json
import sys
from pathlib import Path

import pytest

from tests.benchmarks import step_ours
from tests.benchmarks.gate import MARK, Gate
from tests.benchmarks.processes import Record, Run, alternate, median, started, table
from tests.benchmarks.step import ours, parser, trl
from tests.benchmarks.worlds import PROMPTS, Setting, Shape, save_tokenizer, save_world

SMALL = Shape(layers=1, width=32, inner=64, heads=2, key_heads=1, head_width=16)


def setting_in(folder: Path, **changes: object) -> Setting:
    """Return a setting that takes milliseconds, with everything saved that it needs."""
    small = Setting(str(folder), steps=2, prompts=4, prompt_tokens=24, new_tokens=5, vocabulary=320)
    setting = dataclasses.replace(small, **changes)  # type: ignore[arg-type]  # fields
    save_world(setting, SMALL)
    return setting


def train(setting: Setting, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> list[Record]:
    """Train in this process, whose gate is always open, and return what it answered."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n" * (setting.steps + 1)))
    gate = Gate(measures_memory=setting.measures_memory)
    step_ours.trainer(setting, gate).fit(step_ours.module(setting), step_ours.data(setting))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(MARK)]
    return [json.loads(line.removeprefix(MARK)) for line in lines]


@pytest.mark.parametrize("vocabulary", [320, 4096])
def test_a_tokenizer_has_as_many_tokens_as_asked_for_and_spells_digits_one_by_one(
    tmp_path: Path, vocabulary: int
) -> None:
    tokenizer = save_tokenizer(tmp_path, vocabulary)
    assert len(tokenizer) == vocabulary
    assert len(tokenizer("31415")["input_ids"]) == 5
    assert tokenizer.decode(tokenizer("31415")["input_ids"]) == "31415"


def test_every_step_stops_at_the_gate_and_generates_all_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    setting = setting_in(tmp_path, micro_batches=2, teachers=2)
    ready, *steps = train(setting, monkeypatch, capsys)
    assert ready["weight_mib"] > 0
    assert len(steps) == setting.steps
    for record in steps:
        assert set(record["parts"]) == {"rollout", "score"}
        assert 0 < sum(record["parts"].values()) < record["seconds"]
        assert record["metrics"]["train/response_length"] == setting.new_tokens


def test_the_peak_after_the_rollout_is_above_what_was_held_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("this system does not say how much memory a process has held")
    _, *steps = train(setting_in(tmp_path, measures_memory=True), monkeypatch, capsys)
    assert all(record["resident"] > 0 and record["peak"] > 0 for record in steps)


def test_adapters_on_one_base_are_in_memory_without_further_bases(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    held = {}
    for teachers in (1, 4):
        setting = setting_in(tmp_path / f"{teachers}", lora=True, adapters=True, teachers=teachers, steps=1)
        held[teachers] = train(setting, monkeypatch, capsys)[0]["weight_mib"]
    adapter = 4 * _num_parameters(tmp_path / "4" / "t0" / "adapter_model.safetensors") / 2**20
    assert held[4] - held[1] == pytest.approx(3 * adapter, rel=1e-6)


def _num_parameters(path: Path) -> int:
    from safetensors.torch import load_file

    return sum(tensor.numel() for tensor in load_file(path).values())


def test_a_table_has_a_line_below_its_head() -> None:
    assert table(["a", "b"], [[1, 2]]).splitlines() == ["| a | b |", "| --- | --- |", "| 1 | 2 |"]


def test_a_median_is_that_of_a_part_where_one_is_named() -> None:
    records = [{"seconds": s, "parts": {"score": 2 * s}} for s in (1.0, 9.0, 2.0)]
    assert (median(records), median(records, part="score")) == (2.0, 4.0)


def test_a_missing_trl_is_one_line_with_its_cure(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho \"No module named 'trl'\" >&2\nexit 1\n", encoding="utf-8")
    python.chmod(0o755)
    with pytest.raises(SystemExit, match=r"cannot import TRL .*`pip install") as caught:
        trl(Setting(str(tmp_path)), str(python))
    assert "\n" not in str(caught.value)


def test_a_run_that_dies_is_named_with_its_last_words(tmp_path: Path) -> None:
    run = Run([sys.executable, "-c", "raise SystemExit('no such model')"], folder=tmp_path)
    with pytest.raises(RuntimeError, match="no such model"), started({"one": run}):
        pass


@pytest.mark.slow
def test_two_processes_take_turns(tmp_path: Path) -> None:
    setting = setting_in(tmp_path, steps=4)
    with started({"one": ours(setting), "other": ours(setting)}) as workers:
        found = alternate(workers, repeats=2)
    assert [len(records) for records in found.values()] == [2, 2]
    assert found["one"][0]["metrics"]["train/loss"] == found["other"][0]["metrics"]["train/loss"]


@pytest.mark.slow
def test_both_sides_start_from_the_same_divergence(tmp_path: Path) -> None:
    pytest.importorskip("trl", reason="TRL is no dependency; `pip install --no-deps trl==1.16.0 accelerate`")
    setting = setting_in(tmp_path, steps=2, prompts=16, new_tokens=16, prompt_tokens=24)
    with started({"ours": ours(setting), "TRL": trl(setting, sys.executable)}) as workers:
        found = alternate(workers, repeats=1)
    assert found["TRL"][0]["metrics"]["tokens"] == 16 * 16
    assert found["ours"][0]["metrics"]["train/loss"] == pytest.approx(found["TRL"][0]["metrics"]["loss"], rel=0.1)


def test_prompts_are_saved_for_every_step(tmp_path: Path) -> None:
    setting = setting_in(tmp_path)
    texts = json.loads((tmp_path / PROMPTS).read_text(encoding="utf-8"))
    assert len(texts) >= setting.prompts * setting.steps
    assert len({len(text) for text in texts}) == 1


def test_help_says_how_to_run_it() -> None:
    assert "python -m tests.benchmarks.step --vocabulary 4096" in parser().format_help()
