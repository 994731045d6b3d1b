from __future__ import annotations

import threading
import time

import pytest
from typing_extensions import override

from lightning_opd.interfaces import Environment
from lightning_opd.rollouts.stepping import step_all
from lightning_opd.types import Message, Messages


class Slow(Environment):
    """Answers with its reply after a while, or fails."""

    def __init__(self, seconds: float = 0.0, error: BaseException | None = None, *, is_quick: bool = False) -> None:
        self.seconds, self.error, self.is_quick = seconds, error, is_quick
        self.thread: threading.Thread | None = None

    @property
    @override
    def needs_main_thread(self) -> bool:
        return self.is_quick

    @override
    def reset(self) -> Messages:
        return ()

    @override
    def step(self, reply: Message) -> Messages:
        self.thread = threading.current_thread()
        time.sleep(self.seconds)
        if self.error is not None:
            raise self.error
        return (reply,)

    @override
    def reward(self) -> float:
        return 0.0


def replies(num: int) -> list[Message]:
    return [{"role": "assistant", "content": str(i)} for i in range(num)]


def test_five_hundred_and_twelve_waiting_steps_take_seconds() -> None:
    environments, started = [Slow(0.1) for _ in range(512)], time.perf_counter()
    assert step_all(environments, replies(512)) == [(reply,) for reply in replies(512)]
    assert time.perf_counter() - started < 512 * 0.1 / 4


def test_answers_keep_their_order_whatever_each_takes() -> None:
    environments = [Slow((7 * i % 5) / 100, is_quick=i % 3 == 0) for i in range(20)]
    assert step_all(environments, replies(20)) == [(reply,) for reply in replies(20)]
    for environment in environments:
        assert (environment.thread is threading.main_thread()) == environment.is_quick
    assert step_all([], []) == []


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(3)])
def test_the_first_failure_is_raised_and_nothing_more_begins(error: BaseException) -> None:
    environments = [Slow(), Slow(0.1, error), Slow(0.0, KeyError("later")), *(Slow(0.05) for _ in range(300))]
    with pytest.raises(type(error), match=str(error)):
        step_all(environments, replies(len(environments)))
    assert any(environment.thread is None for environment in environments)
