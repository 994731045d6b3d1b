"""Starts a vLLM server on this machine and stops it with everything that it has started."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from lightning_opd.errors import ConfigError

SECONDS_TO_STOP = 10.0
ENVIRONMENT = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
"""No telemetry, and on a CPU one GiB of keys and values instead of nine tenths of the memory."""

SECONDS_TO_LOOK = 60.0
NO_VLLM_EXIT_CODE = 3
NAME_PYTHON = "Name the Python of an environment that has vLLM, such as `vllm_env/bin/python`."

_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Launch:
    """How to start vLLM servers on this machine.

    Args:
        python: Interpreter of the environment that vLLM is installed in; vLLM's own needs differ from a trainer's.
        num_servers: How many; they share the load.
        arguments: Further arguments of vLLM's server, such as `["--max-model-len", "4096"]`.
        environments: Further environment variables, one mapping for each server in turn, such as
            `[{CUDA_VISIBLE_DEVICES: "1"}]`.
        log_folder: Where `vllm<i>.log` of each server is written.
        timeout: Seconds until they must be able to answer.
    """

    python: str = sys.executable
    num_servers: int = 1
    arguments: tuple[str, ...] = ()
    environments: tuple[dict[str, str], ...] = ()
    log_folder: str = "."
    timeout: float = 600.0

    def __post_init__(self) -> None:
        """Refuse numbers that cannot work."""
        if self.num_servers < 1:
            msg = f"`launch.num_servers` must be at least 1, got {self.num_servers}."
            raise ConfigError(msg)
        if len(self.environments) > self.num_servers:
            msg = (
                f"`launch.environments` has {len(self.environments)} mappings for {self.num_servers} server(s). Give "
                "one for each, or raise `launch.num_servers`."
            )
            raise ConfigError(msg)

    @property
    def max_length(self) -> int | None:
        """Most tokens of a prompt with its reply, where the arguments say so."""
        words = " ".join(self.arguments).replace("=", " ").replace("_", "-").split()
        given = [words[i + 1] for i, word in enumerate(words[:-1]) if word == "--max-model-len"]
        return int(given[-1]) if given and given[-1].isdigit() else None

    def check(self) -> None:
        """Refuse what is no interpreter, or one that has no vLLM.

        Raises:
            ConfigError: With what to name instead.
        """
        probe = f"import importlib.util, sys; sys.exit(0 if importlib.util.find_spec('vllm') else {NO_VLLM_EXIT_CODE})"
        try:
            found = subprocess.run(
                [self.python, "-c", probe],
                env=_environment(),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=SECONDS_TO_LOOK,
                check=False,
            )
        except OSError as error:
            msg = f"`launch.python`: cannot run `{self.python}` ({error.strerror}). {NAME_PYTHON}"
            raise ConfigError(msg) from None
        except subprocess.TimeoutExpired:
            msg = f"`launch.python`: `{self.python}` does not answer within {SECONDS_TO_LOOK:g} seconds. {NAME_PYTHON}"
            raise ConfigError(msg) from None
        if found.returncode == NO_VLLM_EXIT_CODE:
            msg = f"`launch.python`: `{self.python}` has no vLLM. Install `vllm` there, or name another. {NAME_PYTHON}"
            raise ConfigError(msg)
        if found.returncode:
            last = (found.stderr.strip().splitlines() or ["nothing"])[-1]
            msg = f"`launch.python`: `{self.python}` ends with {found.returncode} and says: {last}. {NAME_PYTHON}"
            raise ConfigError(msg)

    def servers(self, model: str, arguments: Sequence[str], folder: Path) -> list[LocalServer]:
        """Return servers of a model that take new weights, not started yet.

        Args:
            model: Folder or hub name.
            arguments: For this model; those of the settings come after them.
            folder: For what the server has to import.
        """
        shutil.copy(Path(__file__).parent / "worker_extension.py", folder / "opd_worker_extension.py")
        taking = ["--logprobs-mode", "processed_logprobs", "--worker-extension-cls", "opd_worker_extension.Weights"]
        allowing = {
            "PYTHONPATH": str(folder),
            "VLLM_SERVER_DEV_MODE": "1",
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
        }
        return [
            LocalServer(
                model,
                self.python,
                "student",
                arguments=[*taking, *arguments, *self.arguments],
                environment={**allowing, **(self.environments[i] if i < len(self.environments) else {})},
                log=str(Path(self.log_folder) / f"vllm{i}.log"),
                timeout=self.timeout,
            )
            for i in range(self.num_servers)
        ]


class LocalServer:
    """A vLLM server in a process group of its own, on a free port of the loopback interface.

    Use it as a context, or call `start` and `stop`. On Linux it is also told to end when this process is killed.

    Args:
        model: Folder or hub name.
        python: Interpreter of the environment that vLLM is installed in; vLLM's own needs differ from a trainer's.
        name: What clients call the model.
        port: Where to listen; a free one by default.
        arguments: Further arguments of vLLM's server, such as `["--dtype", "float32"]`.
        environment: Further environment variables of the server.
        log: File for what the server prints.
        timeout: Seconds until it must be able to answer.
    """

    def __init__(
        self,
        model: str,
        python: str = sys.executable,
        name: str = "model",
        port: int | None = None,
        arguments: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        log: str = "vllm.log",
        timeout: float = 600.0,
    ) -> None:
        """Remember the settings; `start` starts it."""
        self.model, self.python, self.name = model, python, name
        self.port = port or _free_port()
        self.arguments, self.environment = tuple(arguments), dict(environment or {})
        self.log, self.timeout = Path(log), timeout
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def is_running(self) -> bool:
        """Whether its first process lives."""
        return self._process is not None and self._process.poll() is None

    def __enter__(self) -> LocalServer:
        """Start it, and wait until it answers."""
        self.start()
        self.wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop it."""
        self.stop()

    def start(self) -> None:
        """Start the process and return at once.

        Raises:
            ConfigError: The interpreter cannot be run, or the port is taken.
        """
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                msg = f"Port {self.port} is taken already; leave `port` out, or name another one."
                raise ConfigError(msg)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        command = [self.python, "-m", "vllm.entrypoints.openai.api_server", "--model", self.model]
        command += ["--served-model-name", self.name, "--host", "127.0.0.1", "--port", str(self.port)]
        try:
            with self.log.open("wb") as output:
                self._process = subprocess.Popen(
                    [*command, *self.arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env={**_environment(), **ENVIRONMENT, **self.environment},
                    start_new_session=True,
                    preexec_fn=_end_with_parent,  # noqa: PLW1509  # one call of the C library
                )
        except OSError as error:
            msg = f"Cannot run `{self.python}` ({error.strerror}). {NAME_PYTHON}"
            raise ConfigError(msg) from None
        atexit.register(self.stop)

    def wait(self) -> None:
        """Return when the server answers.

        Raises:
            ConfigError: It ended, or does not answer in time; with the last lines that it printed.
        """
        deadline = time.monotonic() + self.timeout
        while time.monotonic() < deadline:
            if not self.is_running:
                self.stop()
                msg = f"The vLLM server of `{self.model}` has ended; `{self.log}` says: {self._last_words()}"
                raise ConfigError(msg)
            with (
                contextlib.suppress(urllib.error.URLError, OSError),
                urllib.request.urlopen(f"{self.url}/health", timeout=5) as answer,  # loopback
            ):
                if answer.status == 200:
                    return
            time.sleep(0.5)
        self.stop()
        msg = f"The vLLM server of `{self.model}` does not answer after {self.timeout:g} seconds; see `{self.log}`."
        raise ConfigError(msg)

    def stop(self) -> None:
        """End its whole process group: asked first, then killed."""
        atexit.unregister(self.stop)
        process, self._process = self._process, None
        if process is not None:
            _signal_group(process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(SECONDS_TO_STOP)
            _signal_group(process.pid, signal.SIGKILL)
            process.wait()

    def kill(self) -> None:
        """End its whole process group at once."""
        if self._process is not None:
            _signal_group(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def _last_words(self) -> str:
        """Return the server's own last error, or else its last line."""
        with self.log.open(encoding="utf-8", errors="replace") as file:
            lines = [re.sub(r"\x1b\[[0-9;]*m", "", line).strip() for line in deque(file, maxlen=200)]
        errors = [line for line in lines if re.match(r"(\(.*?\) )?\S*(Error|Exception)\b", line)]
        return (errors or [line for line in lines if line] or ["nothing"])[-1]


def _environment() -> dict[str, str]:
    """Return the environment variables that a server inherits: none that are for this process's Python."""
    return {k: v for k, v in os.environ.items() if k not in {"PYTHONPATH", "PYTHONWARNINGS"}}


def _end_with_parent() -> None:
    """Let the server be told to end when this process ends, however it does (Linux)."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _signal_group(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, number)
