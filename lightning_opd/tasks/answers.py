"""Whether a reply's answer equals the row's: as text, as a choice, as a number, or as mathematics."""

from __future__ import annotations

import functools
import importlib.util
import logging
import re
import string
from abc import abstractmethod
from dataclasses import dataclass

from typing_extensions import override

from lightning_opd.errors import ConfigError, MissingPackageError
from lightning_opd.interfaces import RewardFunction
from lightning_opd.tasks.numbers import GROUPED, SPACES, last_number, plain_decimal
from lightning_opd.tasks.tools.limits import TimeUp, call_in_child
from lightning_opd.types import Trajectory

MAX_CHARACTERS = 4096
"""Characters at the end of a reply in which an answer is looked for."""

MARKS = string.punctuation + string.whitespace
"""What may stand around a choice."""

WORDS_AFTER_CHOICES = "and|as|because|but|does|due|has|is|or|since|which|with"
"""What follows neither the article "A" nor the pronoun "I", so that a letter before it is a letter."""

ENDS_LETTER = r"(?!['\N{RIGHT SINGLE QUOTATION MARK}_-]?[^\W_])"
ENDS_CHOICE = rf"{ENDS_LETTER}(?!(?<=[AI])(?<!ption A)[^\S\n]++[\"'$*_`]{{0,3}}(?!(?:{WORDS_AFTER_CHOICES})\b)[^\W_])"
"""Stands after a letter that is a choice: no part of a word, as in "I'm", and no word, as in "A rough guess"."""

MAX_MEMORY = 1 << 30
"""Bytes that one comparison may take: what it computes may have more digits than the machine has memory."""


class AnswerReward(RewardFunction):
    """1 where the last reply's answer equals the `answer` of its row, or one of a list, else 0; 0 for a row without."""

    @abstractmethod
    def matches(self, text: str, answer: str) -> bool:
        """Return whether a reply's answer equals the right one.

        Args:
            text: The whole reply.
            answer: The right answer.
        """

    def expects(self, answer: str) -> str | None:
        """Return what a right answer has to be if this one is not that, so that no reply could ever equal it."""
        return None

    @override
    def __call__(self, trajectory: Trajectory) -> float:
        answer = trajectory.prompt.columns.get("answer")
        text = trajectory.turns[-1].text if trajectory.turns else trajectory.text
        return float(any(self.matches(text, right) for right in answers_of(answer)))


def answers_of(answer: object) -> list[str]:
    """Return the texts of a row's `answer`, each of which is right; none for a row without one.

    Example:
        >>> answers_of(4), answers_of(["4", "four"]), answers_of(None)
        (['4'], ['4', 'four'], [])
    """
    if answer is None:
        return []
    return [str(value) for value in answer] if isinstance(answer, list | tuple) else [str(answer)]


@dataclass(frozen=True)
class ExactAnswer(AnswerReward):
    """The whole reply is the answer; only white space around them is left out.

    Example:
        >>> [ExactAnswer().matches(text, "yes") for text in (" yes ", "Yes")]
        [True, False]
    """

    @override
    def matches(self, text: str, answer: str) -> bool:
        return text.strip() == answer.strip()


@dataclass(frozen=True)
class NumberAnswer(AnswerReward):
    """The last number of the reply has the answer's value: 1,200.50 is 1200.5, and 3/2 is not 1/2.

    It knows plain numbers, fractions, powers of ten (2e5) and digits in groups. For terms use `MathAnswer`.

    Example:
        >>> [NumberAnswer().matches(text, "3/2") for text in ("It is 1.5.", "It is 1/2.")]
        [True, False]
    """

    @override
    def matches(self, text: str, answer: str) -> bool:
        number = last_number(text)
        return number is not None and number == last_number(answer)

    @override
    def expects(self, answer: str) -> str | None:
        return None if last_number(answer) is not None else "a number"


@dataclass(frozen=True)
class ChoiceAnswer(AnswerReward):
    r"""The reply decides for the answer's letter, and for no other.

    It decides by the last of these that it has, in this order: `\boxed{B}`; "answer is (B)", "Answer: **B**" or
    "option B"; a reply that begins with "B)", "B." or is "B" alone; a last line that is "B" alone. The words "A" and
    "I" are no choices: "Answer: I believe so" decides for none.

    Args:
        choices: The letters to choose from.

    Example:
        >>> [ChoiceAnswer().matches(text, "B") for text in ("The answer is (B).", "Not A, so B?", "answer: B or C")]
        [True, False, False]
    """

    choices: str = "ABCDEFGHIJ"

    def __post_init__(self) -> None:
        """Refuse anything but different capital letters."""
        if not (self.choices.isascii() and self.choices.isalpha() and self.choices.isupper()):
            msg = f"`choices` must be capital letters such as ABCD, got {self.choices!r}."
            raise ConfigError(msg)

    @override
    def matches(self, text: str, answer: str) -> bool:
        return self._chosen(text) == self._letter(answer)

    @override
    def expects(self, answer: str) -> str | None:
        is_letter = re.fullmatch(rf"[{self.choices}]", self._letter(answer))
        return None if is_letter else f"one letter of {self.choices}"

    def _letter(self, answer: str) -> str:
        return answer.strip().strip("()[].*").strip()

    def _chosen(self, text: str) -> str | None:
        """Return the letter that a reply decides for, or None where it decides for none or several.

        All repetitions are bounded: a reply may be thousands of brackets.
        """
        start, text = text.strip()[:8], text[-MAX_CHARACTERS:].strip()
        letter = rf"([{self.choices}]){ENDS_CHOICE}"
        one = rf"[(\[*_`\"']{{0,4}}(?:\\(?:text|mathrm|textbf|mathbf)\{{)?\(?{letter}"
        another = rf"(?:,|/|or\b|and\b|&)\s{{0,3}}[(\[*_`]{{0,4}}[{self.choices}]{ENDS_CHOICE}"
        others = rf"(?![)\]*_`\"'}}]{{0,4}}\s{{0,3}}{another})"
        for pattern in (
            rf"\\boxed\{{\s{{0,3}}{one}{others}",
            rf"(?:(?i:answer|choice|option)\W{{0,4}}(?i:is|would be|must be|:|=)?[\s:*_$]{{0,6}}){one}{others}",
        ):
            found = re.findall(pattern, text)
            if found:
                return str(found[-1])
        for line in (text, *text.splitlines()[-1:]):
            alone = re.fullmatch(rf"(?:(?:text|mathrm|textbf|mathbf)\{{)?{letter}", line.strip(MARKS))
            if alone:
                return alone[1]
        first = re.match(rf"[(*]{{0,3}}([{self.choices}])\*{{0,2}}[).:](?![A-Za-z0-9])", start)
        return first[1] if first else None


@dataclass(frozen=True)
class MathAnswer(AnswerReward):
    r"""The reply's mathematics has the answer's value: \frac{7}{2} is 3.5, x + 1 is 1 + x, and 3/2 is not 1/2.

    What stands in `\boxed{}` counts before what follows "answer", and that before the last term. Each comparison
    runs in a child of its own, in any thread; a reply that cannot be compared in time (9^{9^9}) is not equal.
    Needs `pip install "lightning-opd[math]"`.

    Args:
        seconds: Most time for one comparison.

    Reference:
        math-verify of Hugging Face (software, 2025), which finds and compares the terms.
    """

    seconds: float = 5.0

    def __post_init__(self) -> None:
        """Refuse no time, and a missing library."""
        if not self.seconds > 0:
            msg = f"`seconds` must be positive, got {self.seconds}."
            raise ConfigError(msg)
        if importlib.util.find_spec("math_verify") is None:
            msg = 'MathAnswer needs the library math-verify. Install it: pip install "lightning-opd[math]".'
            raise MissingPackageError(msg)

    @override
    def matches(self, text: str, answer: str) -> bool:
        if text.strip() == answer.strip():
            return True
        _warm_up()
        try:
            return call_in_child(lambda: str(_is_equal(text, answer)), self.seconds, MAX_MEMORY) == str(True)
        except (TimeUp, RuntimeError):  # the child was too slow, or ended at a limit of memory or depth
            return False


@functools.cache
def _warm_up() -> None:
    """Load the library and its grammars once in this process: a child would do it again for every reply."""
    import math_verify

    logging.getLogger(math_verify.__name__).setLevel(logging.ERROR)  # it warns that it runs without its alarms
    _is_equal(r"$\sqrt{2} x$ is \boxed{\frac{1}{2}}", "x^2 + 1")


def _is_equal(text: str, answer: str) -> bool:
    import math_verify

    answer, text = _normalised(answer), _normalised(text[-MAX_CHARACTERS:])
    is_marked = "$" in answer or "\\boxed" in answer or "\\(" in answer
    right = math_verify.parse(answer if is_marked else f"${answer}$", parsing_timeout=None)
    right = right or math_verify.parse(answer, parsing_timeout=None)
    given = math_verify.parse(text, parsing_timeout=None) or math_verify.parse(f"${text}$", parsing_timeout=None)
    return bool(math_verify.verify(right, given, timeout_seconds=None))


def _normalised(text: str) -> str:
    """Return a text whose numbers are written out, since math-verify reads 2e5 as 2 and 3 1/2 as 1."""
    text = text.replace("\N{MINUS SIGN}", "-")
    text = re.sub(rf"(?<![\d.]){GROUPED}", lambda found: re.sub(rf"[{SPACES}~]|\\[,; ]|\{{,\}}", "", found[0]), text)
    text = re.sub(
        r"(?<![\w.\\])(?:\d++(?:\.\d*+)?|\.\d++)[eE][+-]?\d{1,4}(?![\w.]*\w)", lambda x: plain_decimal(x[0]), text
    )
    return re.sub(
        r"(?<![\d./^])(\d{1,9}) (\d{1,9})/(\d{1,9})(?![\d/])",
        lambda x: f"{int(x[1]) * int(x[3]) + int(x[2])}/{x[3]}",
        text,
        flags=re.ASCII,
    )
