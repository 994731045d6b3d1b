"""Teachers behind two real vLLM servers, against the same model in this process."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_opd.errors import ConfigError
from lightning_opd.functional.credit import SpanCredit
from lightning_opd.models import load_tokenizer
from lightning_opd.servers.launch import LocalServer
from lightning_opd.teachers import CrossTokenizerTeacher, LocalTeacher, ServerTeacher, TeacherPool
from lightning_opd.tokenization.training import train_tokenizer
from lightning_opd.types import SampledTokens, Sampling, Signal
from tests.servers.scripted import open_port
from tests.teachers.cross_tokenizer.foreign import scored_batch
from tests.tiny import TEXTS

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

CPU = torch.device("cpu")
LOGPROBS, TOP = frozenset({Signal.LOGPROBS}), frozenset({Signal.LOGPROBS, Signal.TOP_LOGPROBS})


def sampled_tokens(num_rows: int, vocab_size: int = 280, temperature: float = 1.0) -> SampledTokens:
    """Random rows of uneven length, two replies in some of them."""
    generator = torch.Generator().manual_seed(num_rows)
    ids, masks = [], []
    for row in range(num_rows):
        length = 3 + (7 * row) % 60
        ids.append(torch.randint(0, vocab_size, (length,), generator=generator).tolist())
        first, second = 1 + row % 2, max(2, length // 2)
        masks.append([first <= i < second or (row % 3 == 0 and i > second) for i in range(length)])
    return SampledTokens.from_sequences(ids, masks, 0, torch.float32, CPU, temperature=temperature)


def test_two_servers_give_the_scores_of_the_model_in_this_process(
    servers: tuple[LocalServer, LocalServer], teacher_folder: Path
) -> None:
    served = ServerTeacher([server.url for server in servers], top_k=8, tokens_per_request=100, requests_at_once=2)
    local = LocalTeacher(str(teacher_folder), top_k=8)
    for teacher in (served, local):
        teacher.setup(CPU)
    tokens = sampled_tokens(24)
    ours, theirs = served.score(tokens, TOP), local.score(tokens, TOP)
    mask = tokens.response_mask
    assert torch.equal(ours.aligned_mask, theirs.aligned_mask)
    assert (ours.logprobs - theirs.logprobs)[mask].abs().max() < 1e-4
    assert bool((ours.logprobs[~mask] == 0).all())
    assert ours.top_logprobs is not None
    assert theirs.top_logprobs is not None
    assert (ours.top_logprobs - theirs.top_logprobs)[mask].abs().max() < 1e-4
    assert ours.top_ids is not None
    assert theirs.top_ids is not None
    assert float((ours.top_ids == theirs.top_ids)[mask].float().mean()) > 0.99  # ties may change places
    assert {server.url for server in servers} == set(served.pool.alive)
    served.close()


def test_what_was_begun_is_not_asked_for_again(
    servers: tuple[LocalServer, LocalServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    served = ServerTeacher([server.url for server in servers], top_k=8)
    served.setup(CPU)
    tokens = sampled_tokens(12)
    plain = served.score(tokens, TOP)
    ends = [int(mask.nonzero().max()) for mask in tokens.response_mask]
    sequences = [ids[: end + 1].tolist() for ids, end in zip(tokens.token_ids, ends, strict=True)]
    sent: list[int] = []
    submit = served.pool.submit

    def counting(path: str, body: Mapping[str, Any]) -> Future[dict[str, Any]]:
        sent.append(len(body["prompt"]))
        return submit(path, body)

    monkeypatch.setattr(served.pool, "submit", counting)
    served.begin([sequences[0]], TOP)
    served.begin([*sequences[1:9], sequences[3], [5, 9999]], TOP)
    assert sum(sent) == 9, "the same one once, and none that the server does not know"
    scores = served.score(tokens, TOP)
    assert sum(sent) == 12
    assert torch.equal(scores.logprobs, plain.logprobs)
    assert scores.top_logprobs is not None
    assert plain.top_logprobs is not None
    assert torch.equal(scores.top_logprobs, plain.top_logprobs)
    served.begin(sequences, TOP)
    assert torch.equal(served.score(tokens, LOGPROBS).logprobs, plain.logprobs), "without likeliest tokens: asked anew"
    assert sum(sent) == 36
    served.close()


def test_a_cross_tokenizer_teacher_reads_through_servers(
    servers: tuple[LocalServer, LocalServer], teacher_folder: Path, tmp_path: Path
) -> None:
    train_tokenizer(TEXTS[:1], vocab_size=270, special_tokens=()).save_pretrained(tmp_path / "student")
    batches = []
    for scorer in (ServerTeacher([s.url for s in servers]), LocalTeacher(str(teacher_folder))):
        teacher = CrossTokenizerTeacher(str(teacher_folder), SpanCredit(), scorer=scorer)
        teacher.set_student_tokenizer(load_tokenizer(str(tmp_path / "student")))
        teacher.setup(CPU)
        assert teacher.is_cross_tokenizer
        torch.manual_seed(0)
        batches.append(scored_batch(tmp_path, teacher))
    served, local = batches
    assert torch.equal(served.aligned_mask, local.aligned_mask)
    assert int(served.aligned_mask.sum()) > 20
    assert (served.teacher_logprobs - local.teacher_logprobs).abs().max() < 1e-4


def test_the_servers_own_tokenizer_and_length_are_found(
    servers: tuple[LocalServer, LocalServer], teacher_folder: Path
) -> None:
    served = ServerTeacher(servers[0].url + "/v1/")
    assert served.declared_max_length() == 255
    assert served.tokenizer().get_vocab() == load_tokenizer(str(teacher_folder)).get_vocab()


def test_what_a_server_cannot_do_is_refused_in_one_line(servers: tuple[LocalServer, LocalServer]) -> None:
    url = servers[0].url
    with pytest.raises(ConfigError, match="should serve `math`, and serves `teacher`"):
        ServerTeacher(url, model="math").declared_max_length()
    with pytest.raises(ConfigError, match=r"refuses a request .*20"):
        ServerTeacher(url, top_k=21).setup(CPU)
    with pytest.raises(ConfigError, match=r"does not answer: .*correct `urls`"):
        ServerTeacher([url, f"http://127.0.0.1:{open_port()}"], max_retries=0).declared_max_length()
    pool = TeacherPool({"math": ServerTeacher(url)})
    with pytest.raises(ConfigError, match=r"Teacher `math`: .*temperature 1 only"):
        pool.check_request(LOGPROBS, Sampling(temperature=0.7))
    with pytest.raises(ConfigError, match="no hidden states"):
        pool.check_request(frozenset({Signal.HIDDEN_STATES}), Sampling())
    with pytest.raises(ConfigError, match="temperature 1 only"):
        pool.score(replace(sampled_tokens(2), temperature=0.5, teacher_ids=torch.zeros(2).long()), LOGPROBS)


def test_rows_without_a_reply_and_unknown_tokens_ask_for_nothing(servers: tuple[LocalServer, LocalServer]) -> None:
    served = ServerTeacher(servers[1].url)
    tokens = SampledTokens.from_sequences(
        [[5, 6, 7], [5, 6, 9999, 7]], [[False] * 3, [False, True, True, True]], 0, torch.float64, CPU
    )
    scores = served.score(tokens, LOGPROBS)
    assert scores.aligned_mask.tolist() == [[False] * 4, [False, True, False, False]]
    assert int((scores.logprobs != 0).sum()) == 1
