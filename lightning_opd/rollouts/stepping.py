"""Many environments take a step at once."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from lightning_opd.interfaces import Environment
from lightning_opd.types import Message, Messages

MAX_THREADS = 64
"""Most environments that take a step at once: tools mostly wait, and each may start a process."""


def step_all(environments: Sequence[Environment], replies: Sequence[Message]) -> list[Messages]:
    """Return every environment's answer to its own reply, in their order.

    Those that need the main thread step first, one after the other; the others in parallel threads.

    Raises:
        BaseException: What the first environment that failed raised; steps that have not begun are left out.
    """
    answers: list[Messages] = [()] * len(environments)
    threaded = [i for i, environment in enumerate(environments) if not environment.needs_main_thread]
    for i in sorted(set(range(len(environments))) - set(threaded)):
        answers[i] = environments[i].step(replies[i])
    if not threaded:
        return answers
    with ThreadPoolExecutor(min(MAX_THREADS, len(threaded)), thread_name_prefix="environment") as pool:
        steps = [pool.submit(environments[i].step, replies[i]) for i in threaded]
        try:
            for i, step in zip(threaded, steps, strict=True):
                answers[i] = step.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return answers
