"""Trees read in one forward with a mask over all their tokens: what reading them in chunks must give, too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from lightning_opd.models import LanguageModel
from lightning_opd.models.tree_masks import tree_masks
from lightning_opd.teachers.cross_tokenizer.prefix_tree import PrefixTree
from lightning_opd.types import TokenTree


class Packed(NamedTuple):
    """Prompts with a tree of continuations after each, padded on the right.

    Args:
        token_ids: Prompt, then the tokens of the tree in the order of its nodes.
        attention_mask: `attention_mask[b, t, u]`: token t reads token u.
        position_ids: Of each token in its own branch.
    """

    token_ids: Int[Tensor, "batch time"]
    attention_mask: Bool[Tensor, "batch time time"]
    position_ids: Int[Tensor, "batch time"]


def pack(prompts: Sequence[Sequence[int]], trees: Sequence[PrefixTree]) -> Packed:
    """Return what a model reads to score all branches in one forward: a token reads its own branch only."""
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
            column, parent_column = num - 1 + node, num - 1 + parent  # node 0 is the prompt's last token
            attention_mask[row, column] |= attention_mask[row, parent_column]
            depths.append(depths[parent] + 1)
        position_ids[row, num - 1 : size] = torch.tensor(depths)
    return Packed(token_ids, attention_mask, position_ids)


@torch.no_grad()
def whole_tree_states(model: LanguageModel, token_ids: Tensor, attention_mask: Tensor, position_ids: Tensor) -> Tensor:
    """Return the states after each token of packed trees, read in one forward."""
    masks = tree_masks(model.model.config, attention_mask, position_ids, model.model.dtype)
    decoder = model.model.get_decoder()
    states: Tensor = decoder(input_ids=token_ids, attention_mask=masks, position_ids=position_ids, use_cache=False)[0]
    return states


def after_prompt(prompt: Sequence[int], tree: PrefixTree) -> TokenTree:
    """Return what a model reads: a prompt, of which the last token is node 0, and the nodes of a tree after it."""
    last = len(prompt) - 1
    parents = [*range(-1, last), *(last + parent for parent in tree.parents[1:])]
    return TokenTree([*prompt, *tree.token_ids[1:]], parents)
