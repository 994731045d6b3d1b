"""What the prompts of a split look like to the student: counts, and the first few places of what is odd or wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from typing_extensions import override

from lightning_opd.errors import did_you_mean
from lightning_opd.tokenization.visible import visible

NUM_SHOWN = 3
"""Places, or wrong names, of one kind that are shown."""

NUM_NAMED = 12
"""Teachers or domains that are counted by name."""


@dataclass(frozen=True)
class Found:
    """Prompts that have one thing in common.

    Args:
        num: How many there are.
        examples: Of the first few: where they come from, with what is to be said about them.
    """

    num: int = 0
    examples: tuple[str, ...] = ()

    @staticmethod
    def of(places: Sequence[str]) -> Found:
        """Return the number of places, and the first few that have a name."""
        return Found(len(places), tuple(place for place in places if place)[:NUM_SHOWN])

    def listed(self, separator: str = ", ") -> str:
        """Return the examples, with an ellipsis where there are more."""
        more = [] if len(self.examples) == self.num else ["…"]
        return separator.join([*self.examples, *more])


@dataclass(frozen=True)
class PromptReport:
    """All prompts of a split, rendered and measured.

    Args:
        num_prompts: All of them.
        num_measured: Those that were rendered; the others are too short to be too long.
        lengths: Shortest, median and longest measured prompt in tokens.
        teachers: Number of prompts by the name of their teacher.
        domains: Number of prompts by domain.
        long: Those that leave no space for a reply of `max_new_tokens`, with their lengths.
        refused: Those that the chat template refuses, or that no truncation makes short enough, with the reason.
        null: Those with a message that has neither content nor tool calls.
        empty: Those whose last message has no words.
        repeated: Those that ask what an earlier one asks.
        unknown_teachers: Those whose teacher there is not, by its name.
        max_new_tokens: Longest reply in tokens.
        max_length: Longest sequence in tokens.
        refuses_long: Whether a too long prompt is an error.
        known_teachers: Names of the teachers there are.
        teacher_lengths: Longest sequence in tokens of each teacher that has fewer positions than the student, or reads
            another prompt.
        source: What `max_length` is, in the user's words.
        outgrown: What is to be said of episodes that may grow too long for their teachers.
        has_episodes: Whether some episodes may have more than one reply.
    """

    num_prompts: int
    num_measured: int
    lengths: tuple[int, int, int]
    teachers: Mapping[str, int]
    domains: Mapping[str, int]
    long: Found
    refused: Found
    null: Found
    empty: Found
    repeated: Found
    unknown_teachers: Mapping[str, Found]
    max_new_tokens: int
    max_length: int
    refuses_long: bool
    known_teachers: tuple[str, ...] = ()
    teacher_lengths: Mapping[str, int] = field(default_factory=dict)
    source: str = "the student's context"
    outgrown: tuple[str, ...] = ()
    has_episodes: bool = False

    @override
    def __str__(self) -> str:
        """Say it in one line."""
        if not self.num_prompts:
            return "no prompts"
        few, median, most = self.lengths
        measured = "" if self.num_measured == self.num_prompts else f", {self.num_measured:,} of them measured"
        parts = [f"{self.num_prompts:,} prompts of {few:,} to {most:,} tokens (median {median:,}{measured})"]
        parts += [f"by teacher {_counted(self.teachers)}"] if self.teachers else []
        parts += [f"by domain {_counted(self.domains)}"] if self.domains != self.teachers else []
        return "; ".join([*parts, *self.notes()])

    def notes(self) -> list[str]:
        """Return what is odd about some prompts, and no error."""
        odd = {
            "too long": Found() if self.refuses_long else self.long,
            "with a message without content": self.null,
            "without words": self.empty,
            "repeated": self.repeated,
        }
        notes = [
            f"{found.num:,} {name}" + (f" ({found.listed()})" if found.examples else "")
            for name, found in odd.items()
            if found.num
        ]
        return [*notes, *self.outgrown]

    def problems(self) -> list[str]:
        """Return what is wrong with some prompts: a line each, with its cure."""
        found = []
        if self.long.num and self.refuses_long:
            teachers = "".join(f" or teacher `{name}`'s of {n:,}" for name, n in self.teacher_lengths.items())
            found.append(
                f"{self.long.num:,} of {self.num_prompts:,} prompts are too long: {self.long.listed('; ')}. With "
                f"`max_new_tokens` {self.max_new_tokens:,} they exceed {self.source} of {self.max_length:,} "
                f"tokens{teachers}. Set `data.long_prompts` to `drop` or `truncate_left`, shorten them, or lower "
                "`max_new_tokens`."
            )
        if self.refused.num:
            first, *others = self.refused.examples
            more = (
                f" So for {self.refused.num - 1:,} more of {self.num_prompts:,} prompts" if self.refused.num > 1 else ""
            )
            places = ", ".join(other.partition(": ")[0] for other in others)
            found.append(first + more + (f" ({places})." if places else "." if more else ""))
        known = list(self.known_teachers)
        for name, prompts in list(self.unknown_teachers.items())[:NUM_SHOWN]:
            places = f" ({prompts.listed()})" if prompts.examples else ""
            found.append(
                f"{prompts.num:,} of {self.num_prompts:,} prompts ask for teacher `{name}`{places}; the known teachers "
                f"are {known}.{did_you_mean(name, known)} Add it under `model.teachers`, or correct the prompts' "
                "teacher field."
            )
        if len(self.unknown_teachers) > NUM_SHOWN:
            found[-1] += f" So for {len(self.unknown_teachers) - NUM_SHOWN:,} more names."
        return found


def _counted(counts: Mapping[str, int]) -> str:
    named = [f"{visible(name)} {num:,}" for name, num in sorted(counts.items())]
    more = [f"{len(named) - NUM_NAMED:,} more"] if len(named) > NUM_NAMED else []
    return ", ".join([*named[:NUM_NAMED], *more])
