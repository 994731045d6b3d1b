from __future__ import annotations

import pytest
import torch

from lightning_opd.functional.heads import BLOCK_ELEMENTS, HeadStates, blocks, chunks
from lightning_opd.functional.logprobs import CHUNK_BYTES, positions_per_chunk
from lightning_opd.types import LinearHead


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("scale", "soft_cap"), [(1.0, None), (0.25, None), (3.0, 2.0)])
@pytest.mark.parametrize("has_bias", [True, False])
def test_chunks_of_products_finish_as_the_heads_own_logits(
    dtype: torch.dtype, scale: float, soft_cap: float | None, *, has_bias: bool
) -> None:
    weight, states = torch.randn(9, 4, dtype=dtype), torch.randn(6, 4, dtype=dtype)
    head = LinearHead(weight, torch.randn(9, dtype=dtype) if has_bias else None, 7, scale=scale, soft_cap=soft_cap)
    plain = HeadStates(states, head, 0.7).detached()
    got = plain.finish(plain.products(slice(1, 5), 7, plain.buffer(64)))
    expected = head.logits(states[1:5]).to(got.dtype) / 0.7
    assert got.dtype == torch.promote_types(dtype, torch.float32)
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)


def test_states_that_already_are_logits_are_copied_and_cut() -> None:
    logits = torch.randn(3, 6)
    plain = HeadStates(logits, LinearHead(None, None, 5), 2.0).detached()
    got = plain.finish(plain.products(slice(0, 3), 5, plain.buffer(15)))
    assert torch.equal(got, logits[:, :5] / 2)
    assert got.data_ptr() != logits.data_ptr()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_chunk_holds_no_more_bytes_than_its_budget(dtype: torch.dtype) -> None:
    cpu, vocab_size = torch.device("cpu"), 151_936
    size = positions_per_chunk(vocab_size, cpu, dtype)
    width = 8 if dtype == torch.float64 else 4
    assert size * vocab_size * width <= CHUNK_BYTES["cpu"] < (size + 1) * vocab_size * width
    assert positions_per_chunk(10**12, cpu) == 1
    assert positions_per_chunk(vocab_size, torch.device("cuda")) > 8 * size


def test_chunks_and_blocks_cover_every_row_once() -> None:
    like = torch.zeros(0)
    for num in (0, 1, 1000):
        covered = [row for part in chunks(num, 151_936, like) for row in range(part.start, part.stop)]
        assert covered == list(range(num))
    logits = torch.zeros(7, BLOCK_ELEMENTS["cpu"] // 3)
    parts = [logits[rows] for rows in blocks(logits)]
    assert [len(part) for part in parts] == [3, 3, 1]
    assert list(blocks(torch.zeros(0, 4))) == []


@pytest.mark.parametrize("has_weight", [True, False])
def test_under_autocast_products_take_its_dtype_where_there_is_a_matrix(*, has_weight: bool) -> None:
    weight = torch.randn(5, 3) if has_weight else None
    head_states = HeadStates(torch.randn(2, 3), LinearHead(weight, None, 3))
    assert head_states.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert head_states.dtype == (torch.bfloat16 if has_weight else torch.float32)
    double = HeadStates(torch.randn(2, 3).double(), LinearHead(torch.randn(5, 3).double(), None, 5))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert double.dtype == torch.float64
