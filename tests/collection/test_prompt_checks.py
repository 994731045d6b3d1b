from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from lightning_opd.collection.prompt_checks import _measure, examine_prompts
from lightning_opd.collection.prompt_limits import LongPrompts, PromptLimits, opening_tokens, several_turns
from lightning_opd.collection.prompt_report import PromptReport
from lightning_opd.errors import ConfigError
from lightning_opd.interfaces import Environment, SingleTurn
from lightning_opd.tasks import CalculatorAgent, Jsonl
from lightning_opd.teachers import LocalTeacher, PrivilegedTeacher
from lightning_opd.tokenization.chat import render_prompt
from lightning_opd.types import Message, Messages, Prompt
from tests.tiny import save_model
from tests.tokenization.templates import tokenizer_with
from tests.world import make_data, make_module, make_trainer


def prompts(*texts: str | None) -> list[Prompt]:
    return [
        Prompt(({"role": "user", "content": text},), str(text), "math", "math", {}, f"rows.jsonl:{i}")
        for i, text in enumerate(texts, 1)
    ]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return tokenizer_with("ChatML")


def test_counts_are_those_of_all_prompts(tokenizer: PreTrainedTokenizerBase) -> None:
    rows = prompts("a", "bb", "", "a", "c" * 40, None)
    kept, report = examine_prompts(rows, tokenizer, PromptLimits(8, 40, "drop"))
    lengths = sorted(len(render_prompt(tokenizer, row.messages)) for row in rows)
    assert kept == [*rows[:4], rows[5]]
    assert report.lengths == (lengths[0], lengths[3], lengths[-1])
    assert str(report) == (
        f"6 prompts of {lengths[0]} to {lengths[-1]} tokens (median {lengths[3]}); by teacher math 6; 1 too long "
        f"(rows.jsonl:5 has {lengths[-1]} tokens); 1 with a message without content (rows.jsonl:6); 2 without words "
        "(rows.jsonl:3, rows.jsonl:6); 1 repeated (rows.jsonl:4 as rows.jsonl:1)"
    )
    assert report.problems() == []


def test_domains_are_counted_where_they_are_no_teachers(tokenizer: PreTrainedTokenizerBase) -> None:
    rows = [Prompt(row.messages, row.key, "one", row.key[0], {}) for row in prompts("a1", "b1", "a2")]
    _, report = examine_prompts(rows, tokenizer, PromptLimits(8, 40), ["one"])
    assert "by teacher one 3; by domain a 2, b 1" in str(report)


def test_many_names_take_one_screen(tokenizer: PreTrainedTokenizerBase) -> None:
    rows = [Prompt(row.messages, row.key, row.key, row.key) for row in prompts(*(f"n{i:02}" for i in range(40)))]
    _, report = examine_prompts(rows, tokenizer, PromptLimits(8, 40), ["math"])
    assert str(report).endswith("n10 1, n11 1, 28 more")
    assert len(problems(report, 3)[-1]) < 300
    assert problems(report, 3)[-1].endswith("So for 37 more names.")


def problems(report: PromptReport, number: int) -> list[str]:
    found = report.problems()
    assert len(found) == number, found
    return found


def test_too_long_prompts_are_refused_with_their_lines(tokenizer: PreTrainedTokenizerBase) -> None:
    _, report = examine_prompts(prompts("a", "b" * 50, "c" * 60), tokenizer, PromptLimits(8, 40))
    [problem] = problems(report, 1)
    assert problem.startswith("2 of 3 prompts are too long: rows.jsonl:2 has ")
    assert "; rows.jsonl:3 has" in problem


def test_as_little_as_needed_is_truncated(tokenizer: PreTrainedTokenizerBase) -> None:
    [row] = prompts("abcdefghijklmnopqrstuvwxyz" * 2)
    [kept], report = examine_prompts([row], tokenizer, PromptLimits(8, 40, "truncate_left"))
    text = str(kept.messages[0]["content"])
    assert row.messages[0]["content"].endswith(text)  # type: ignore[attr-defined]  # a text
    assert len(render_prompt(tokenizer, kept.messages)) == 32
    assert report.problems() == []
    _, report = examine_prompts([row], tokenizer, PromptLimits(8, 10, "truncate_left"))
    assert problems(report, 1)[0].startswith("rows.jsonl:1: too long even without its longest message")


def test_prompts_that_the_template_refuses_are_named() -> None:
    twice: tuple[Message, ...] = ({"role": "user", "content": "a"}, {"role": "user", "content": "b"})
    rows = [Prompt(twice, f"k{i}", "t", "d", {}, f"f:{i}") for i in range(7)]
    _, report = examine_prompts([*rows, *prompts("a")], tokenizer_with("alternates"), PromptLimits(8, 40))
    [problem] = problems(report, 1)
    assert problem.startswith("f:0: ")
    assert "Roles must alternate" in problem
    assert problem.endswith("So for 6 more of 8 prompts (f:1, f:2).")
    assert report.num_measured == 8


def test_unknown_teachers_are_counted_and_named(tokenizer: PreTrainedTokenizerBase) -> None:
    _, report = examine_prompts(prompts("a", "b", "c", "d"), tokenizer, PromptLimits(8, 40), ["code", "maths"])
    [problem] = problems(report, 1)
    assert "4 of 4 prompts ask for teacher `math` (rows.jsonl:1, rows.jsonl:2, rows.jsonl:3, …)" in problem
    assert "Did you mean `maths`?" in problem


@pytest.mark.parametrize("long_prompts", ["error", "drop", "truncate_left"])
def test_a_sample_finds_every_prompt_that_is_too_long(
    tokenizer: PreTrainedTokenizerBase, long_prompts: LongPrompts
) -> None:
    rows = prompts(*("x" * (900 if i % 97 == 3 else i % 7) for i in range(1, 400)))
    kept, everything = examine_prompts(rows, tokenizer, PromptLimits(8, 400, long_prompts))
    same, report = examine_prompts(rows, tokenizer, PromptLimits(8, 400, long_prompts, max_measured=10))
    assert (same, report.long) == (kept, everything.long)
    assert report.long.num == 5
    assert report.num_measured <= 15
    assert f"{report.num_measured} of them measured" in str(report)


@pytest.mark.parametrize(("long_prompts", "num"), [("drop", 8), ("truncate_left", 9)])
def test_a_run_decides_before_it_loads(world: Path, tmp_path: Path, long_prompts: LongPrompts, num: int) -> None:
    rows = [{"prompt": "x" * (400 if i == 3 else i), "teacher": "math"} for i in range(9)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = Jsonl(str(tmp_path / "rows.jsonl"), validation_path=str(tmp_path / "rows.jsonl"))
    with pytest.raises(ConfigError, match=r"1 of 9 prompts are too long: .*rows\.jsonl:4 has"):
        make_trainer(tmp_path).fit(make_module(world), make_data(task))
    data = make_data(task, long_prompts=long_prompts)
    make_trainer(tmp_path, max_steps=1).fit(make_module(world), data)
    assert len(data.fitting_prompts("train")) == num  # what the loader gets


def test_what_an_environment_adds_to_its_prompts_counts() -> None:
    class WithManual(CalculatorAgent):
        def environment(self, prompt: Prompt) -> Environment:
            class Manual(SingleTurn):
                def reset(self) -> Messages:
                    return ({"role": "system", "content": "a manual of some length"}, *prompt.messages)

            return Manual(self, prompt)

    task, tokenizer = WithManual(), tokenizer_with("ChatML")
    rows = [*task.prompts("train")[:20]]
    opened = [len(render_prompt(tokenizer, task.environment(row).reset())) for row in rows]
    openings = opening_tokens(task, rows, tokenizer)
    for most in (None, 5):
        limits = PromptLimits(8, max(opened) + 7, "drop", most, opening_tokens=openings)
        kept, report = examine_prompts(rows, tokenizer, limits)
        assert report.long.num == sum(length == max(opened) for length in opened)
        assert report.lengths[2] == max(opened)
        assert len(kept) == len(rows) - report.long.num


def test_a_teacher_with_fewer_positions_than_the_student_limits_its_own_prompts(world: Path, tmp_path: Path) -> None:
    short = save_model(tmp_path / "short", max_position_embeddings=64)
    rows = [{"prompt": "x" * length, "teacher": name} for length in (1, 2, 60) for name in ("math", "code")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = Jsonl(str(tmp_path / "rows.jsonl"), validation_path=str(tmp_path / "rows.jsonl"))
    module = make_module(world, teachers={"math": LocalTeacher(str(short))})
    with pytest.raises(ConfigError, match=r"1 of 6 prompts are too long: .*rows\.jsonl:5 .* or teacher `math`'s of 64"):
        make_trainer(tmp_path).fit(module, make_data(task))


@pytest.mark.parametrize("most", [None, 2])
def test_a_hint_that_only_the_teacher_reads_counts(tokenizer: PreTrainedTokenizerBase, most: int | None) -> None:
    teacher = PrivilegedTeacher(LocalTeacher("models/base"), "{content} The answer is {answer}.")
    rows = [
        Prompt(row.messages, row.key, "math", "math", {"answer": "1" * (30 if i == 4 else 1)}, row.place)
        for i, row in enumerate(prompts(*"abcdefgh"))
    ]
    limits = PromptLimits(8, 60, "drop", most, {"math": 60}, own_prompts={"math": teacher})
    kept, report = examine_prompts(rows, tokenizer, limits)
    assert [row.key for row in kept] == list("abcdfgh")
    assert "1 too long (rows.jsonl:5 has" in str(report)
    without, _ = examine_prompts(rows, tokenizer, PromptLimits(8, 60, "drop", most, {"math": 60}))
    assert len(without) == 8
    wide, _ = examine_prompts(rows, tokenizer, dataclasses.replace(limits, teacher_lengths={"math": 100}))
    assert len(wide) == 8


def test_a_run_with_a_hint_for_the_teacher_is_measured_with_it(world: Path, tmp_path: Path) -> None:
    short = save_model(tmp_path / "short", max_position_embeddings=64)
    rows = [{"prompt": "x", "teacher": "math", "hint": "y" * length} for length in (1, 60)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = Jsonl(str(tmp_path / "rows.jsonl"), validation_path=str(tmp_path / "rows.jsonl"))
    teacher = PrivilegedTeacher(LocalTeacher(str(short)), "{content} {hint}")
    with pytest.raises(ConfigError, match=r"1 of 2 prompts are too long: .*rows\.jsonl:2 .* or teacher `math`'s of 64"):
        make_trainer(tmp_path).fit(make_module(world, teachers={"math": teacher}), make_data(task))


def test_turns_that_may_outgrow_a_shorter_teacher_are_told_with_numbers(tokenizer: PreTrainedTokenizerBase) -> None:
    task = CalculatorAgent()
    rows = [*task.prompts("train")[:4]]
    [name] = {row.teacher for row in rows}
    longest = max(len(render_prompt(tokenizer, row.messages)) for row in rows)
    limits = PromptLimits(8, 10_000, teacher_lengths={name: longest + 20}, max_turns=3)
    limits = dataclasses.replace(limits, several_turns=several_turns(task, rows))
    _, report = examine_prompts(rows, tokenizer, limits)
    [note] = report.notes()
    assert f"may grow to {longest + 24:,} tokens (a prompt of {longest:,}, 3 turns of up to 8 tokens" in note
    assert f"more than the {longest + 20:,} that teacher `{name}` can read" in note
    assert f"`data.sampling.max_episode_tokens: {longest + 20}`" in note
    for changes in ({"max_turns": 2}, {"several_turns": ()}, {"max_length": longest + 20}):
        _, report = examine_prompts(rows, tokenizer, dataclasses.replace(limits, **changes))
        assert not report.notes()


def test_ranks_share_the_work_and_find_the_same(tokenizer: PreTrainedTokenizerBase) -> None:
    rows = prompts(*("x" * (90 if i % 5 == 3 else i) for i in range(1, 12)))
    own = [_measure(rows, range(len(rows)), tokenizer, PromptLimits(8, 60), rank, 3) for rank in range(3)]
    assert sorted(i for part in own for i in part) == list(range(11))
    assert {len(part) for part in own} == {3, 4}
    assert {i: m for part in own for i, m in part.items()} == _measure(
        rows, range(len(rows)), tokenizer, PromptLimits(8, 60), 0, 1
    )
