from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from lightning_opd.collection.prompt_checks import LongPrompts, fitting_prompts
from lightning_opd.errors import ConfigError
from lightning_opd.tasks import Jsonl
from lightning_opd.tokenization.chat import render_prompt
from lightning_opd.types import Prompt
from tests.tokenization.templates import tokenizer_with
from tests.world import make_data, make_module, make_trainer


def prompts(*texts: str) -> list[Prompt]:
    return [
        Prompt(({"role": "user", "content": text},), text, "math", "math", {}, f"rows.jsonl:{i}")
        for i, text in enumerate(texts, 1)
    ]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return tokenizer_with("ChatML")


def test_counts_are_those_of_all_prompts(tokenizer: PreTrainedTokenizerBase) -> None:
    rows = prompts("a", "bb", "", "a", "c" * 40)
    kept, counts = fitting_prompts(rows, tokenizer, 8, 40, "drop")
    lengths = sorted(len(render_prompt(tokenizer, row.messages)) for row in rows)
    assert kept == rows[:4]
    assert (counts.num_prompts, counts.num_long, counts.num_empty, counts.num_repeated) == (5, 1, 1, 1)
    assert counts.lengths == (lengths[0], lengths[2], lengths[-1])
    assert str(counts).endswith("1 too long, 1 without words, 1 repeated")


def test_too_long_prompts_are_refused_with_their_lines(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(ConfigError, match=r"2 of 3 prompts are too long: rows\.jsonl:2 has \d+ tokens; rows\.jsonl:3"):
        fitting_prompts(prompts("a", "b" * 50, "c" * 60), tokenizer, 8, 40)


def test_as_little_as_needed_is_truncated(tokenizer: PreTrainedTokenizerBase) -> None:
    [row] = prompts("abcdefghijklmnopqrstuvwxyz" * 2)
    [kept], _ = fitting_prompts([row], tokenizer, 8, 40, "truncate_left")
    text = str(kept.messages[0]["content"])
    assert row.messages[0]["content"].endswith(text)  # type: ignore[attr-defined]  # a text
    assert len(render_prompt(tokenizer, kept.messages)) == 32
    with pytest.raises(ConfigError, match=r"rows\.jsonl:1: too long even without its longest message"):
        fitting_prompts([row], tokenizer, 8, 10, "truncate_left")


def test_a_prompt_that_the_template_refuses_is_named(tokenizer: PreTrainedTokenizerBase) -> None:
    twice = [Prompt(({"role": "user", "content": "a"}, {"role": "user", "content": "b"}), "k", "t", "d", {}, "f:7")]
    with pytest.raises(ConfigError, match=r"f:7: .*Roles must alternate"):
        fitting_prompts(twice, tokenizer_with("alternates"), 8, 40)


@pytest.mark.parametrize(("long_prompts", "num"), [("drop", 8), ("truncate_left", 9)])
def test_a_run_decides_before_it_loads(world: Path, tmp_path: Path, long_prompts: LongPrompts, num: int) -> None:
    rows = [{"prompt": "x" * (400 if i == 3 else i), "teacher": "math"} for i in range(9)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = Jsonl(str(tmp_path / "rows.jsonl"), validation_path=str(tmp_path / "rows.jsonl"))
    with pytest.raises(ConfigError, match=r"1 of 9 prompts are too long: .*rows\.jsonl:4 has"):
        make_trainer(tmp_path).fit(make_module(world), make_data(task))
    data = make_data(task, long_prompts=long_prompts)
    make_trainer(tmp_path, max_steps=1).fit(make_module(world), data)
    assert len(data._prompts("train")) == num  # what the loader gets
