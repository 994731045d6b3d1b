"""The compiled form of the functions of logits, here on the CPU, against the plain one."""

from __future__ import annotations

import inspect
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lightning_opd.functional import compiled, divergences, fused, heads
from lightning_opd.functional.divergences import Divergence, ForwardKL, JensenShannon, ReverseKL
from lightning_opd.functional.fused import BlockFunction, token_values
from tests.functional.fused_cases import Case

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(compiled, "KINDS", {"cpu"})
    monkeypatch.setattr(compiled, "_agreements", {})
    for module in (divergences, fused):  # the compiler does not read through the tests' checks of shapes
        for name in ("log_softmax_", "row_dot"):
            monkeypatch.setattr(module, name, inspect.unwrap(getattr(heads, name)))


def results(function: BlockFunction, *given: Tensor, **flags: bool) -> list[Tensor]:
    """Return values, what is logged, and the logits overwritten by their derivative."""
    own = [x.clone() for x in given]
    return [*function(*own, **flags), own[0]]


def plain(function: BlockFunction, *given: Tensor, **flags: bool) -> list[Tensor]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "KINDS", set())
        return results(function, *given, **flags)


@needs_compiler
@pytest.mark.slow
def test_compiled_functions_find_the_same_in_blocks_of_any_size() -> None:
    """With impossible tokens; a new size makes no new kernel, so that they stay few."""
    generator = torch.Generator().manual_seed(0)
    measures: list[Divergence] = [ReverseKL(), ForwardKL(), JensenShannon(0.3)]
    functions: list[BlockFunction] = [*(d.with_gradient for d in measures), token_values]
    counted = torch._dynamo.utils.counters["stats"]
    kernels: list[int] = []
    for rows, vocab in ((4, 33), (7, 64), (3, 129), (20, 300)):
        for function in functions:
            first = torch.randn(rows, vocab, generator=generator, dtype=torch.float64)
            second = torch.randn(rows, vocab, generator=generator, dtype=torch.float64)
            first[0, 1], second[0, 2] = -torch.inf, -1e4
            flags = {"gradient": True}
            if function is token_values:
                second, flags = torch.randint(3, vocab, (rows,), generator=generator), {**flags, "with_entropies": True}
            for actual, expected in zip(
                results(function, first, second, **flags), plain(function, first, second, **flags), strict=True
            ):
                torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)
        kernels.append(counted["unique_graphs"])
    assert set(compiled.forms().values()) == {"compiled"}
    assert len(compiled.forms()) == len(functions)
    assert len(set(kernels)) == 1


def raising(*_: object, **__: object) -> tuple[Tensor, Tensor]:
    message = "no compiler here"
    raise RuntimeError(message)


def wrong(logits: Tensor, *, gradient: bool) -> tuple[Tensor, Tensor]:
    return logits.sum(-1) + 1, logits.mul_(0)[:, :0]


@pytest.mark.parametrize(("made", "reason"), [(raising, "no compiler here"), (wrong, "its values differ")])
def test_where_the_compiled_form_fails_the_plain_one_runs_and_one_line_says_so(
    made: Callable[..., tuple[Tensor, Tensor]],
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(torch, "compile", lambda *_, **__: made)

    @compiled.compiled
    def doubled(logits: Tensor, *, gradient: bool) -> tuple[Tensor, Tensor]:
        return logits.sum(-1), logits.mul_(2)[:, :0]

    with caplog.at_level(logging.INFO):
        for _ in range(2):
            logits = torch.ones(3, 4)
            assert doubled(logits, gradient=True)[0].tolist() == [4.0] * 3
            assert (logits == 2).all()
    assert [reason in line for line in caplog.messages] == [True]
    assert list(compiled.forms().values()) == ["eager"]


def test_on_the_cpu_nothing_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    case = Case()
    ReverseKL().from_states(case.student, case.teachers, case.weights)
    assert not compiled.forms()
