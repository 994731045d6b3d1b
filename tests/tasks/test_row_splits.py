"""All rows are trained on unless a split is asked for."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from lightning_opd.errors import ConfigError
from lightning_opd.interfaces import Split
from lightning_opd.tasks import Jsonl
from lightning_opd.tasks.rows.store import PromptView
from lightning_opd.tasks.splits import in_split, question_key

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
ROWS: list[dict[str, Any]] = [{"prompt": f"Question {i}?", "teacher": "math", "response": str(i)} for i in range(407)]


def test_all_rows_are_trained_on_in_their_order() -> None:
    task = Jsonl(ROWS)
    assert [p.messages[0]["content"] for p in task.prompts("train")] == [row["prompt"] for row in ROWS]
    assert not task.prompts("validation")
    assert not task.prompts("test")


@pytest.mark.parametrize("split", ["hash", {"validation": 0.1, "test": 0.3}])
def test_the_split_by_hash_is_the_one_of_every_other_task(split: Any) -> None:
    everything = Jsonl(ROWS).prompts("train")
    task = Jsonl(ROWS, split=split)
    for name in SPLITS:
        assert list(task.prompts(name)) == list(in_split(everything, name))
    assert 0.5 < len(task.prompts("train")) / 407 < 0.7


@pytest.mark.parametrize(
    "split", [{"validation": 0.1}, {"test": 0.5}, {"validation": 0.25, "test": 0.25}, {"validation": 0.0}, {}]
)
def test_fractions_are_disjoint_and_about_as_large_as_asked_for(split: Mapping[str, float]) -> None:
    task = Jsonl(ROWS, split=split)
    keys = {name: {p.key for p in task.prompts(name)} for name in SPLITS}
    assert sum(len(task.prompts(name)) for name in SPLITS) == 407 == len(set().union(*keys.values()))
    for name in ("validation", "test"):
        assert abs(len(keys[name]) / 407 - split.get(name, 0)) < 0.06
        assert bool(keys[name]) == bool(split.get(name))


def test_a_questions_key_is_the_hash_of_its_messages_as_json() -> None:
    """Scores and splits of an older run stay comparable: the form of the JSON is part of the format."""
    [prompt] = Jsonl([{"prompt": "Hü", "teacher": "math"}]).prompts("train")
    assert prompt.key == question_key(r'[{"content": "H\u00fc", "role": "user"}]')


def test_a_larger_validation_keeps_the_tests_questions() -> None:
    small, large = (Jsonl(ROWS, split={"validation": x, "test": 0.2}) for x in (0.05, 0.3))
    assert list(small.prompts("test")) == list(large.prompts("test"))


def test_a_fraction_may_stand_beside_another_splits_file() -> None:
    task = Jsonl(ROWS, test_path=ROWS[:7], split={"validation": 0.1})
    assert len(task.prompts("train")) + len(task.prompts("validation")) == 407
    assert len(task.prompts("test")) == 7
    with pytest.raises(ConfigError, match="Leave `test` out of `split`"):
        Jsonl(ROWS, test_path=ROWS[:7], split="hash").prompts("test")


@pytest.mark.parametrize(
    ("split", "said"),
    [
        ({"valid": 0.1}, "Did you mean `validation`"),
        ({"train": 0.9}, "What is left is trained on"),
        ({"test": 1.5}, "`split.test` must be a fraction"),
        ({"test": -0.1}, "`split.test` must be a fraction"),
        ({"validation": 0.5, "test": 0.5}, "nothing to train on"),
    ],
)
def test_a_split_that_cannot_be_made_is_refused_at_once(split: dict[str, float], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Jsonl("no such file", split=split)


def test_the_first_demonstrations_are_a_random_sample_of_the_rows() -> None:
    chosen = [int(str(chat[-1]["content"])) for chat in Jsonl(ROWS).demonstrations("train", 40, seed=0)]
    assert chosen != sorted(chosen)
    assert 100 < sum(chosen) / 40 < 300
    own = Jsonl(ROWS, validation_path=ROWS[:1]).demonstrations("train", 3, seed=0)
    assert [chat[-1]["content"] for chat in own] == ["0", "1", "2"], "a user's own split keeps its order"


def test_a_split_without_rows_has_no_demonstrations_and_says_how_to_get_some() -> None:
    with pytest.raises(ConfigError, match=r"no rows for `validation`.*`split: \{validation: 0.1\}`.*`validation_path`"):
        Jsonl(ROWS).demonstrations("validation", 2, seed=0)


def test_rows_are_read_once_and_kept_once_for_all_splits(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    task = Jsonl(str(path), split="hash")
    train = task.prompts("train")
    path.unlink()
    assert sum(len(task.prompts(split)) for split in SPLITS) == 407
    assert task.prompts("train") is train


def test_prompts_are_a_sequence_that_unpacks_what_is_asked_for() -> None:
    prompts = Jsonl(ROWS[:5]).prompts("train")
    assert isinstance(prompts, PromptView)
    assert prompts[-1] == prompts[4] == list(prompts)[4]
    assert prompts[1:3] == [prompts[1], prompts[2]]
    assert [p.place for p in prompts[::2]] == ["row 1", "row 3", "row 5"]
    assert prompts == list(itertools.islice(prompts, 5))
    assert prompts != prompts[:4]
    assert prompts[0].columns is not prompts[0].columns
    with pytest.raises(IndexError):
        prompts[5]
