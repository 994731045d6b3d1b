from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_opd.tokenization.thoughts import KNOWN_TAGS, count_thoughts, opens_thought, split_thoughts

PIECES = st.lists(st.sampled_from(["<think>", "</think>", "a", "\n", "<tool_call>"]))


@given(PIECES, st.booleans())
def test_thoughts_and_the_rest_are_the_whole_reply(pieces: list[str], is_open: bool) -> None:
    text = "".join(pieces)
    thoughts, said = split_thoughts(text, is_open=is_open)
    assert sorted(thoughts + said) == sorted(text)
    assert "<think>" not in said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Yes.", "Yes."),
        ("<think>a</think>Yes.", "Yes."),
        ("<think>a</think>Yes, <think>b</think>no.", "Yes, no."),
        ("<think>what does <think> mean?</think>Yes.", "Yes."),
        ("<think>never closed", ""),
        ("a </think> that nothing opened", "a </think> that nothing opened"),
    ],
)
def test_what_is_said_is_what_stands_outside_of_thoughts(text: str, said: str) -> None:
    assert split_thoughts(text)[1] == said


@pytest.mark.parametrize("tags", KNOWN_TAGS)
def test_a_thought_that_the_prompt_opened_goes_on_in_the_reply(tags: tuple[str, str]) -> None:
    assert opens_thought(f"assistant\n{tags[0]}\n", tags)
    assert not opens_thought(f"assistant\n{tags[0]}\n\n{tags[1]}\n", tags)
    assert not opens_thought(f"What does {tags[0]} mean?\nassistant\n", tags)
    assert split_thoughts(f"a{tags[1]}b", tags, is_open=True) == (f"a{tags[1]}", "b")
    assert split_thoughts("never closed", tags, is_open=True)[1] == ""


def test_thoughts_are_counted_in_pairs_of_tags() -> None:
    assert count_thoughts("x") == 0
    assert count_thoughts("<think></think>a<think></think>") == 2
    assert count_thoughts("a</think>b", is_open=True) == 1
    assert count_thoughts("a</think>b") is count_thoughts("<think>a") is count_thoughts("a", is_open=True) is None
