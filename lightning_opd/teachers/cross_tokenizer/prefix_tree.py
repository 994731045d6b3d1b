"""A reply in a teacher's tokens, whichever way it may go on: the tokenisations of all its beginnings, as a tree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from lightning_opd.teachers.cross_tokenizer.prefixes import TextSegment
from lightning_opd.teachers.cross_tokenizer.spelling import ByteSpelling, spans_of
from lightning_opd.teachers.cross_tokenizer.translation import Translator, without_lead


@dataclass
class PrefixTree:
    """The teacher's tokens of all beginnings of a reply.

    A teacher that reads `1+6=7` may begin with the token `1+`, and reads `1+6=10` from the token `1` on: what it
    thinks of the `6` takes both. A beginning of n bytes ends at one node, so that there are about as many as bytes.

    Args:
        token_ids: The teacher's token at each node; node 0 is the end of the prompt, and none.
        parents: The node before each.
        stretches: The text between control tokens.
        controls: (student index, node, node before) of control tokens that both sides have.
    """

    token_ids: list[int] = field(default_factory=lambda: [-1])
    parents: list[int] = field(default_factory=lambda: [-1])
    segments: list[TextSegment] = field(default_factory=list)
    controls: list[tuple[int, int, int]] = field(default_factory=list)
    _children: dict[tuple[int, int], int] = field(default_factory=dict)

    def child(self, node: int, token_id: int) -> int:
        """Return the node of a token after another node, made if missing."""
        if (node, token_id) not in self._children:
            self._children[node, token_id] = len(self.token_ids)
            self.token_ids.append(token_id)
            self.parents.append(node)
        return self._children[node, token_id]

    def descendant(self, node: int, token_ids: Sequence[int]) -> int:
        """Return the node at the end of a run of tokens."""
        for token_id in token_ids:
            node = self.child(node, token_id)
        return node


def prefix_tree(translator: Translator, token_ids: Sequence[int]) -> PrefixTree:
    """Return the tree of a reply of the student, the stop token included.

    Control tokens become their counterparts; one without a counterpart is shown as its text and gets no score. After
    text that the teacher's tokenizer does not spell (it normalises), nothing gets one.
    """
    tree, node, place = PrefixTree(), 0, 0
    controls = translator.roles
    for is_control, run in groupby(token_ids, lambda i: i in controls.student_ids):
        tokens = list(run)
        if not is_control:
            following = token_ids[place + len(tokens) : place + len(tokens) + 1]
            next_id = controls.pairs.get(following[0]) if following else None
            end = _add_text(tree, node, translator, tokens, place, next_id)
            if end is None:
                return tree
            node = end
        else:
            for offset, token_id in enumerate(tokens):
                before = node
                if token_id in controls.pairs:
                    node = tree.child(before, controls.pairs[token_id])
                    tree.controls.append((place + offset, node, before))
                else:
                    text = str(translator.student.convert_ids_to_tokens(token_id)).encode()
                    node = tree.descendant(before, translator.teacher_spelling.encode(text))
        place += len(tokens)
    return tree


def _add_text(
    tree: PrefixTree, root: int, translator: Translator, token_ids: list[int], place: int, next_id: int | None
) -> int | None:
    """Add a stretch of text; return the node at its end, or None where the teacher cannot spell it."""
    lead, own_lead = (translator.teacher_lead, translator.student_lead) if place == 0 else (b"", b"")
    ours, theirs = translator.student_spelling, translator.teacher_spelling
    pieces = without_lead([ours.piece(i) for i in token_ids], own_lead)
    text = b"".join(pieces)
    whole = lead + text
    nodes = [root, *(_node(tree, root, theirs, whole[:length]) for length in range(1, len(whole) + 1))]
    end = nodes[-1]
    if end is None:
        return None
    node, length = end, len(whole)
    while node != root:  # what was written itself is among the beginnings, even where a half character is cut otherwise
        nodes[length] = node
        node, length = tree.parents[node], length - len(theirs.piece(tree.token_ids[node]))
    num_lead = next((n for n, piece in enumerate(pieces) if piece), len(pieces))
    if num_lead == len(pieces):
        return end
    spans = spans_of(pieces[num_lead:], text)
    native = spans_of(without_lead([ours.piece(i) for i in ours.encode(own_lead + text)], own_lead), text)
    tree.segments.append(
        TextSegment(
            whole,
            [(begin + len(lead), stop + len(lead)) for begin, stop in spans],
            [span in native for span in spans],
            place + num_lead,
            nodes,
            None if next_id is None else tree.child(end, next_id),
        )
    )
    return end


def _node(tree: PrefixTree, root: int, spelling: ByteSpelling, text: bytes) -> int | None:
    """Return the node at the end of a beginning, or None where the tokenizer does not spell it."""
    token_ids = spelling.encode(text)
    if b"".join(spelling.piece(i) for i in token_ids) != text:
        return None
    return tree.descendant(root, token_ids)


class Packed(NamedTuple):
    """Prompts with a tree of continuations after each, right padded."""

    token_ids: Int[Tensor, "batch time"]
    attention_mask: Bool[Tensor, "batch time time"]
    position_ids: Int[Tensor, "batch time"]


def pack(prompts: Sequence[Sequence[int]], trees: Sequence[PrefixTree], device: torch.device) -> Packed:
    """Return what a model reads to know all continuations at once: every token sees its own beginning only."""
    lengths = [len(prompt) + len(tree.token_ids) - 1 for prompt, tree in zip(prompts, trees, strict=True)]
    longest = max(lengths, default=0)
    token_ids = torch.zeros(len(prompts), longest, dtype=torch.long)
    position_ids = torch.zeros_like(token_ids)
    attention_mask = torch.eye(longest, dtype=torch.bool).repeat(len(prompts), 1, 1)
    for row, (prompt, tree) in enumerate(zip(prompts, trees, strict=True)):
        num, size = len(prompt), lengths[row]
        token_ids[row, :size] = torch.tensor([*prompt, *tree.token_ids[1:]])
        position_ids[row, :num] = torch.arange(num)
        attention_mask[row, :num, :num] = torch.ones(num, num, dtype=torch.bool).tril()
        depths = [num - 1]
        for node, parent in enumerate(tree.parents[1:], 1):
            place, place_before = num - 1 + node, num - 1 + parent
            attention_mask[row, place] |= attention_mask[row, place_before]
            depths.append(depths[parent] + 1)
        position_ids[row, num - 1 : size] = torch.tensor(depths)
    return Packed(token_ids.to(device), attention_mask.to(device), position_ids.to(device))
