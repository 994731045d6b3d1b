"""What some teachers can do besides scoring: a class each, so that nobody asks one that cannot."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_opd.types import LinearHead, Message, Messages, Prompt, SampledTokens, Signal, TeacherScores, TokenTree

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class ReadsStudentTokens(ABC):
    """A teacher that reads the student's own token ids, so that both must have one tokenizer."""

    @abstractmethod
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Return the tokenizer to compare with the student's."""

    def declared_max_length(self) -> int:
        """Return the longest sequence in tokens that it can score, known before it loads; by default no limit."""
        return 2**31


class ReadsOwnPrompt(ABC):
    """A teacher that reads another prompt than the student, which may be longer."""

    @abstractmethod
    def messages(self, prompt: Prompt, chat: Messages) -> list[Message]:
        """Return the chat that the teacher reads instead of the student's.

        Args:
            prompt: With all that its row holds.
            chat: What the student reads.
        """


class ReadsOwnTokens(ABC):
    """A teacher that reads the student's text in the tokens of its own tokenizer."""

    @abstractmethod
    def set_student_tokenizer(self, tokenizer: PreTrainedTokenizerBase, stop_token_ids: Sequence[int] = ()) -> None:
        """Learn how the student's tokens spell text; called once, before `setup`.

        Args:
            tokenizer: The student's.
            stop_token_ids: What ends the student's replies, beside its `eos_token`.
        """

    @property
    @abstractmethod
    def is_cross_tokenizer(self) -> bool:
        """Whether the two tokenizers differ; known once the student's is set."""


class ScoresLater(ABC):
    """A teacher that computes elsewhere, so that others can compute in the meantime."""

    @abstractmethod
    def submit(self, tokens: SampledTokens, signals: frozenset[Signal]) -> Callable[[], TeacherScores]:
        """Ask for scores, and return at once what waits for them.

        Args:
            tokens: The rows of this teacher.
            signals: What is asked for, as in `Teacher.score`.
        """

    def begin(self, token_ids: Sequence[Sequence[int]], signals: frozenset[Signal]) -> None:
        """Begin to score episodes that have just ended, while others are still generated; by default not at all.

        `submit` gets them later as rows. It may be called from the thread that generates.

        Args:
            token_ids: Of each episode, from its first token to the last one of its last reply.
            signals: What `submit` will be asked for.
        """


class HasOutputHead(ABC):
    """A teacher whose hidden states and output layer give whole distributions."""

    @abstractmethod
    def output_head(self) -> LinearHead | None:
        """Return the layer that turns its hidden states into logits, or None where they fit no student token."""


class Generates(ABC):
    """A teacher that can generate responses, too."""

    @abstractmethod
    def generating(self) -> AbstractContextManager[torch.nn.Module]:
        """Give its causal language model for as long as it generates."""


class ReadsTrees(HasOutputHead):
    """A teacher that reads several continuations of one prompt in one forward pass."""

    @abstractmethod
    def check_reads_trees(self) -> None:
        """Raise unless its states of a tree are those of each branch read alone; called once, after `setup`.

        Raises:
            ConfigError: The model has layers that a mask cannot keep apart.
        """

    @abstractmethod
    def tree_hidden_states(
        self, trunks: Iterable[Sequence[int]], branches: Callable[[Float[Tensor, "trunk hidden"]], TokenTree]
    ) -> Iterator[Float[Tensor, "branches hidden"]]:
        """Read trunks, ask which branches to read beside each, and yield the states after each token of these.

        To be read to the end on every rank. The output layer is there from the first call of `branches` on.

        Args:
            trunks: Tokens one after the other; asked for as they are needed.
            branches: Called once for each trunk, in order, with the states after its tokens. Returns the tokens to
                read beside it; their parents count the tokens of the trunk first, then their own.
        """


class TakesTurns(ABC):
    """A teacher whose weights may wait in the machine's memory while another one is on the device.

    Both methods do nothing where the weights already are where they belong; scores do not depend on them.
    """

    @abstractmethod
    def enter_device(self) -> None:
        """Bring the weights to the device; called before `score`."""

    @abstractmethod
    def leave_device(self) -> None:
        """Free the device's memory; an output head that a loss reads stays there."""
