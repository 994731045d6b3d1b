"""A causal language model as states and a head, so that no forward keeps all logits in memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from lightning_opd.functional.length_groups import budgeted_groups, padded_tokens
from lightning_opd.functional.logprobs import shift_right
from lightning_opd.models.forward_arguments import CACHE_ARGUMENTS, cache_argument, logits_to_keep
from lightning_opd.models.modes import evaluating
from lightning_opd.models.output_scaling import explain, probing_states
from lightning_opd.models.rows import is_right_padded, pack, reads_packed_rows, reads_padding, row_positions, unpack
from lightning_opd.models.tree_masks import obstacle_to_trees, tree_masks
from lightning_opd.models.tree_reading import TreeReading
from lightning_opd.types import LinearHead, TokenTree

if TYPE_CHECKING:
    from transformers import DynamicCache, PretrainedConfig, PreTrainedModel


LENGTH_NAMES = ("max_position_embeddings", "max_seq_len", "max_sequence_length", "seq_length")
"""Names under which configurations keep the number of positions."""


def context_length(config: PretrainedConfig) -> int:
    """Return the longest sequence in tokens that a model has positions for; 2³¹ where nothing limits it.

    Args:
        config: Of any model; of one that reads more than text, its language model's own part counts.
    """
    text = config.get_text_config(decoder=True)
    return int(next((value for name in LENGTH_NAMES if (value := getattr(text, name, None))), 2**31))


class LanguageModel:
    """A causal language model in two parts: states that predict tokens, and a head.

    Args:
        model: The Hugging Face model; its own forward and cache are used.
        vocab_size: Real tokens of its tokenizer; padded rows of the head are cut.
    """

    def __init__(self, model: PreTrainedModel, vocab_size: int) -> None:
        """Check with a probe whether logits are `states @ weight.T + bias`, scaled and capped, and nothing else."""
        self.model = model
        self._head: nn.Module | None = model.get_output_embeddings()
        rows = self._head.weight.shape[0] if isinstance(self._head, nn.Linear) else model.config.vocab_size
        self.vocab_size = min(vocab_size, int(rows))
        self._copied_head: LinearHead | None = None
        self._finish = self._probe()
        self._is_linear = self._finish is not None

    @property
    def max_length(self) -> int:
        """Longest sequence in tokens that the model has positions for."""
        return context_length(self.model.config)

    @property
    def width(self) -> int:
        """Width of the states: hidden units, or the vocabulary where the states are the logits."""
        rows, hidden = self._head.weight.shape if isinstance(self._head, nn.Linear) else (0, 0)
        return int(hidden if self._is_linear else rows or self.model.config.vocab_size)

    @torch.no_grad()
    def _probe(self) -> tuple[float, float | None] | None:
        """Return the head's factor and soft cap, or None where the logits are made in another way."""
        if not isinstance(self._head, nn.Linear):
            return None
        states = probing_states(self._head)
        token_ids = torch.ones(states.shape[:2], dtype=torch.long, device=states.device)

        def put(module: nn.Module, arguments: object, output: object) -> None:
            output[0].copy_(states)  # type: ignore[index]  # the head reads them whatever the layers have made

        handle = self.model.get_decoder().register_forward_hook(put)
        try:
            with evaluating(self.model):
                logits = self.model(input_ids=token_ids, use_cache=False).logits
        finally:
            handle.remove()
        return explain(self._head(states), logits, self.model.config)

    def _decoder_states(
        self,
        token_ids: Int[Tensor, "batch time"],
        attention_mask: Tensor | dict[str, Tensor] | None,
        position_ids: Int[Tensor, "batch time"] | None = None,
        cache: DynamicCache | None = None,
    ) -> Float[Tensor, "batch time hidden"]:
        captured: list[Tensor] = []

        def capture(module: nn.Module, arguments: object, output: object) -> None:
            captured.append(output[0])  # type: ignore[index]

        handle = self.model.get_decoder().register_forward_hook(capture)
        try:
            none = logits_to_keep(self.model, [], token_ids.device)
            self._call(token_ids, attention_mask, position_ids, cache, **none)
        finally:
            handle.remove()
        return captured[0]

    def _call(
        self,
        token_ids: Tensor,
        attention_mask: Tensor | dict[str, Tensor] | None,
        position_ids: Tensor | None = None,
        cache: DynamicCache | None = None,
        **settings: Tensor | int,
    ) -> Tensor:
        if position_ids is None:
            assert isinstance(attention_mask, Tensor)  # masks by type of layer come with positions
            attention_mask = attention_mask.long()
            position_ids = (attention_mask.cumsum(dim=1) - 1).clamp(min=0)
        logits: Tensor = self.model(
            input_ids=token_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            use_cache=cache is not None,
            **({} if cache is None else {cache_argument(self.model) or CACHE_ARGUMENTS[0]: cache}),
            **settings,
        ).logits
        return logits

    def states(
        self, token_ids: Int[Tensor, "batch time"], attention_mask: Bool[Tensor, "batch time"]
    ) -> Float[Tensor, "batch time hidden"]:
        """Return the states from which the head predicts each token: `out[b, t]` predicts `token_ids[b, t]`.

        Where the model reshapes its logits after the output matrix, the states are the logits. Under
        `attn_implementation: flash_attention_2`, and its kind, all rows are read as one without padding, where that is
        exact. Else rows that are padded on the right are read without a mask, where that is exact, and with others of
        their length: fast attention, and little padding. The states of padding are of no use.
        """
        groups = self.groups(attention_mask)
        if len(groups) <= 1:
            return shift_right(self._states_after(token_ids, attention_mask))
        parts = []
        for group in groups:
            rows = torch.tensor(group, device=token_ids.device)
            length = max(1, int(attention_mask[rows].sum(dim=1).max()))
            states = self._states_after(token_ids[rows, :length], attention_mask[rows, :length])
            parts.append(torch.nn.functional.pad(states, (0, 0, 0, token_ids.shape[1] - length)))
        order = torch.tensor([row for group in groups for row in group], device=token_ids.device)
        return shift_right(torch.cat(parts)[order.argsort()])

    def groups(self, attention_mask: Bool[Tensor, "batch time"]) -> list[list[int]]:
        """Return the rows of each forward that `states` takes: one under FSDP, where all ranks take equally many."""
        if self._reads_packed_rows or isinstance(self.model, FSDPModule) or not is_right_padded(attention_mask):
            return [list(range(len(attention_mask)))]
        return budgeted_groups(attention_mask.sum(dim=1).tolist())

    def padded_tokens(self, attention_mask: Bool[Tensor, "batch time"]) -> int:
        """Return the tokens, padding included, that the layers read in `states`."""
        if self._reads_packed_rows:
            return int(attention_mask.sum())
        groups = self.groups(attention_mask)
        if len(groups) == 1:
            return attention_mask.numel()
        return padded_tokens(attention_mask.sum(dim=1).tolist(), groups)

    def _states_after(
        self, token_ids: Int[Tensor, "batch time"], attention_mask: Bool[Tensor, "batch time"]
    ) -> Float[Tensor, "batch time hidden"]:
        """Return the states (or logits) after each token, in one forward."""
        outputs = self._decoder_states if self._is_linear else self._call
        if self._reads_packed_rows:
            packed, own_positions = pack(token_ids, attention_mask)
            return unpack(outputs(packed, None, own_positions), attention_mask)
        if not is_right_padded(attention_mask) or self._reads_padding:
            return outputs(token_ids, attention_mask)
        return outputs(token_ids, None, row_positions(token_ids))

    @cached_property
    def _reads_padding(self) -> bool:
        return reads_padding(self.model, self._call, self.vocab_size)

    @cached_property
    def _reads_packed_rows(self) -> bool:
        return reads_packed_rows(self.model, self._call, self.vocab_size)

    def read_trees(
        self, reading: TreeReading, cache: DynamicCache | None = None, *, is_probe: bool = False
    ) -> Iterator[Float[Tensor, "time hidden"]]:
        """Yield the states after each token of one tree after the other, each as in a plain forward over its branch.

        Only those of the tokens that the reading reads; nothing at all where it reads none of any tree.

        Args:
            reading: The trees; each of its chunks takes one forward.
            cache: Keys and values of the trunks that an earlier reading has read; those that are kept are left there.
            is_probe: Whether layers of sliding attention get masks of their own even where all is within reach.
        """
        from transformers import DynamicCache

        read = self._decoder_states if self._is_linear else self._call
        cache = DynamicCache() if cache is None else cache  # keeps all, for layers of sliding attention, too
        device = self.model.device
        parts: list[Tensor] = []
        num_done = num_read = 0
        for chunk in reading.chunks:
            mask, positions = (x.to(device) for x in reading.attention(chunk))
            own = positions[:, len(chunk.cached) :]
            masks = tree_masks(self.model.config, mask, own, self.model.dtype, positions, is_probe=is_probe)
            ids = torch.tensor([[reading.token_ids[column] for column in chunk.columns]], device=device)
            with torch.no_grad():  # never around a `yield`
                parts.append(read(ids, masks, own, cache)[0, chunk.num_known :])
            num_read += len(parts[-1])
            while num_done < len(reading.ends) and reading.ends[num_done] <= num_read:
                start = reading.ends[num_done - 1] if num_done else 0
                states, first = torch.cat(parts), num_read - sum(map(len, parts))
                yield states[start - first : reading.ends[num_done] - first]
                num_done += 1
                parts = [states[reading.ends[num_done - 1] - first :]]
            kept = torch.tensor(chunk.kept, dtype=torch.long, device=device)
            for layer in cache.layers:
                keys, values = layer.keys, layer.values  # type: ignore[union-attr]  # plain ones keep both
                layer.keys, layer.values = (x.index_select(-2, kept) for x in (keys, values))  # type: ignore[union-attr]

    @torch.no_grad()
    def obstacle_to_trees(self) -> str | None:
        """Return why `read_trees` would be wrong for this model, or None where it is right.

        The kinds of layers are looked up; then a small tree is read in chunks, and its second branch is compared with
        the same tokens read alone.
        """
        obstacle = obstacle_to_trees(self.model)
        if obstacle is not None:
            return obstacle
        prompt, _, second = (part.tolist() for part in torch.arange(11).split((3, 4, 4)))
        ids = [(1 + i) % self.vocab_size for i in range(11)]
        parents = [i - 1 for i in range(11)]
        parents[second[0]] = prompt[-1]
        alone = torch.tensor([[ids[i] for i in (*prompt, *second)]], device=self.model.device)
        try:
            (states,) = self.read_trees(TreeReading([TokenTree(ids, parents)], at_once=4), is_probe=True)
            plain = self._decoder_states if self._is_linear else self._call
            expected = plain(alone, torch.ones_like(alone, dtype=torch.bool))[0, len(prompt) :]
        except (AttributeError, IndexError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
            return f"a model of type `{self.model.config.model_type}` does not take a mask of its own ({error})"
        states = states[second]
        scale = float(expected.abs().max())
        difference = float((states - expected).abs().max())
        if difference <= 2 * torch.finfo(self.model.dtype).eps ** 0.5 * max(scale, 1e-3):
            return None
        return (
            f"a model of type `{self.model.config.model_type}` reads a branch differently beside another one than "
            f"alone (states differ by {difference:.2g} of {scale:.2g})"
        )

    def head(self) -> LinearHead:
        """Return the output layer; under FSDP valid until the weights are resharded."""
        if self._finish is None:
            return LinearHead(None, None, self.vocab_size)
        scale, soft_cap = self._finish
        head: nn.Linear = self._head  # type: ignore[assignment]  # the probe has seen it
        return LinearHead(head.weight, head.bias, self.vocab_size, scale=scale, soft_cap=soft_cap)

    @torch.no_grad()
    def copied_head(self) -> LinearHead:
        """Return a whole copy of the output layer, which stays when the weights are resharded.

        The first call makes it, and under FSDP has to come after a forward; a frozen head never changes.
        """
        if self._copied_head is None:
            head = self.head()
            weight = None if head.weight is None else head.weight.detach().clone()
            bias = None if head.bias is None else head.bias.detach().clone()
            self._copied_head = dataclasses.replace(head, weight=weight, bias=bias)
        return self._copied_head
