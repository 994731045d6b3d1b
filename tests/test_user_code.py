"""Code of a user outside the package: a script, a task, an estimator, a module."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path

import pytest

from lightning_opd.cli.main import main
from tests.world import save_world

ROOT = Path(__file__).parents[1]
MINE = '''
from dataclasses import dataclass

import torch

from lightning_opd import OPDCallback, OPDModule, Prompt, Task
from lightning_opd.tasks.format_rules import NamedRule
from lightning_opd.functional.advantages import AdvantageEstimator
from lightning_opd.tasks.tools import Tool, ToolEnvironment


@dataclass(frozen=True)
class Signs(AdvantageEstimator):
    """Only the sign of the log-ratio."""

    scale: float = 1.0

    def __call__(self, log_ratio, response_mask, kl=None, values=None):
        return torch.where(response_mask, self.scale * log_ratio.sign(), 0.0).detach()


class Echo(Task):
    """Say a word again."""

    def __init__(self, words: list[str]):
        self.words = words

    def prompts(self, split):
        return [
            Prompt(({"role": "user", "content": f"{split} {word}"},), f"{split}{i}", "mine", "echo")
            for i, word in enumerate(self.words)
        ]

    def reward(self, prompt, text):
        return float(text in prompt.messages[0]["content"])


def price(item: str) -> int:
    """Look up what something costs.

    Args:
        item: Its name.
    """
    return len(item)


class NoShouting(NamedRule):
    """Nothing is written in capitals only."""

    def is_broken(self, trajectory):
        return trajectory.text.isupper()


class Shop(Echo):
    """The same task as an agent that may look prices up."""

    def environment(self, prompt):
        final_reward = lambda reply: self.reward(prompt, reply)
        return ToolEnvironment(prompt.messages, [Tool(price)], final_reward, shows_tools=False)

    def format_rules(self):
        return [NoShouting()]


class MyModule(OPDModule):
    def compute_advantages(self, batch, student):
        print("my hook", flush=True)
        return super().compute_advantages(batch, student)


class MyCallback(OPDCallback):
    def on_rollout_end(self, trainer, module, rollouts):
        print("my callback", len(rollouts), flush=True)
        print("my rule", [rule.name for rule in trainer.datamodule.task.format_rules()], flush=True)
'''


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like the one in the README: models and prompts."""
    folder = tmp_path_factory.mktemp("user")
    save_world(folder / "models")
    (folder / "models" / "student").rename(folder / "models" / "base")
    rows = [{"prompt": f"question {i}", "teacher": ("math", "code")[i % 2]} for i in range(64)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.filterwarnings("ignore:The number of training batches:UserWarning")  # two steps are a short run
def test_the_readmes_python_example_runs_and_is_short(
    models: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this process: another one would only import everything once more."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len([line for line in blocks[0].splitlines() if line.strip()]) <= 15
    (models / "example.py").write_text(blocks[0])
    monkeypatch.chdir(models)
    runpy.run_path("example.py", run_name="__main__")
    assert capsys.readouterr().out.count("long replies: ") == 2
    assert (models / "runs" / "example" / "model" / "model.safetensors").exists()


def test_a_users_own_agent_estimator_module_and_callback_run_from_yaml(
    models: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As `python -m lightning_opd` would: the folder that the command stands in can be imported from."""
    (models / "my_pkg.py").write_text(MINE)
    config = {
        "model": {
            "class_path": "my_pkg.MyModule",
            "init_args": {
                "student": {"path": "models/base"},
                "teachers": {"mine": "models/math"},
                "objective": {
                    "class_path": "lightning_opd.objectives.PolicyGradient",
                    "init_args": {"estimator": {"class_path": "my_pkg.Signs", "init_args": {"scale": 0.5}}},
                },
            },
        },
        "data": {
            "task": {"class_path": "my_pkg.Shop", "init_args": {"words": ["a", "b", "c", "d"]}},
            "prompts_per_batch": 4,
            "sampling": {"max_new_tokens": 4},
        },
        "trainer": {
            "max_steps": 2,
            "accelerator": "cpu",
            "devices": 1,
            "logger": False,
            "enable_checkpointing": False,
            "callbacks": [{"class_path": "my_pkg.MyCallback"}],
        },
    }
    (models / "mine.yaml").write_text(json.dumps(config))
    monkeypatch.chdir(models)
    monkeypatch.syspath_prepend(str(models))
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")  # the command sets one: it is put back
    assert main(["fit", "--config", "mine.yaml"]) == 0
    out = capsys.readouterr().out
    assert out.count("my hook") == 2
    assert out.count("my callback 4") == 2
    assert out.count("my rule ['no_shouting']") == 2
