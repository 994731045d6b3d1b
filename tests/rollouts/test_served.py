"""What an engine of servers finds out before any weight is loaded."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from lightning_opd.data.limits import shortest_context
from lightning_opd.errors import ConfigError
from lightning_opd.rollouts import VLLMEngine
from lightning_opd.servers.launch import Launch
from tests.servers.scripted import open_port, serving
from tests.world import make_data, make_module, make_trainer


def models(length: int | None) -> Any:
    return lambda path, body, number: (200, {"data": [{"id": "student", "max_model_len": length}]})


@pytest.mark.parametrize(
    ("python", "text"),
    [
        ("no/such/python", r"`launch\.python`: cannot run `no/such/python` \(No such file or directory\)\. Name the"),
        (sys.executable, r"has no vLLM\. Install `vllm` there, or name another"),
        ("false", r"`false` ends with 1 and says: nothing\. Name the Python"),
        ("ls", r"`ls` ends with 2 and says: ls: .*\. Name the Python"),
    ],
)
def test_a_python_without_vllm_is_refused_before_weights_are_loaded(
    python: str, text: str, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = make_module(world)
    monkeypatch.setattr(type(module), "configure_model", lambda self: pytest.fail("weights were loaded"))
    with pytest.raises(ConfigError, match=text):
        make_trainer(tmp_path).fit(module, make_data(engine=VLLMEngine(launch=Launch(python))))


def test_a_server_that_is_not_there_is_refused_with_its_address() -> None:
    url = f"http://127.0.0.1:{open_port()}"
    engine = VLLMEngine([url], max_retries=0)
    with pytest.raises(ConfigError) as caught:
        engine.connect()
    engine.close()
    assert str(caught.value) == (
        f"The server {url} does not answer: cannot connect: Connection refused. Start it, or leave it out of `urls`."
    )


def test_prompts_are_measured_against_what_the_servers_have_positions_for(world: Path, tmp_path: Path) -> None:
    with serving(models(40)) as long, serving(models(13)) as short:
        engine = VLLMEngine([long.url, short.url])
        assert engine.connect() == 13
        with serving(models(None)) as silent:
            assert VLLMEngine([silent.url, long.url]).connect() == 40
            assert VLLMEngine([silent.url]).connect() is None
        data, module = make_data(engine=engine), make_module(world)
        with pytest.raises(
            ConfigError, match=r"they exceed the engine's context \(vLLM's `--max-model-len`\) of 13 tokens"
        ):
            make_trainer(tmp_path).fit(module, data)


@pytest.mark.parametrize(
    ("arguments", "length"),
    [
        (("--max-model-len", "256"), 256),
        (("--max_model_len=128", "--enforce-eager"), 128),
        (("--max-model-len", "auto"), None),
        (("--enforce-eager",), None),
    ],
)
def test_the_length_of_servers_to_be_started_is_that_of_their_arguments(
    arguments: tuple[str, ...], length: int | None
) -> None:
    assert Launch(arguments=arguments).max_length == length


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ((256, None, None), (256, "the student's context")),
        ((256, 64, 64), (64, "`data.sampling.max_episode_tokens`")),
        ((256, 64, 32), (32, "the engine's context (vLLM's `--max-model-len`)")),
        ((256, None, 512), (256, "the student's context")),
    ],
)
def test_what_limits_a_prompt_is_named(lengths: tuple[int, int | None, int | None], expected: tuple[int, str]) -> None:
    assert shortest_context(*lengths) == expected
