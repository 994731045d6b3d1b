"""Students, teachers and divergences on which the fused forms must equal the plain ones."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from lightning_opd.functional.divergences import Divergence, ForwardKL, JensenShannon, ReverseKL
from lightning_opd.functional.heads import HeadStates
from lightning_opd.functional.top_k import TopK
from lightning_opd.types import LinearHead

VOCAB, ROWS, HIDDEN, TEACHER_HIDDEN, NUM = 11, 13, 5, 4, 10


@dataclass(frozen=True)
class Squares(Divergence):
    """A user's own, with nothing but the formula."""

    @override
    def __call__(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        return (student_logits.softmax(-1) - teacher_logits.softmax(-1)).square().sum(-1)


DIVERGENCES = [
    ReverseKL(),
    ForwardKL(),
    JensenShannon(0.3),
    Squares(),
    TopK(ForwardKL(), 3, "union"),
    TopK(JensenShannon(), 3, "intersection", "renormalise"),
    *(
        TopK(ReverseKL(), 3, support, correction)
        for support in ("student", "teacher", "union", "intersection")
        for correction in ("tail", "renormalise")
    ),
]


class Case:
    """A student and two teachers of another width, their heads with padded rows."""

    def __init__(
        self,
        seed: int = 0,
        *,
        scale: float = 1.0,
        soft_cap: float | None = None,
        has_bias: bool = False,
        temperatures: tuple[float, float] = (0.7, 1.3),
        dtype: torch.dtype = torch.float64,
        num: int = NUM,
    ) -> None:
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

        self.states, self.weight = normal(num, HIDDEN).requires_grad_(), normal(ROWS, HIDDEN).requires_grad_()
        self.bias = normal(ROWS).requires_grad_() if has_bias else None
        self.inputs = [x for x in (self.states, self.weight, self.bias) if x is not None]
        self.head = LinearHead(self.weight, self.bias, VOCAB + 1, scale=scale, soft_cap=soft_cap)
        self.teacher_head = LinearHead(normal(ROWS, TEACHER_HIDDEN), None, VOCAB, soft_cap=soft_cap)
        self.teacher_states, self.weights = normal(num, TEACHER_HIDDEN), normal(num)
        self.ids = torch.randint(VOCAB, (num,), generator=generator)
        self.temperatures = temperatures

    @property
    def student(self) -> HeadStates:
        return HeadStates(self.states, self.head, self.temperatures[0])

    @property
    def teachers(self) -> list[HeadStates]:
        half = len(self.states) // 2
        return [
            HeadStates(states, self.teacher_head, self.temperatures[1])
            for states in (self.teacher_states[:half], self.teacher_states[half:])
        ]

    def logits(self) -> tuple[Tensor, Tensor]:
        ours, theirs = self.head.logits(self.states), self.teacher_head.logits(self.teacher_states)
        promoted = torch.promote_types(ours.dtype, torch.float32)
        return (
            ours[:, :VOCAB].to(promoted) / self.temperatures[0],
            theirs[:, :VOCAB].to(promoted) / self.temperatures[1],
        )

    def gradients(self, values: Tensor, weights: Tensor | None = None) -> list[Tensor]:
        chosen = self.weights if weights is None else weights
        return list(torch.autograd.grad((values * chosen.detach()).sum(), self.inputs, retain_graph=True))

    def same(self, values: Tensor, expected: Tensor, atol: float = 1e-12) -> None:
        torch.testing.assert_close(values, expected, rtol=0, atol=atol)
        for one, other in zip(self.gradients(values), self.gradients(expected), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=100 * atol)
