"""A real HTTP server in this process that answers as a test wants."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = tuple[int, Any]
"""Status and body."""


class Script:
    """What a server was asked, and what it says.

    Args:
        answer: From (path, body, number of the request) to an answer.
    """

    def __init__(self, answer: Callable[[str, Any, int], Answer]) -> None:
        self.answer = answer
        self.headers: list[dict[str, str]] = []
        self.bodies: list[Any] = []
        self.url = ""
        self.lock = threading.Lock()


@contextmanager
def serving(answer: Callable[[str, Any, int], Answer]) -> Iterator[Script]:
    """Run a server on a free port until the end of the block."""
    script = Script(answer)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._respond(None)

        def do_POST(self) -> None:
            self._respond(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def _respond(self, body: Any) -> None:
            with script.lock:
                script.headers.append(dict(self.headers.items()))
                script.bodies.append(body)
                number = len(script.bodies)
            status, content = script.answer(self.path, body, number)
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            """Stay silent."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.handle_error = lambda request, client_address: None  # type: ignore[method-assign]  # clients leave
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    script.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield script
    finally:
        server.shutdown()
        server.server_close()


def open_port() -> int:
    """Return a port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
