"""Several servers of one model that share the load, over HTTP."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import ssl
import threading
import weakref
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, TypeAlias, TypeVar
from urllib.parse import urlsplit

import aiohttp

from lightning_opd.errors import ConfigError, MissingFileError
from lightning_opd.servers.errors import ServersDownError

_log = logging.getLogger(__name__)

Json: TypeAlias = dict[str, Any]
Result = TypeVar("Result")

RETRIED = frozenset({408, 429, 500, 502, 503, 504})
"""Statuses of HTTP after which the same request may succeed."""

SECONDS_TO_CONNECT = 10.0
LONGEST_PAUSE = 30.0


class _DownError(Exception):
    """One server did not answer, however often it was asked."""


class ServerPool:
    """Send requests to whichever of several servers has least to do.

    A request that fails on the way is sent again after a pause that doubles. A server that still does not answer is
    left out, with a warning, and its requests go to the others. Certificates are checked. The API key is read from the
    environment, and appears in no message.

    Args:
        urls: Such as `http://127.0.0.1:8000`, one for each server.
        api_key_variable: Environment variable that holds the key; none is sent where it is not set.
        timeout: Seconds that one request may take.
        max_retries: How often a request is sent again before its server is left out.
        requests_at_once: Requests that one server works on at a time; the others wait here.
        ca_file: Certificates to trust instead of the system's.
        first_pause: Seconds before a request is sent for the second time.

    Raises:
        ConfigError: An address or a number that cannot work.
    """

    def __init__(
        self,
        urls: str | Sequence[str],
        *,
        api_key_variable: str = "VLLM_API_KEY",
        timeout: float = 600.0,
        max_retries: int = 4,
        requests_at_once: int = 4,
        ca_file: str | None = None,
        first_pause: float = 0.5,
    ) -> None:
        """Check the settings; the first request opens the connections."""
        addresses = [urls] if isinstance(urls, str) else list(urls)
        self.urls = tuple(dict.fromkeys(_checked(url) for url in addresses))
        if not self.urls:
            msg = "`urls` must name at least one server, such as http://127.0.0.1:8000, got none."
            raise ConfigError(msg)
        for name, value, least in (
            ("timeout", timeout, 0.001),
            ("max_retries", max_retries, 0),
            ("requests_at_once", requests_at_once, 1),
        ):
            if not value >= least:
                msg = f"`{name}` of the servers at {self.urls[0]} must be at least {least:g}, got {value}."
                raise ConfigError(msg)
        if ca_file is not None and not os.path.isfile(ca_file):  # a path for ssl
            msg = f"`ca_file` must be a file of certificates, got `{ca_file}`, which is none."
            raise MissingFileError(msg)
        self._api_key_variable, self._timeout, self._max_retries = api_key_variable, timeout, max_retries
        self._requests_at_once, self._ca_file, self._first_pause = requests_at_once, ca_file, first_pause
        self._down: dict[str, str] = {}
        self._num_sent = dict.fromkeys(self.urls, 0)
        self._connections = _Connections()
        self._slots: dict[str, asyncio.Semaphore] = {}
        weakref.finalize(self, self._connections.close)

    @property
    def alive(self) -> tuple[str, ...]:
        """The servers that are not left out."""
        return tuple(url for url in self.urls if url not in self._down)

    def get(self, url: str, path: str) -> Json:
        """Return what one server answers; no other is asked in its place.

        Raises:
            ConfigError: It refuses the request.
            ServersDownError: It does not answer.
        """
        return self._wait(self._of_one(url, "GET", path, None))

    def post(self, url: str, path: str, body: Mapping[str, Any]) -> Json:
        """Return what one server answers to a body; no other is asked in its place.

        Raises:
            ConfigError: It refuses the request.
            ServersDownError: It does not answer.
        """
        return self._wait(self._of_one(url, "POST", path, body))

    def submit(self, path: str, body: Mapping[str, Any]) -> Future[Json]:
        """Send a body to the server with least to do, and return at once.

        The future raises `ConfigError` where a server refuses the request, `ServersDownError` where none is left.
        """
        return asyncio.run_coroutine_threadsafe(self._of_any(path, body), self._running_loop())

    def close(self) -> None:
        """Drop every open request, and the connections with it; a later request opens new ones."""
        self._connections.close()

    def _wait(self, work: Coroutine[Any, Any, Result]) -> Result:
        return asyncio.run_coroutine_threadsafe(work, self._running_loop()).result()

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        if self._connections.loop is None:
            self._slots = {url: asyncio.Semaphore(self._requests_at_once) for url in self.urls}
        return self._connections.running_loop()

    async def _of_one(self, url: str, method: str, path: str, body: Mapping[str, Any] | None) -> Json:
        try:
            return await self._send(url, method, path, body)
        except _DownError as error:
            msg = f"The server {url} does not answer: {error}."
            raise ServersDownError(msg) from None

    async def _of_any(self, path: str, body: Mapping[str, Any]) -> Json:
        while True:
            if not self.alive:
                reasons = "; ".join(f"{url}: {reason}" for url, reason in self._down.items())
                msg = f"No server is left ({reasons}). Start them again, then the run with `--ckpt_path last`."
                raise ServersDownError(msg)
            url = min(self.alive, key=lambda url: self._num_sent[url])
            self._num_sent[url] += 1
            try:
                async with self._slots[url]:
                    if url not in self._down:
                        return await self._send(url, "POST", path, body)
            except _DownError as error:
                self._leave_out(url, str(error))
            finally:
                self._num_sent[url] -= 1

    def _leave_out(self, url: str, reason: str) -> None:
        if url not in self._down:
            self._down[url] = reason
            if self.alive:
                others = f"{len(self.alive)} other{'s' if len(self.alive) > 1 else ''}"
                _log.warning("The server %s does not answer (%s); its requests go to the %s.", url, reason, others)

    async def _send(self, url: str, method: str, path: str, body: Mapping[str, Any] | None) -> Json:
        """Return one server's answer, asked again while that may help."""
        reason = ""
        for attempt in range(self._max_retries + 1):
            if attempt:
                await asyncio.sleep(min(LONGEST_PAUSE, self._first_pause * 2 ** (attempt - 1)))
            try:
                async with self._open_session().request(method, url + path, json=body) as answer:
                    text = await answer.text()
                    if answer.status == 200:
                        return _json(text)
                    message = _message_of(text)
            except TimeoutError:
                reason = f"no answer within {self._timeout:g} seconds"
                continue
            except (aiohttp.ClientConnectorCertificateError, aiohttp.ClientConnectorSSLError) as error:
                reason = f"TLS: {error}"
                break  # as wrong the next time
            except aiohttp.ClientConnectorError as error:
                number = error.os_error.errno or 0  # negative where a name is not known
                reason = f"cannot connect: {os.strerror(number) if number > 0 else error.os_error.strerror}"
                continue
            except (aiohttp.ClientError, ValueError, OSError) as error:
                reason = f"{type(error).__name__}: {error}"
                continue
            if answer.status not in RETRIED:
                raise ConfigError(self._refusal(url, path, answer.status, message))
            reason = f"status {answer.status}: {message}"
        raise _DownError(reason)

    def _refusal(self, url: str, path: str, status: int, message: str) -> str:
        if status in {401, 403}:
            is_set = bool(os.environ.get(self._api_key_variable))
            state = "holds a key that it does not accept" if is_set else "is not set"
            return (
                f"The server {url} asks for an API key (status {status}), and the environment variable "
                f"`{self._api_key_variable}` {state}. Put the server's key there."
            )
        return f"The server {url} refuses a request to {path} (status {status}): {message}"

    def _open_session(self) -> aiohttp.ClientSession:
        if self._connections.session is None:
            key = os.environ.get(self._api_key_variable)
            context = ssl.create_default_context(cafile=self._ca_file)
            self._connections.session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, ssl=context),
                headers={"Authorization": f"Bearer {key}"} if key else {},
                timeout=aiohttp.ClientTimeout(total=self._timeout, sock_connect=SECONDS_TO_CONNECT),
            )
        return self._connections.session


class _Connections:
    """The connections of a pool, in a thread that ends with the process whatever it waits for."""

    def __init__(self) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None
        self.session: aiohttp.ClientSession | None = None

    def running_loop(self) -> asyncio.AbstractEventLoop:
        if self.loop is None:
            self.loop = asyncio.new_event_loop()
            threading.Thread(target=_run, args=(self.loop,), name="servers", daemon=True).start()
        return self.loop

    def close(self) -> None:
        loop, self.loop = self.loop, None
        if loop is None:
            return

        async def end() -> None:
            waiting = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
            session, self.session = self.session, None
            if session is not None:
                await session.close()

        asyncio.run_coroutine_threadsafe(end(), loop).result(SECONDS_TO_CONNECT)
        loop.call_soon_threadsafe(loop.stop)


def _run(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
    finally:
        loop.close()


def _checked(url: str) -> str:
    """Return an address without its last slash and `/v1`."""
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        msg = f"`urls` must be addresses such as http://127.0.0.1:8000, got `{url}`."
        raise ConfigError(msg)
    if parts.username or parts.password:
        msg = (
            f"`urls` must hold no password, as in the one for {parts.hostname}. Put the server's key into the "
            "environment variable that `api_key_variable` names."
        )
        raise ConfigError(msg)
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/').removesuffix('/v1')}"


def _json(text: str) -> Json:
    """Return an answer as a mapping; some of vLLM's are a sentence, or nothing."""
    try:
        content = json.loads(text)
    except ValueError:
        content = text
    return content if isinstance(content, dict) else {"answer": content}


def _message_of(text: str) -> str:
    """Return what a server says about a failure, on one line."""
    content: object = _json(text)
    for name in ("answer", "error", "message", "detail"):
        if isinstance(content, dict) and name in content:
            content = content[name]
    return " ".join(str(content).split())[:300] or "no reason given"
