from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_opd.cli.main import main
from lightning_opd.errors import ConfigError
from lightning_opd.merge.plan import check_teacher
from lightning_opd.merge.route import Attempt, choose, read_rows, summary
from lightning_opd.models import Lora, load_causal_lm, load_tokenizer
from lightning_opd.tokenization.chat import render_prompt
from tests.tiny import save_adapter, save_model

ROUTE = ["route", "--experts", "math=models/math", "code=loras/code", "--prompts", "prompts.jsonl"]
SHORT = ["--max_new_tokens", "6", "--output", "out.jsonl"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, an adapter on it and a whole model."""
    folder = tmp_path_factory.mktemp("route")
    for seed, name in enumerate(("base", "models/math")):
        save_model(folder / name, seed=seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        save_adapter(Path("base"), Path("loras/code"), 1, Lora(rank=2))
    return folder


@pytest.fixture
def folder(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for path in home.iterdir():
        shutil.copytree(path, tmp_path / path.name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(rows: list[dict[str, Any]]) -> None:
    Path("prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))


def routed(path: str = "out.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


@torch.no_grad()
def by_hand(path: str, question: str, length: int = 6) -> tuple[str, float]:
    """Return a model's greedy answer and its mean log-prob, by plain forwards."""
    tokenizer, model = load_tokenizer(path), load_causal_lm(path).eval()
    ids = list(render_prompt(tokenizer, [{"role": "user", "content": question}]))
    start, total = len(ids), 0.0
    stops = {tokenizer.eos_token_id}
    while len(ids) - start < length and not (len(ids) > start and ids[-1] in stops):
        logprobs = model(torch.tensor([ids])).logits[0, -1, : len(tokenizer)].log_softmax(-1)
        ids.append(int(logprobs.argmax()))
        total += float(logprobs.max())
    reply = [token for token in ids[start:] if token not in stops]
    return str(tokenizer.decode(reply)), total / (len(ids) - start)


def test_without_answers_the_likelihood_of_the_experts_own_answer_decides(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write([{"prompt": f"What is {i}?", "note": [i]} for i in range(8)])
    assert main([*ROUTE, *SHORT]) == 0
    rows = routed()
    assert [row["note"] for row in rows] == [[i] for i in range(8)], "all columns stay"
    for row in rows[:4]:
        found = {
            name: by_hand(path, row["prompt"])[1] for name, path in (("math", "models/math"), ("code", "loras/code"))
        }
        assert row["teacher"] == max(found, key=lambda name: found[name])
    said = capsys.readouterr().out
    assert "the reward decided 0%, the likelihood the others" in said
    assert "8 rows got a teacher, 8 of them were tried" in said


def test_with_answers_the_reward_decides(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    questions = [f"What is {i}?" for i in range(6)]
    answers = {
        name: [by_hand(path, q)[0] for q in questions]
        for name, path in (("math", "models/math"), ("code", "loras/code"))
    }
    right = ["math" if i % 2 else "code" for i in range(6)]
    write([{"prompt": q, "answer": answers[name][i]} for i, (q, name) in enumerate(zip(questions, right, strict=True))])
    differ = [answers["math"][i].strip() != answers["code"][i].strip() for i in range(6)]
    assert sum(differ) >= 4, "the test needs experts that answer differently"
    assert main([*ROUTE, *SHORT]) == 0
    assert all(row["teacher"] == name for row, name, is_clear in zip(routed(), right, differ, strict=True) if is_clear)
    assert f"the reward decided {sum(differ) / 6:.0%}" in capsys.readouterr().out


def test_rows_of_a_group_follow_its_sample(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write([{"prompt": f"What is {i}?", "domain": "ab"[i % 2]} for i in range(10)])
    assert main([*ROUTE, *SHORT, "--group", "domain", "--sample", "2"]) == 0
    teachers = {(row["domain"], row["teacher"]) for row in routed()}
    assert len(teachers) == 2
    assert "10 rows got a teacher, 4 of them were tried" in capsys.readouterr().out


def test_rows_that_name_a_teacher_keep_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write([{"prompt": f"What is {i}?", "teacher": "math"} for i in range(3)])
    assert main([*ROUTE, *SHORT]) == 0
    assert {row["teacher"] for row in routed()} == {"math"}
    assert "0 rows got a teacher" in capsys.readouterr().out


def test_merge_routes_rows_without_a_teacher_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_adapter(Path("base"), Path("loras/math"), 0, Lora(rank=2))
    write([{"prompt": f"What is {i}?", **({"teacher": "math"} if i < 4 else {})} for i in range(40)])
    words = ["merge", "--base", "base", "--experts", "math=loras/math", "code=loras/code", "--prompts", "prompts.jsonl"]
    words += ["--steps", "1", "--max_new_tokens", "4"]
    assert main(words) == 0
    first = capsys.readouterr().out
    assert "36 rows got a teacher" in first
    rows = routed("merged/routed.jsonl")
    assert [row["teacher"] for row in rows[:4]] == ["math"] * 4
    assert {row["teacher"] for row in rows} <= {"math", "code"}
    for name in ("models", "loras/code/adapter_model.safetensors"):  # what would be needed to route again
        assert (folder / name).exists()
    stamp = (folder / "merged/routed.jsonl").stat().st_mtime_ns
    assert main(words) == 0
    assert "finished before" in capsys.readouterr().out
    assert (folder / "merged/routed.jsonl").stat().st_mtime_ns == stamp


def test_ties_in_reward_are_broken_by_likelihood() -> None:
    tried = {
        "a": [Attempt(1, -2.0), Attempt(0, -1.0)],
        "b": [Attempt(1, -1.5), Attempt(1, -9.0)],
        "c": [Attempt(0, 0.0)] * 2,
    }
    one, two = choose(tried, [[0], [1]], {0: 0, 1: 1})
    assert (one.teacher, one.by_reward, one.margin) == ("b", False, 0.5)
    assert (two.teacher, two.by_reward, two.margin) == ("b", True, 1)
    [both] = choose(tried, [[0, 1, 2]], {0: 0, 1: 1})
    assert (both.teacher, both.num_rows, both.num_tried, both.margin) == ("b", 3, 2, 0.5)
    assert "a                      0" in summary([one, two], ["a", "b"])


def test_rows_are_read_as_they_are(folder: Path) -> None:
    rows: list[dict[str, Any]] = [{"prompt": "a", "answer": 3, "x": {"y": [1]}}, {"prompt": "b"}]
    write(rows)
    assert read_rows("prompts.jsonl") == rows


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--experts", "math=models/math"], "needs two or more to choose from, got math"),
        (["--experts", "math=models/mth", "code=loras/code"], "Expected the expert `math` at `models/mth`"),
        (["--prompts", "none.jsonl"], "none.jsonl"),
        (["--sample", "3"], "`--sample` needs `--group COLUMN`"),
        (["--sample", "0", "--group", "x"], "`--sample` must be at least 1"),
        (["--group", "domain"], "`--group domain` names a column that the row has not"),
        (["--output", "models"], "is a folder"),
        (["--max_new_tokens", "0"], "`--max_new_tokens` must be at least 1"),
        (["--max_new_tokens", "5000"], "exceeds"),
    ],
    ids=" ".join,
)
def test_what_cannot_be_routed_is_refused_in_a_line(
    words: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write([{"prompt": "What is 1?"}])
    assert main([*ROUTE, *words]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert message in said
    assert not Path("routed.jsonl").exists()


def test_a_teacher_that_is_no_expert_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write([{"prompt": "a", "teacher": "mat"}, {"prompt": "b"}])
    assert main(ROUTE) == 2
    assert "`teacher` is `mat`, which is no expert. Did you mean `math`?" in capsys.readouterr().err


def test_rows_that_name_several_experts_keep_them(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mixed = {"code": 0.5, "math": 0.5}
    write([{"prompt": "a", "teacher": mixed}, {"prompt": "b", "teacher": "math"}])
    assert main(ROUTE) == 0
    assert [row["teacher"] for row in map(json.loads, Path("routed.jsonl").read_text().splitlines())] == [mixed, "math"]
    write([{"prompt": "a", "teacher": {"cod": 0.5, "math": 0.5}}])
    assert main(ROUTE) == 2
    assert "`teacher` is `cod`, which is no expert." in capsys.readouterr().err


def test_a_merge_compares_each_prompt_with_one_expert() -> None:
    with pytest.raises(ConfigError, match=r"row 1: `teacher` names several experts \(code:0.5\+math:0.5\)"):
        check_teacher("code:0.5+math:0.5", "row 1", ["code", "math"])
