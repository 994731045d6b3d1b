"""Answers are compared whole; each line below has cost somebody a reward, or has given one for nothing."""

from __future__ import annotations

import importlib.util
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

import lightning_opd.tasks
from lightning_opd.tasks import AnswerReward, ChoiceAnswer, ExactAnswer, MathAnswer, NumberAnswer
from lightning_opd.tasks.answers import MAX_CHARACTERS, _normalised
from lightning_opd.types import Prompt, Trajectory, Turn
from tests.implementations import implementations

NUMBERS = [
    ("3/2", "3/2", True),
    ("3/2", "1.5", True),
    ("3/2", "1/2", False),
    ("3/2", "2", False),
    ("2e5", "1e5", False),
    ("2e5", "2e7", False),
    ("2e5", "5", False),
    ("2e5", "200000", True),
    ("200000", "It is 2e5.", True),
    ("7 000", "1 000", False),
    ("7 000", "7000", True),
    ("7000", "7 000", True),
    ("7000", "7\N{NARROW NO-BREAK SPACE}000", True),
    ("7000", r"7\,000", True),
    ("0", "7 000", False),
    (r"\frac{7}{2}", "3.5", True),
    ("7/2", r"\frac{7}{2}", True),
    ("2", r"\frac{7}{2}", False),
    ("7/2", r"so \boxed{\frac{7}{2}}", True),
    ("7/2", r"$\boxed{3\frac{1}{2}}$", True),
    ("7/2", "3 1/2", True),
    ("1", "3 1/2", False),
    ("-3", "\N{MINUS SIGN}3", True),
    ("-3", "3", False),
    ("1,200", "1200", True),
]


@pytest.mark.parametrize(("answer", "text", "is_right"), NUMBERS)
@pytest.mark.parametrize("match", [NumberAnswer(), MathAnswer()], ids=lambda m: type(m).__name__)
def test_numbers_are_compared_whole(match: AnswerReward, answer: str, text: str, is_right: bool) -> None:
    assert match.matches(text, answer) == is_right


@pytest.mark.parametrize(
    ("answer", "text", "is_right"),
    [
        ("x^2+1", "$1+x^2$", True),
        ("x^2+1", r"\boxed{x^2 - 1}", False),
        (r"\sqrt{2}", r"The length is $\sqrt{2}$.", True),
        (r"\sqrt{2}", "$2$", False),
        (r"2\cdot 10^5", "200000", True),
        ("50%", "0.5", True),
        ("(1,2)", "$(1, 2)$", True),
        ("(1,2)", "$(2, 1)$", False),
        ("8", r"$2^3 = 8$, then \boxed{10}", False),
        ("10", r"$2^3 = 8$, then \boxed{10}", True),
        (r"\frac12", r"\boxed{\frac{2}{4}}", True),
        ("x=5", r"$\boxed{5}$", True),
    ],
)
def test_mathematics_is_compared_by_value(answer: str, text: str, is_right: bool) -> None:
    assert MathAnswer().matches(text, answer) == is_right


def test_what_cannot_be_computed_in_time_is_not_equal() -> None:
    started = time.monotonic()
    assert not MathAnswer(seconds=1.0).matches(r"\boxed{9^{9^{9}}}", "3")
    assert not MathAnswer(seconds=1.0).matches("(" * 100_000 + "3", "4")
    assert time.monotonic() - started < 10


def test_mathematics_is_compared_in_any_thread() -> None:
    """The library's own time limits work in the main thread only."""
    found: list[bool] = []
    thread = threading.Thread(target=lambda: found.append(MathAnswer().matches(r"\boxed{\frac{14}{4}}", "7/2")))
    thread.start()
    thread.join()
    assert found == [True]


def test_a_missing_library_is_named_with_its_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r'pip install "lightning-opd\[math\]"'):
        MathAnswer()


CHOICES = {
    "B": "B",
    "(B)": "B",
    "B.": "B",
    "**B**": "B",
    "B) because A is too small": "B",
    "B: it has four": "B",
    "The answer is B": "B",
    "The answer is (B), not (C).": "B",
    "Answer: **B**": "B",
    "final answer: $B$": "B",
    "I first thought the answer is A. No: the answer is B.": "B",
    r"\boxed{B}": "B",
    r"the answer is A? No. \boxed{\text{B}}": "B",
    "Let me see.\nB": "B",
    "A rough guess": None,
    "Both B and C are possible": None,
    "The answer is B or C.": None,
    r"\boxed{B, C}": None,
    "Bananas": None,
    "b": None,
    "": None,
    "AB": None,
}


@pytest.mark.parametrize(("text", "choice"), CHOICES.items())
def test_a_choice_is_read_where_the_reply_decides(text: str, choice: str | None) -> None:
    for letter in "ABCD":
        assert ChoiceAnswer("ABCD").matches(text, letter) == (letter == choice)
        assert ChoiceAnswer("ABCD").matches(text, f"({letter})") == (letter == choice)


WORDS = {
    "I believe the answer is C": "C",
    "I think it is C.": None,
    "A better choice is B": "B",
    "Answer: I believe it is C": None,
    "Answer: I'm not sure": None,
    "Answer: I\N{RIGHT SINGLE QUOTATION MARK}d say C": None,
    "Answer: A rough guess": None,
    "Answer: A **rough** guess": None,
    "Answer: A-level physics": None,
    "Answer: (I guess C)": None,
    r"\boxed{I think C}": None,
    "The choice I made is right": None,
    "The answer is C, I believe.": "C",
    "The answer is C and I am sure": "C",
    "The answer is C, A or I": None,
    "The answer is A or I.": None,
    "The answer is I or A, one of them": None,
    "The answer is A.": "A",
    "The answer is A": "A",
    "The answer is **A** by far": "A",
    "The answer is 'A'": "A",
    "The answer is A because C is odd": "A",
    "The answer is A\nAnd this is why": "A",
    "Answer: A, since C is odd": "A",
    "Answer: I is right": "I",
    "Option A seems right": "A",
    r"\boxed{A}": "A",
    r"\boxed{\text{I}}": "I",
    "I": "I",
    "I)": "I",
    "(I)": "I",
    "I.": "I",
    "**I**": "I",
    "I. Because it is the first": "I",
    "I guess": None,
    "A guess": None,
    "The answer is C as A is odd": "C",
    "The answer is C for me": "C",
}


@pytest.mark.parametrize(("text", "choice"), WORDS.items())
def test_the_words_a_and_i_are_no_choices(text: str, choice: str | None) -> None:
    assert [letter for letter in "ABCDEFGHIJ" if ChoiceAnswer().matches(text, letter)] == ([choice] if choice else [])


@pytest.mark.parametrize("match", implementations(AnswerReward, lightning_opd.tasks), ids=lambda m: type(m).__name__)
def test_every_comparison_rewards_the_last_reply_by_its_rows_answer(match: AnswerReward) -> None:
    def trajectory(*texts: str, **columns: object) -> Trajectory:
        prompt = Prompt(({"role": "user", "content": "?"},), "key", "t", "d", columns)
        turns = tuple(Turn((), 1, 2, text) for text in texts)
        return Trajectory(prompt, (1, 2), (False, True), (0.0, -1.0), "\n".join(texts), False, 0.0, turns=turns)

    right = next(answer for answer in ("3", "B") if match.expects(answer) is None)
    wrong = "4" if right == "3" else "A"
    assert match(trajectory(wrong, right, answer=right)) == 1.0
    assert match(trajectory(right, wrong, answer=right)) == 0.0
    assert match(trajectory(right)) == 0.0, "a row without an answer"


PARTS = [
    "(",
    ")",
    "*",
    " ",
    "1 ",
    "1,",
    "9",
    "1/",
    "-",
    "1 000 ",
    "answer ",
    "answer: ",
    r"\boxed{",
    "1e",
    "^",
    "B or ",
    "I ",
    "answer: I ",
    "answer: A  ",
]


@pytest.mark.parametrize("part", PARTS)
def test_long_replies_of_one_part_take_no_time(part: str) -> None:
    started = time.process_time()
    for match in (ExactAnswer(), NumberAnswer(), ChoiceAnswer()):
        match.matches(part * (100_000 // len(part)), "B")
    _normalised(part * (MAX_CHARACTERS // len(part)))
    assert time.process_time() - started < 2


@given(st.text(), st.text())
def test_no_text_breaks_a_comparison(text: str, answer: str) -> None:
    for match in (ExactAnswer(), NumberAnswer(), ChoiceAnswer()):
        match.matches(text, answer)
        match.expects(answer)


@pytest.mark.parametrize("wrong", ["", "abc", "A-D", "A1"])
def test_choices_are_capital_letters(wrong: str) -> None:
    with pytest.raises(ValueError, match="capital letters"):
        ChoiceAnswer(wrong)


def test_no_time_for_mathematics_is_refused() -> None:
    with pytest.raises(ValueError, match="`seconds` must be positive"):
        MathAnswer(seconds=0)
