"""Models and runs as their memory and time depend on them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PretrainedConfig

ACTIVATIONS = {4: (24, 16, 16), 2: (16, 10, 8)}
"""Bytes that a layer keeps per token for its backward pass, for each unit of (hidden, heads and keys, MLP), by the
bytes of a number: counted on transformers' Qwen3, whose norms compute in float32."""

AUTOCAST_HIDDEN = 26
"""The same for hidden units where autocast casts float32 weights."""


@dataclass(frozen=True)
class ModelShape:
    """What memory and time of a model depend on.

    Args:
        num_weights: All of them; tied ones once.
        vocab_size: Rows of the output matrix.
        hidden_size: Units of a state.
        num_layers: Layers of the decoder.
        num_heads: Attention heads.
        num_kv_heads: Heads of keys and values.
        head_dim: Units of a head.
        mlp_size: Inner units of a layer's MLP.
        bytes_per_weight: As kept on the device.
    """

    num_weights: int
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_size: int
    bytes_per_weight: int = 4

    @classmethod
    def of(cls, config: PretrainedConfig, num_weights: int, bytes_per_weight: int) -> ModelShape:
        """Return the shape that a configuration describes; what it does not say is as in most decoders."""
        text = config.get_text_config(decoder=True)
        hidden, heads = int(text.hidden_size), int(getattr(text, "num_attention_heads", 0) or 1)
        return cls(
            num_weights,
            int(text.vocab_size),
            hidden,
            int(text.num_hidden_layers),
            heads,
            int(getattr(text, "num_key_value_heads", None) or heads),
            int(getattr(text, "head_dim", None) or hidden // heads),
            int(getattr(text, "intermediate_size", None) or 4 * hidden),
            bytes_per_weight,
        )

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights."""
        return self.num_weights * self.bytes_per_weight

    @property
    def head_weights(self) -> int:
        """Weights of the output matrix."""
        return self.vocab_size * self.hidden_size

    @property
    def layer_weights(self) -> int:
        """Weights of a layer."""
        return max(self.num_weights - self.head_weights, 0) // self.num_layers

    def cache_bytes(self, num_bytes: int) -> int:
        """Bytes that the keys and values of a token take, at so many bytes a number."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * num_bytes

    def kept_bytes(self, num_bytes: int, *, has_autocast: bool) -> int:
        """Bytes that a layer keeps of a token for the backward pass."""
        hidden, heads, mlp = ACTIVATIONS[4 if num_bytes >= 4 else 2]
        hidden = AUTOCAST_HIDDEN if has_autocast else hidden
        own = (self.num_heads + self.num_kv_heads) * self.head_dim
        return hidden * self.hidden_size + heads * own + mlp * self.mlp_size

    def passing_bytes(self, num_bytes: int) -> int:
        """Bytes that a layer needs for a token without a backward pass."""
        return num_bytes * 3 * (self.hidden_size + self.mlp_size)


@dataclass(frozen=True)
class RunShape:
    """A run as its memory and time depend on it, for one of its devices.

    Args:
        student: The model to train.
        teachers: Those in this process, each distinct model once.
        num_trained: Weights that are trained: all, or those of an adapter.
        num_devices: Processes that train together.
        is_sharded: Whether they share the weights (FSDP2).
        forward_bytes: Of a number in the forward: 2 in bfloat16.
        prompt_tokens: Of the longest prompt.
        response_tokens: Of the longest response.
        rollout_rows: Responses of a rollout batch on this device.
        generated_rows: Of them, generated at once.
        scored_rows: Of them, scored at once.
        micro_rows: Of them, in a micro-batch of the update.
        logits_bytes: Of a chunk of logits.
        keeps_states: Whether the loss reads the teachers' hidden states (distribution matching).
        gradient_checkpointing: Whether layers are computed again in the backward pass.
        gathers_in_forward_precision: Whether sharded weights are gathered in the forward's precision; if not, as kept.
        keeps_response_states_only: Whether a teacher's states of prompts are dropped.
        loads_in_slices: Whether no device ever has a whole model while it loads.
        teachers_in_turn: Whether a teacher is on the device only while it scores.
        prepacks: Whether the student generates with a copy of its weights in the processor's own order.
    """

    student: ModelShape
    teachers: tuple[ModelShape, ...]
    num_trained: int
    prompt_tokens: int
    response_tokens: int
    rollout_rows: int
    micro_rows: int
    generated_rows: int = 128
    scored_rows: int = 256
    num_devices: int = 1
    is_sharded: bool = False
    forward_bytes: int = 4
    logits_bytes: int = 2**26
    keeps_states: bool = True
    gradient_checkpointing: bool = False
    gathers_in_forward_precision: bool = True
    keeps_response_states_only: bool = True
    loads_in_slices: bool = True
    teachers_in_turn: bool = False
    prepacks: bool = False

    @property
    def num_shards(self) -> int:
        """Into how many parts weights, gradients and optimiser states are cut."""
        return self.num_devices if self.is_sharded else 1

    @property
    def max_tokens(self) -> int:
        """Tokens of the longest row."""
        return self.prompt_tokens + self.response_tokens

    @property
    def gathered_bytes(self) -> int:
        """Bytes of a weight that is gathered."""
        return self.forward_bytes if self.gathers_in_forward_precision else self.student.bytes_per_weight
