"""Requests over HTTP: shared, sent again, given up, and never with the key in a message."""

from __future__ import annotations

import threading
import time
from concurrent.futures import CancelledError
from typing import Any

import pytest

from lightning_opd.errors import ConfigError, MissingFileError
from lightning_opd.servers import ServerPool, ServersDownError
from tests.servers.scripted import open_port, serving


def echo(path: str, body: Any, number: int) -> tuple[int, Any]:
    return 200, {"path": path, "body": body, "number": number}


def test_servers_share_the_requests_and_each_gets_few_at_once() -> None:
    running, most, lock = [0], [0], threading.Lock()

    def slow(path: str, body: Any, number: int) -> tuple[int, Any]:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        time.sleep(0.05)
        with lock:
            running[0] -= 1
        return 200, {"n": body["n"]}

    with serving(slow) as first, serving(slow) as second:
        pool = ServerPool([first.url, second.url], requests_at_once=2)
        answers = [pool.submit("/x", {"n": n}) for n in range(12)]
        assert [answer.result()["n"] for answer in answers] == list(range(12))
        pool.close()
    assert len(first.bodies) == len(second.bodies) == 6
    assert most[0] <= 4


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_request_that_may_succeed_is_sent_again(status: int) -> None:
    with serving(lambda path, body, number: (200, {}) if number == 3 else (status, {"error": "busy"})) as script:
        pool = ServerPool(script.url, first_pause=0.01)
        assert pool.submit("/x", {}).result() == {}
        assert len(script.bodies) == 3
        pool.close()


def test_a_request_that_is_wrong_is_sent_once_and_says_why() -> None:
    with serving(lambda path, body, number: (400, {"error": {"message": "too long:\n 513 tokens"}})) as script:
        pool = ServerPool(script.url)
        with pytest.raises(ConfigError, match=r"status 400\): too long: 513 tokens"):
            pool.submit("/x", {}).result()
        assert len(script.bodies) == 1
        pool.close()


def test_a_dead_server_is_left_out_with_a_warning_and_nothing_is_lost() -> None:
    dead = f"http://127.0.0.1:{open_port()}"
    with serving(echo) as script:
        pool = ServerPool([dead, script.url], max_retries=1, first_pause=0.01)
        answers = [pool.submit("/x", {"n": n}) for n in range(6)]
        assert sorted(answer.result()["body"]["n"] for answer in answers) == list(range(6))
        assert pool.alive == (script.url,)
        pool.close()


def test_the_warning_names_the_dead_server_once(caplog: pytest.LogCaptureFixture) -> None:
    dead = f"http://127.0.0.1:{open_port()}"
    with serving(echo) as script:
        pool = ServerPool([dead, script.url], max_retries=0)
        for answer in [pool.submit("/x", {}) for _ in range(4)]:
            answer.result()
        pool.close()
    [text] = caplog.messages
    assert text.startswith(f"The server {dead} does not answer (cannot connect: Connection refused)")
    assert text.endswith("its requests go to the 1 other.")


def test_when_all_are_dead_the_error_names_each() -> None:
    urls = [f"http://127.0.0.1:{open_port()}" for _ in range(2)]
    pool = ServerPool(urls, max_retries=0)
    with pytest.raises(ServersDownError) as caught:
        pool.submit("/x", {}).result()
    assert all(url in str(caught.value) for url in urls)
    pool.close()


def test_a_server_that_is_too_slow_counts_as_dead() -> None:
    def late(path: str, body: Any, number: int) -> tuple[int, Any]:
        time.sleep(0.5)
        return 200, {}

    with serving(late) as script:
        pool = ServerPool(script.url, timeout=0.1, max_retries=0)
        with pytest.raises(ServersDownError, match=r"no answer within 0\.1 seconds"):
            pool.submit("/x", {}).result()
        pool.close()


def test_closing_drops_open_requests_at_once() -> None:
    started = threading.Event()

    def forever(path: str, body: Any, number: int) -> tuple[int, Any]:
        started.set()
        time.sleep(5)
        return 200, {}

    with serving(forever) as script:
        pool = ServerPool(script.url)
        pending = pool.submit("/x", {})
        assert started.wait(5)
        start = time.monotonic()
        pool.close()
        assert time.monotonic() - start < 2
        with pytest.raises(CancelledError):
            pending.result(1)


def test_the_key_is_sent_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "s3cret")
    with serving(lambda path, body, number: (401, {"error": "Unauthorized"})) as script:
        pool = ServerPool(script.url, api_key_variable="MY_KEY")
        with pytest.raises(ConfigError, match="`MY_KEY` holds a key that it does not accept") as caught:
            pool.get(script.url, "/v1/models")
        pool.close()
    assert script.headers[0]["Authorization"] == "Bearer s3cret"
    assert "s3cret" not in str(caught.value) + repr(vars(pool))


def test_a_missing_key_is_named_by_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    with serving(lambda path, body, number: (401, {"error": "Unauthorized"})) as script:
        pool = ServerPool(script.url)
        with pytest.raises(ConfigError, match="`VLLM_API_KEY` is not set"):
            pool.get(script.url, "/v1/models")
        pool.close()
    assert "Authorization" not in script.headers[0]


def test_certificates_are_checked() -> None:
    with serving(echo) as script:
        pool = ServerPool(script.url.replace("http:", "https:"), max_retries=0)
        with pytest.raises(ServersDownError):
            pool.get(pool.urls[0], "/v1/models")
        pool.close()


@pytest.mark.parametrize(
    ("urls", "settings", "text"),
    [
        ([], {}, "at least one server"),
        ("127.0.0.1:8000", {}, "must be addresses such as"),
        ("ftp://host", {}, "must be addresses such as"),
        ("http://user:pw@host:1", {}, "must hold no password"),
        ("http://host", {"timeout": 0}, "`timeout`"),
        ("http://host", {"timeout": float("nan")}, "`timeout`"),
        ("http://host", {"max_retries": -1}, "`max_retries`"),
        ("http://host", {"requests_at_once": 0}, "`requests_at_once`"),
    ],
)
def test_settings_that_cannot_work_are_refused(urls: Any, settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text) as caught:
        ServerPool(urls, **settings)
    assert "pw" not in str(caught.value)


def test_certificates_of_ones_own_must_be_there() -> None:
    with pytest.raises(MissingFileError, match="`ca_file`"):
        ServerPool("https://host", ca_file="nowhere.pem")
