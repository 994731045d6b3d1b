"""The next rollout batch, generated while the student learns from this one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass

from lightning_opd.rollouts.episodes import Episode


@dataclass(frozen=True)
class Generated:
    """The episodes of a rollout batch.

    Args:
        episodes: Finished, not yet rewarded.
        version: Of the student's weights that generated them.
    """

    episodes: list[Episode]
    version: int


class GenerationAhead:
    """At most one rollout batch that is generated in a thread; a process that ends does not wait for it."""

    def __init__(self) -> None:
        """Start with none."""
        self._index = -1
        self._running: Future[Generated] | None = None

    def start(self, index: int, version: int, generate: Callable[[], list[Episode]]) -> None:
        """Begin a rollout batch; the student's weights of that version are with the engine."""
        self.wait()
        self._index, self._running = index, Future()
        threading.Thread(target=_run, args=(self._running, version, generate), name="generate", daemon=True).start()

    def take(self, index: int) -> Generated | None:
        """Wait for a rollout batch and return it; None where another one, or none, was begun.

        Raises:
            Exception: What went wrong while it was generated.
        """
        running, self._running = self._running, None
        if running is None or self._index != index:
            return None
        return running.result()

    def wait(self) -> None:
        """Return when nothing is generated any more; the engine may be used for something else."""
        if self._running is not None:
            with suppress(Exception):  # `take` raises it
                self._running.result()

    def close(self) -> None:
        """Wait for what is generated, and forget it."""
        self.wait()
        self._running = None


def _run(future: Future[Generated], version: int, generate: Callable[[], list[Episode]]) -> None:
    try:
        future.set_result(Generated(generate(), version))
    except BaseException as error:  # for `take` to raise
        future.set_exception(error)
