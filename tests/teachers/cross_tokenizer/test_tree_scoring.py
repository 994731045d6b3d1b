from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typing_extensions import override

from lightning_opd.errors import ConfigError
from lightning_opd.functional.credit import PrefixCredit
from lightning_opd.models import READ_AT_ONCE, load_tokenizer
from lightning_opd.teachers import CrossTokenizerTeacher, LocalTeacher
from lightning_opd.teachers.cross_tokenizer.prefix_tree import PrefixTree
from lightning_opd.teachers.local_trees import MAX_TREE_TOKENS
from lightning_opd.types import RolloutBatch, Signal, TeacherScores, TokenTree
from tests.teachers.cross_tokenizer.foreign import CPU, REPLIES, scored_batch
from tests.tiny import save_model
from tests.trees import pack, whole_tree_states

BOTH = ("sliding_attention", "full_attention")
SIGNALS = frozenset({Signal.LOGPROBS, Signal.TOP_LOGPROBS})
LONG = "What is 7 + 8? It is 15, since 7+8=15 and result is calculated.\n"


class ReadsWholeTrees(LocalTeacher):
    """Reads each tree in one forward, with a mask over all its tokens."""

    def __init__(self, path: str) -> None:
        super().__init__(path, dtype="float64")
        self.num_read: list[int] = []

    @override
    def tree_hidden_states(
        self, trunks: Iterable[Sequence[int]], branches: Callable[[Tensor], TokenTree]
    ) -> Iterator[Tensor]:
        for trunk in trunks:
            parents = list(range(-1, len(trunk) - 1))
            more = branches(self._states(trunk, parents))
            self.num_read.append(len(trunk) + len(more.token_ids))
            yield self._states([*trunk, *more.token_ids], [*parents, *more.parents])[len(trunk) :]

    def _states(self, token_ids: Sequence[int], parents: Sequence[int]) -> Tensor:
        root, *rest = token_ids
        return whole_tree_states(self._loaded(), *pack([[root]], [PrefixTree([-1, *rest], list(parents))]))[0]


def both_ways(world: Path, folder: Path, replies: tuple[str, ...]) -> tuple[RolloutBatch, list[TeacherScores], int]:
    """Score replies with trees read in chunks, and in one forward each; return the most tokens read for one, too."""
    found, whole = [], ReadsWholeTrees(str(folder))
    for scorer in (LocalTeacher(str(folder), dtype="float64"), whole):
        teacher = CrossTokenizerTeacher(str(folder), PrefixCredit(), scorer=scorer, top_k=8)
        teacher.set_student_tokenizer(load_tokenizer(str(world / "student")))
        teacher.setup(CPU)
        batch = scored_batch(world, teacher, replies)
        found.append(teacher.score(batch, SIGNALS))
    return batch, found, max(whole.num_read)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, marks=pytest.mark.slow),
        {"model_type": "qwen3", "use_sliding_window": True, "sliding_window": 24, "layer_types": list(BOTH)},
    ],
    ids=["full attention", "sliding attention"],
)
def test_scores_of_trees_read_in_chunks_are_those_of_one_forward(
    changes: dict[str, Any], world: Path, tmp_path: Path
) -> None:
    own = load_tokenizer(str(world / "math"))
    own.add_tokens(["question"])
    folder = save_model(tmp_path, tokenizer=own, max_position_embeddings=4096, **changes)
    batch, (chunked, whole), most = both_ways(world, folder, (*REPLIES, LONG * 20))
    assert most > READ_AT_ONCE
    assert chunked.aligned_mask.sum() > batch.response_mask.sum() * 0.9
    assert torch.equal(chunked.aligned_mask, whole.aligned_mask)
    torch.testing.assert_close(chunked.logprobs, whole.logprobs, rtol=0, atol=1e-5)
    assert chunked.top_logprobs is not None
    assert whole.top_logprobs is not None
    torch.testing.assert_close(chunked.top_logprobs, whole.top_logprobs, rtol=0, atol=1e-5)


def test_a_reply_whose_tree_is_larger_than_ever_measured_is_refused_by_name(foreign: Path) -> None:
    teacher = LocalTeacher(str(foreign))
    teacher.setup(CPU)
    tree = TokenTree([3] * MAX_TREE_TOKENS, [0] * MAX_TREE_TOKENS)
    words = rf"{MAX_TREE_TOKENS + 1} tokens for one reply.*`PrefixCredit`.*the {MAX_TREE_TOKENS} .*max_new_tokens.*Span"
    with pytest.raises(ConfigError, match=words):
        list(teacher.tree_hidden_states([[3]], lambda _: tree))
