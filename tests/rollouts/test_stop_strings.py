from __future__ import annotations

from pathlib import Path

from lightning_opd.models import load_tokenizer
from lightning_opd.rollouts.stop_strings import StopStrings
from lightning_opd.types import Sampling
from tests.world import Recorder, make_data, make_module, make_trainer


def test_a_string_is_found_however_its_characters_are_cut_into_tokens(world: Path) -> None:
    tokenizer = load_tokenizer(str(world / "student"))
    string = "€ab"
    stops = StopStrings((string,), tokenizer)
    token_ids = tokenizer.encode("question cd " + string + " x")
    ends = [stops.has_ended(token_ids[: n + 1][stops.tail(n + 1)]) for n in range(len(token_ids))]
    whole = [string in tokenizer.decode(token_ids[: n + 1]) for n in range(len(token_ids))]
    first = whole.index(True)
    assert ends[: first + 1] == whole[: first + 1]
    assert len(tokenizer.encode(string)) > 3, "a character of several tokens"


def test_stop_strings_end_replies_of_a_run(world: Path, tmp_path: Path) -> None:
    module, recorder = make_module(world), Recorder()
    sampling = Sampling(max_new_tokens=12, stop_strings=("a", "b"))
    make_trainer(tmp_path, recorder, max_steps=1).fit(module, make_data(sampling=sampling))
    trajectories = recorder.rollout_batches[0].trajectories
    said = [t for t in trajectories if "a" in t.text or "b" in t.text]
    assert said
    for trajectory in said:
        reply = [i for i, own in zip(trajectory.token_ids, trajectory.response_mask, strict=True) if own]
        assert {"a", "b"} & set(str(module.tokenizer.decode(reply)))
        assert not {"a", "b"} & set(str(module.tokenizer.decode(reply[:-1])))
        assert not trajectory.is_truncated
