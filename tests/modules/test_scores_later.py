"""A teacher that computes elsewhere gets an episode as soon as it ends, while others are still generated."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from typing_extensions import override

from lightning_opd.data import Evaluation
from lightning_opd.functional.off_policy import TruncatedImportance
from lightning_opd.interfaces import ScoresLater
from lightning_opd.models import load_tokenizer
from lightning_opd.objectives import PolicyGradient
from lightning_opd.rollouts.episodes import generate_episodes
from lightning_opd.teachers import LocalTeacher
from lightning_opd.types import Prompt, SampledTokens, Sampling, Signal, TeacherScores
from tests.agents import ScriptedChat
from tests.modules.test_overlap import Copying
from tests.rollouts.test_episodes import seeds, student_of
from tests.world import STOPS, Recorder, make_data, make_module, make_trainer


class Elsewhere(LocalTeacher, ScoresLater):
    """Scores when it is waited for, and notes what it was told in between."""

    def __init__(self, path: str) -> None:
        super().__init__(path, dtype="float32")
        self.begun = list[tuple[tuple[int, ...], frozenset[Signal]]]()
        self.calls = list[str]()
        self.rows = list[tuple[tuple[int, ...], frozenset[Signal]]]()

    @override
    def begin(self, token_ids: Sequence[Sequence[int]], signals: frozenset[Signal]) -> None:
        self.calls.append("begin")
        self.begun += [(tuple(ids), signals) for ids in token_ids]

    @override
    def submit(self, tokens: SampledTokens, signals: frozenset[Signal]) -> Callable[[], TeacherScores]:
        self.calls.append("submit")
        for ids, attention in zip(tokens.token_ids, tokens.attention_mask, strict=True):
            self.rows.append((tuple(ids[attention].tolist()), signals))
        return lambda: self.score(tokens, signals)


@pytest.mark.parametrize("is_ahead", [False, True], ids=["in turn", "ahead"])
def test_what_is_submitted_was_begun_as_it_ended(world: Path, tmp_path: Path, is_ahead: bool) -> None:
    teacher, recorder = Elsewhere(str(world / "math")), Recorder()
    objective = PolicyGradient(off_policy=TruncatedImportance())
    module = make_module(world, objective, teachers={"math": teacher})
    data = make_data(engine=Copying(is_ahead=is_ahead), evaluation=Evaluation(num_validation_prompts=2))
    make_trainer(tmp_path, recorder, max_steps=3, limit_val_batches=1, val_check_interval=1).fit(module, data)
    assert Counter(teacher.begun) == Counter(teacher.rows)
    assert {signals for _, signals in teacher.rows} == {frozenset({Signal.LOGPROBS})}
    assert len(teacher.rows) > 12
    assert teacher.calls.count("begin") > 2 * teacher.calls.count("submit"), "not all at once"
    for rollouts in recorder.rollout_batches:
        own = rollouts.token_ids[[t.prompt.teacher == "math" for t in rollouts.trajectories]]
        assert set(map(tuple, own.tolist())) <= {(*ids, *[0] * (own.shape[1] - len(ids))) for ids, _ in teacher.rows}


def test_other_teachers_are_not_asked_ahead(world: Path, tmp_path: Path) -> None:
    teacher = Elsewhere(str(world / "math"))
    module = make_module(world, teachers={"math": teacher})
    make_trainer(tmp_path, max_steps=1).fit(module, make_data())
    assert len(teacher.begun) == len(teacher.rows) == 4, "the other four are another teacher's"


def test_an_episode_of_many_turns_is_told_once_when_it_is_over(tiny_model_dir: Path) -> None:
    engine, _ = student_of(tiny_model_dir, "float32")
    told: list[tuple[Prompt, Sequence[int]]] = []
    turns: list[int] = []

    def on_end(ended: Sequence[tuple[Prompt, Sequence[int]]]) -> None:
        told.extend((prompt, tuple(ids)) for prompt, ids in ended)
        turns.extend(len(ids) for _, ids in ended)

    task, sampling = ScriptedChat(), Sampling(max_new_tokens=8, stop_token_ids=STOPS)
    prompts, tokenizer = task.prompts("train"), load_tokenizer(str(tiny_model_dir))
    episodes = generate_episodes(task, prompts, engine, tokenizer, seeds(12), sampling, 256, None, on_end)
    assert sorted((prompt.key, ids) for prompt, ids in told) == sorted(
        (episode.prompt.key, tuple(episode.token_ids)) for episode in episodes
    )
    assert turns != [len(episode.token_ids) for episode in episodes], "in the order in which they end"
