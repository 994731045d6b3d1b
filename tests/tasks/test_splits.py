from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from lightning_opd.tasks.splits import in_split, question_key, split_of
from lightning_opd.types import Prompt


@given(st.lists(st.text(), min_size=1, max_size=3))
def test_a_key_is_a_function_of_the_question_alone(parts: list[str]) -> None:
    key = question_key(*parts)
    assert key == question_key(*parts)
    assert re.fullmatch("[0-9a-f]{16}", key)
    assert split_of(key) in ("train", "validation", "test")


def test_keys_do_not_change_between_versions() -> None:
    """Scores of an older run stay comparable: the hash and the borders are part of the format."""
    assert question_key("arithmetic", "47 + 38") == "d5b248270ba0db1e"
    assert [split_of(key * 8) for key in ("00", "98", "9a", "b2", "b3", "ff")] == [
        "train",
        "train",
        "validation",
        "validation",
        "test",
        "test",
    ]


def test_the_order_within_a_split_is_fixed_and_no_longer_that_of_the_questions() -> None:
    prompts = [Prompt((), question_key(str(i)), "t", "d", {"i": i}) for i in range(200)]
    ordered = [int(str(p.columns["i"])) for p in in_split(prompts, "train")]
    assert ordered == [int(str(p.columns["i"])) for p in in_split(prompts[::-1], "train")]
    assert ordered != sorted(ordered)
