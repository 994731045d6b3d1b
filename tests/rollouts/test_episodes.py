from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_opd.errors import ConfigError
from lightning_opd.functional.logprobs import token_logprobs
from lightning_opd.interfaces import FormatRule, OnProgress
from lightning_opd.models import StudentConfig, build_student, causal_lm, load_tokenizer
from lightning_opd.rollouts import InProcessEngine
from lightning_opd.rollouts.noise import row_seed
from lightning_opd.tasks.format_rules import NamedRule, Truncated
from lightning_opd.tokenization.chat import decode_response, render_answer, render_prompt
from lightning_opd.tokenization.training import train_tokenizer
from lightning_opd.tokenization.turn_borders import stop_token_ids
from lightning_opd.types import Prompt, Sample, Sampling, Trajectory
from tests.agents import ADVERSARIAL_OUTPUTS, RandomEngine, ScriptedChat, Talk
from tests.tiny import SPECIAL_TOKENS, TEXTS
from tests.tokenization.templates import tokenizer_with
from tests.world import STOPS, Letters, run_episodes

TOKENIZER = train_tokenizer(TEXTS, vocab_size=288, special_tokens=SPECIAL_TOKENS)
ONE_STOP = stop_token_ids(TOKENIZER)
SAMPLING = Sampling(max_new_tokens=8, stop_token_ids=STOPS)
LONG = 10**9
answers = st.lists(st.one_of(st.sampled_from(ADVERSARIAL_OUTPUTS), st.text(max_size=8)), min_size=1, max_size=12)


def seeds(num: int) -> list[int]:
    return [row_seed(0, i) for i in range(num)]


def talk(answers: list[str], turns: int, max_turns: int = 10**6, num: int = 2) -> tuple[list[Trajectory], RandomEngine]:
    """Run episodes of `turns` answers each with an engine that generates random tokens."""

    class Long(ScriptedChat):
        def environment(self, prompt: Prompt) -> Talk:
            return Talk(prompt, [answers[i % len(answers)] for i in range(turns)])

    engine, sampling = RandomEngine(288), Sampling(max_new_tokens=6, max_turns=max_turns, stop_token_ids=ONE_STOP)
    prompts = Long().prompts("train")[:num]
    return run_episodes(Long(), prompts, engine, TOKENIZER, seeds(2 * num), sampling, LONG), engine


def check_layout(trajectory: Trajectory, samples: list[Sample]) -> None:
    """The tokens are the prompt's, the sampled ones and the template's between them, nothing else."""
    ids = render_prompt(TOKENIZER, trajectory.turns[0].messages)
    mask = [False] * len(ids)
    logprobs = [0.0] * len(ids)
    for turn, following, sample in zip(trajectory.turns, [*trajectory.turns[1:], None], samples, strict=True):
        assert (turn.start, turn.end) == (len(ids), len(ids) + len(sample.token_ids))
        assert turn.text == decode_response(TOKENIZER, sample.token_ids, ONE_STOP)
        ids += sample.token_ids
        mask += [True] * len(sample.token_ids)
        logprobs += sample.logprobs
        if following is not None:
            reply, *answer = following.messages[len(turn.messages) :]
            assert reply == {"role": "assistant", "content": turn.text}
            given = render_answer(TOKENIZER, turn.messages, answer)
            ids += given
            mask += [False] * len(given)
            logprobs += [0.0] * len(given)
    assert trajectory.token_ids == tuple(ids)
    assert trajectory.response_mask == tuple(mask)
    assert trajectory.logprobs == tuple(logprobs)


@settings(max_examples=12, deadline=None)
@given(answers, st.integers(0, 12))
def test_tokens_and_mask_survive_any_reply(answers: list[str], turns: int) -> None:
    trajectories, engine = talk(answers, turns)
    assert engine.calls == turns + 1
    for row, trajectory in enumerate(trajectories):
        check_layout(trajectory, [samples[row] for samples in engine.written])
        assert not trajectory.is_truncated


def test_tokens_and_mask_survive_forty_turns() -> None:
    trajectories, engine = talk(list(ADVERSARIAL_OUTPUTS), 40, num=1)
    for row, trajectory in enumerate(trajectories):
        assert len(trajectory.turns) == 41
        check_layout(trajectory, [samples[row] for samples in engine.written])


def test_each_turn_has_noise_of_its_own() -> None:
    class Watched(RandomEngine):
        def generate(
            self,
            token_ids: Sequence[Sequence[int]],
            num_samples: int,
            seeds: Sequence[int],
            sampling: Sampling = SAMPLING,
            on_progress: OnProgress | None = None,
        ) -> list[Sample]:
            seen.extend(seeds)
            return super().generate(token_ids, num_samples, seeds, sampling, on_progress)

    seen: list[int] = []
    sampling = Sampling(max_new_tokens=6, stop_token_ids=ONE_STOP)
    run_episodes(ScriptedChat(), ScriptedChat().prompts("train"), Watched(288), TOKENIZER, seeds(24), sampling, LONG)
    assert seen[:24] == seeds(24), "the first turn's is the episode's own"
    assert len(seen) > 40
    assert len(set(seen)) == len(seen)


def test_only_the_last_reply_of_a_truncated_episode_is_truncated() -> None:
    class Ruled(ScriptedChat):
        def format_rules(self) -> list[FormatRule]:
            return [Truncated()]

    sampling = Sampling(max_new_tokens=6, max_turns=2, stop_token_ids=ONE_STOP)
    prompts = Ruled().prompts("train")
    trajectories = run_episodes(Ruled(), prompts, RandomEngine(288), TOKENIZER, seeds(12), sampling, LONG)
    assert {trajectory.is_truncated for trajectory in trajectories} == {True, False}
    for trajectory in trajectories:
        last = ("truncated",) if trajectory.is_truncated else ()
        assert [turn.format_errors for turn in trajectory.turns] == [()] * (len(trajectory.turns) - 1) + [last]
        assert trajectory.format_errors == last
    assert any(t.is_truncated and len(t.turns) == 2 for t in trajectories)


def student_of(folder: Path, dtype: str = "float64") -> tuple[InProcessEngine, torch.nn.Module]:
    model = build_student(StudentConfig(str(folder), dtype=dtype))
    engine = InProcessEngine()
    engine.sync(model, 0)
    return engine, model


def test_one_reply_is_what_the_engine_generates_from_the_episodes_seed(tiny_model_dir: Path) -> None:
    engine, _ = student_of(tiny_model_dir, "float32")
    prompts = Letters().prompts("train")[:4]
    episodes = run_episodes(Letters(), prompts, engine, TOKENIZER, seeds(8), SAMPLING, 256)
    rendered = [render_prompt(TOKENIZER, prompt.messages) for prompt in prompts]
    for episode, sample in zip(episodes, engine.generate(rendered, 2, seeds(8), SAMPLING), strict=True):
        assert episode.token_ids[-len(sample.token_ids) :] == episode.reply_ids == sample.token_ids
        assert len(episode.turns) == 1


def test_logprobs_of_later_turns_equal_those_of_a_plain_forward(double_world: Path) -> None:
    engine, model = student_of(double_world / "student")
    prompts = ScriptedChat().prompts("train")[:8]
    trajectories = run_episodes(ScriptedChat(), prompts, engine, TOKENIZER, seeds(16), SAMPLING, 256)
    assert max(len(t.turns) for t in trajectories) > 2
    model.eval()
    for trajectory in trajectories:
        ids = torch.tensor([trajectory.token_ids])
        with torch.no_grad():
            expected = token_logprobs(causal_lm(model)(ids).logits, ids)[0]
        written = torch.tensor(trajectory.response_mask)
        got = torch.tensor(trajectory.logprobs, dtype=torch.float64)
        assert torch.allclose(got[written], expected[written], atol=1e-9)


def test_an_episode_does_not_depend_on_those_beside_it(double_world: Path) -> None:
    engine, _ = student_of(double_world / "student")
    prompts = ScriptedChat().prompts("train")[:8]
    together = run_episodes(ScriptedChat(), prompts, engine, TOKENIZER, seeds(16), SAMPLING, 256)
    alone = run_episodes(ScriptedChat(), prompts[3:4], engine, TOKENIZER, seeds(16)[6:8], SAMPLING, 256)
    assert [t.token_ids for t in alone] == [t.token_ids for t in together[6:8]]
    siblings = [t.token_ids for t in together[6:8]]
    assert len(set(siblings)) == 2


def test_rows_leave_the_batch_so_that_few_are_carried_along(tiny_model_dir: Path) -> None:
    engine, _ = student_of(tiny_model_dir, "float32")
    prompts = ScriptedChat(num_prompts=32).prompts("train")
    sampling = dataclasses.replace(SAMPLING, max_new_tokens=40)
    trajectories = run_episodes(ScriptedChat(32), prompts, engine, TOKENIZER, seeds(128), sampling, 250)
    lengths = [turn.end - turn.start for t in trajectories for turn in t.turns]
    assert max(lengths) > 4 * min(lengths), "replies must have uneven lengths"
    assert len({len(t.turns) for t in trajectories}) > 2
    assert engine.occupancy >= 0.95


def test_limits_end_an_episode_as_truncated() -> None:
    by_turns, engine = talk(["again"], 50, max_turns=3)
    assert engine.calls == 3
    assert all(t.is_truncated and len(t.turns) == 3 and t.response_mask[-1] for t in by_turns)
    within, _ = talk(["again"], 2, max_turns=3)
    assert not any(t.is_truncated for t in within)
    prompts, sampling = ScriptedChat(turns=4).prompts("train"), Sampling(max_new_tokens=6, stop_token_ids=ONE_STOP)
    engine = RandomEngine(288)
    limited = dataclasses.replace(sampling, max_episode_tokens=60)
    for trajectory in run_episodes(ScriptedChat(), prompts, engine, TOKENIZER, seeds(12), limited, LONG):
        assert len(trajectory.token_ids) <= 60
        num_turns = int(str(trajectory.prompt.columns["number"])) % 4 + 1
        assert trajectory.is_truncated == (len(trajectory.turns) < num_turns)


def test_a_cut_reply_ends_the_episode_but_is_still_checked(tiny_model_dir: Path) -> None:
    engine, _ = student_of(tiny_model_dir, "float32")
    never = Sampling(max_new_tokens=3, stop_token_ids=(287,), vocab_size=287)
    for trajectory in run_episodes(
        ScriptedChat(), ScriptedChat().prompts("train"), engine, TOKENIZER, seeds(12), never, 256
    ):
        assert trajectory.is_truncated
        assert len(trajectory.turns) == 1
        assert trajectory.reward == float(len(trajectory.text) < 20)


class SecondTurn(NamedRule):
    """Broken by the second reply, which it knows from the turns so far."""

    def is_broken(self, trajectory: Trajectory) -> bool:
        assert trajectory.text == trajectory.turns[-1].text
        assert len(trajectory.token_ids) == trajectory.turns[-1].end
        return len(trajectory.turns) == 2


def test_each_reply_is_checked_by_itself() -> None:
    class Ruled(ScriptedChat):
        def format_rules(self) -> list[FormatRule]:
            return [SecondTurn()]

    sampling = Sampling(max_new_tokens=6, stop_token_ids=ONE_STOP)
    prompts = Ruled().prompts("train")
    trajectories = run_episodes(Ruled(), prompts, RandomEngine(288), TOKENIZER, seeds(12), sampling, LONG)
    for trajectory in trajectories:
        expected = [("second_turn",) if i == 1 else () for i in range(len(trajectory.turns))]
        assert [turn.format_errors for turn in trajectory.turns] == expected
        assert trajectory.format_errors == (("second_turn",) if len(trajectory.turns) > 1 else ())


def test_progress_ends_at_the_number_of_episodes(tiny_model_dir: Path) -> None:
    engine, _ = student_of(tiny_model_dir, "float32")
    seen: list[int] = []
    prompts = ScriptedChat().prompts("train")
    tokenizer = load_tokenizer(str(tiny_model_dir))
    played = run_episodes(ScriptedChat(), prompts, engine, tokenizer, seeds(12), SAMPLING, 256, seen.append)
    num_turns = max(len(trajectory.turns) for trajectory in played)
    last = [trajectory for trajectory in played if len(trajectory.turns) == num_turns]
    assert seen[0] < 12 - len(last)
    assert seen[-1] == max(seen) == 12


def test_limits_must_be_positive() -> None:
    wrongs: tuple[dict[str, Any], ...] = ({"max_turns": 0}, {"max_episode_tokens": 0})
    for wrong in wrongs:
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Sampling(**wrong)


def test_a_template_that_rewrites_earlier_turns_is_refused_at_the_first_answer() -> None:
    tokenizer = tokenizer_with("last closer")
    sampling = Sampling(max_new_tokens=6, stop_token_ids=stop_token_ids(tokenizer))
    chat = ScriptedChat()
    with pytest.raises(ConfigError, match=r"otherwise once.*turn by turn.*`data\.sampling\.max_turns`"):
        run_episodes(chat, chat.prompts("train"), RandomEngine(288), tokenizer, seeds(24), sampling, LONG)
    one = dataclasses.replace(sampling, max_turns=1)
    assert run_episodes(chat, chat.prompts("train"), RandomEngine(288), tokenizer, seeds(24), one, LONG)
