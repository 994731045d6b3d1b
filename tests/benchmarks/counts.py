"""What a step must compute and read at least, counted from shapes: the denominators of utilisation."""

from __future__ import annotations

from dataclasses import dataclass

from tests.benchmarks.worlds import Setting, Shape


@dataclass(frozen=True)
class Counts:
    """Floating-point operations and bytes of one rollout batch on one device.

    Args:
        update: Operations of forward and backward of the student and of both heads; nothing recomputed.
        score: Operations of the teacher's body.
        rollout_bytes: Bytes that decoding must read: all weights and the keys and values so far, at each token.
    """

    update: float
    score: float
    rollout_bytes: float


def counts(setting: Setting, student: Shape, teacher: Shape, num_bytes: int = 2) -> Counts:
    """Return what one rollout batch takes with one teacher.

    Args:
        setting: Rows, tokens, and whether the student's own matrices are frozen.
        student: Its shape.
        teacher: Its shape.
        num_bytes: Of one number while decoding.
    """
    length = setting.prompt_tokens + setting.new_tokens
    responses = setting.prompts * setting.new_tokens
    times = 2 if setting.lora else 3  # forward, gradient of the inputs, gradient of the matrices
    body = setting.prompts * (length * matrix_flops(student) * times + attention_flops(student, length) * 3)
    heads = responses * 2 * setting.vocabulary * (student.width * times + teacher.width)
    score = setting.prompts * (length * matrix_flops(teacher) + attention_flops(teacher, length))
    decoded = setting.prompt_tokens + setting.new_tokens / 2  # tokens of a row's cache, on average
    cache = 2 * student.layers * student.key_heads * student.head_width * decoded * setting.prompts
    weights = matrix_flops(student) / 2 + setting.vocabulary * student.width
    return Counts(body + heads, score, setting.new_tokens * (weights + cache) * num_bytes)


def matrix_flops(shape: Shape) -> float:
    """Return the operations of one token in the matrices of all layers, forward."""
    queries, keys = shape.heads * shape.head_width, shape.key_heads * shape.head_width
    per_layer = shape.width * (2 * queries + 2 * keys) + 3 * shape.width * shape.inner
    return 2.0 * shape.layers * per_layer


def attention_flops(shape: Shape, length: int, *, is_causal: bool = True) -> float:
    """Return the operations of one row's attention (queries by keys, weights by values), forward."""
    pairs = length * (length + 1) / 2 if is_causal else length**2
    return 2.0 * 2 * pairs * shape.heads * shape.head_width * shape.layers
