"""Data sets of the hub, asked through a real server that answers badly, late or not at all."""

from __future__ import annotations

import http.server
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import datasets
import huggingface_hub
import pytest
from datasets.packaged_modules.json.json import Json
from typing_extensions import override

from lightning_opd.errors import ConfigError
from lightning_opd.models import hub
from lightning_opd.models.hub import locate
from lightning_opd.tasks import Jsonl


@pytest.fixture
def _online(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(hub, "TIMEOUT", 0.3)
    hub.hub_problem.cache_clear()
    yield
    hub.hub_problem.cache_clear()


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch, _online: None) -> Iterator[None]:
    """A hub that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        yield


class Refusal(http.server.BaseHTTPRequestHandler):
    """Answers as the hub does where there is no such repository."""

    def do_GET(self) -> None:
        """Refuse."""
        self.send_response(404)
        self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

    @override
    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def without_repositories(monkeypatch: pytest.MonkeyPatch, _online: None) -> Iterator[None]:
    """A hub that has nothing."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusal) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        yield
        server.shutdown()


def save_in_cache(folder: Path) -> None:
    """Leave what `datasets` leaves in its cache after it has loaded `org/name`."""
    rows = folder / "rows.jsonl"
    rows.parent.mkdir()
    rows.write_text('{"prompt": "Hi", "teacher": "math"}\n')
    builder = Json(cache_dir=str(folder), dataset_name="name", hash="abc", data_files={"train": [str(rows)]})
    builder.download_and_prepare()
    [made] = (folder / "name").iterdir()
    (folder / "org___name").mkdir()
    made.rename(folder / "org___name" / "main")
    info = folder / "org___name" / "main" / "0.0.0" / "abc" / "dataset_info.json"
    info.write_text(json.dumps({**json.loads(info.read_text()), "config_name": "main"}))


@pytest.mark.parametrize("name", ["org/name", "org/name:main"])
@pytest.mark.usefixtures("silent")
def test_a_hub_that_does_not_answer_is_given_up_soon_and_in_one_line(name: str) -> None:
    begin = time.monotonic()
    with pytest.raises(
        ConfigError, match=rf"data at `{name}`.*hub cannot be reached \(\w+\).*check the network"
    ) as caught:
        Jsonl(name).prompts("train")
    assert time.monotonic() - begin < 5, "datasets alone tries six times, with pauses of 23 seconds"
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["org/name", "org/name:main"])
@pytest.mark.parametrize("is_offline", [False, True])
@pytest.mark.usefixtures("silent")
def test_a_data_set_in_the_cache_is_read_without_the_hub(
    name: str, is_offline: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_in_cache(tmp_path / "cache")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", is_offline)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", is_offline)
    [prompt] = Jsonl(name).prompts("train")
    assert (prompt.messages[0]["content"], prompt.place) == ("Hi", f"{name} (train):1")


@pytest.mark.usefixtures("silent")
def test_another_configuration_than_the_cached_one_is_refused_with_those_that_there_are(tmp_path: Path) -> None:
    save_in_cache(tmp_path / "cache")
    with pytest.raises(ConfigError, match=r"cannot be reached.*for config 'other'.*\['main'\]"):
        Jsonl("org/name:other").prompts("train")


@pytest.mark.usefixtures("without_repositories")
def test_a_name_that_the_hub_does_not_have_is_told_from_a_network_that_fails() -> None:
    with pytest.raises(ConfigError, match="`org/name`, which is no file or folder and no data set on the hub"):
        Jsonl("org/name").prompts("train")
    with pytest.raises(ConfigError, match="`org/name`, which is no folder and no model on the hub"):
        locate("org/name", "a model")
