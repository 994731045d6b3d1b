"""Whatever the theory offers can be chosen in YAML, and what cannot be right is answered in a line."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.commands import MERGE, Cli, Write

FUNCTIONAL = "lightning_opd.functional"


def part(path: str, /, **init_args: object) -> dict[str, object]:
    return {"class_path": path, "init_args": init_args}


CHOICES: dict[str, dict[str, object]] = {
    "critic": {
        "model": {
            "objective": part(
                "lightning_opd.objectives.PolicyGradient",
                estimator=part(f"{FUNCTIONAL}.advantages.KLToGo"),
                reduction=part(f"{FUNCTIONAL}.reductions.TrajectorySum"),
            ),
            "critic": part("lightning_opd.modules.Critic", width=8),
        }
    },
    "log_ratio_transform": {
        "model": {
            "objective": part(
                "lightning_opd.objectives.PolicyGradient",
                estimator=part(f"{FUNCTIONAL}.advantages.LogRatioToGo", discount=0.9),
                baseline=part(f"{FUNCTIONAL}.baselines.LeaveOneOut"),
                log_ratio_transform=[
                    part(f"{FUNCTIONAL}.log_ratio_transforms.Extrapolation", scale=1.25),
                    part(f"{FUNCTIONAL}.log_ratio_transforms.Clip"),
                ],
                teacher_log_ratio_transforms={
                    "strings": part(f"{FUNCTIONAL}.log_ratio_transforms.BoundedDifference"),
                    "arithmetic": None,
                },
                policy_loss=part(f"{FUNCTIONAL}.policy_losses.PPOClip", clip_high=0.3),
                off_policy=part(f"{FUNCTIONAL}.off_policy.TruncatedImportance"),
            ),
            "reference": "runs/base",
        }
    },
    "top_k": {
        "model": {
            "objective": part(
                "lightning_opd.objectives.DistributionMatching",
                divergence=part(
                    f"{FUNCTIONAL}.top_k.TopK",
                    divergence=part(f"{FUNCTIONAL}.divergences.JensenShannon", weight=0.3),
                    k=16,
                    support="union",
                    correction="renormalise",
                ),
            )
        }
    },
    "given": {
        "model": {"objective": part("lightning_opd.objectives.Likelihood")},
        "data": {
            "off_policy_responses": {"source": part("lightning_opd.collection.DatasetResponses"), "fraction": 1.0}
        },
    },
    "answers": {
        "data": {
            "task": part(
                "lightning_opd.tasks.Jsonl",
                path="rows.jsonl",
                match=part("lightning_opd.tasks.MathAnswer", seconds=2.0),
            )
        },
        "model": {
            "objective": part(
                "lightning_opd.objectives.OutcomeGradient",
                off_policy=part(f"{FUNCTIONAL}.off_policy.MaskedImportance", low=0.5),
            )
        },
        "trainer": {
            "callbacks": [
                part(
                    "lightning_opd.callbacks.OutcomeReward",
                    rewards=[
                        {"function": part("lightning_opd.tasks.ChoiceAnswer", choices="ABCD"), "weight": 0.5},
                        {"function": part("lightning_opd.tasks.ExactAnswer")},
                    ],
                )
            ]
        },
    },
    "answers_by_name": {"data": {"task": part("lightning_opd.tasks.Jsonl", path="rows.jsonl", match="MathAnswer")}},
    "hints": {
        "model": {
            "teachers": {
                "arithmetic": part(
                    "lightning_opd.teachers.PrivilegedTeacher", teacher={"path": "runs/a"}, context="{content} {answer}"
                )
            }
        }
    },
}


@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_of_the_theory_is_made_in_yaml(cli: Cli, write_yaml: Write, choice: str) -> None:
    words: list[object] = []
    for name, content in (("base", MERGE), ("choice", CHOICES[choice])):
        words += ["--config", write_yaml(f"{name}.yaml", content)]
    code, printed, err = cli("fit", *words, "--print_config")
    assert code == 0, err
    assert yaml.safe_load(printed)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model.objective=PolicyGradient", "--model.objective.estimator=KLTogo"], "KLToGo"),
        (
            [
                "--model.objective=DistributionMatching",
                "--model.objective.divergence=lightning_opd.functional.top_k.TopK",
                "--model.objective.divergence.divergence=ReverseKL",
                "--model.objective.divergence.k=4",
                "--model.objective.divergence.correction=raw",
            ],
            "raw",
        ),
        (["--data.off_policy_responses.fraction=0.5"], "`data.off_policy_responses.source` must be given"),
    ],
)
def test_a_choice_that_cannot_be_right_is_answered_in_a_line(
    cli: Cli, tmp_path: Path, words: list[str], said: str
) -> None:
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(MERGE))
    code, _, err = cli("fit", "--config", tmp_path / "base.yaml", *words)
    assert code == 2
    assert said in err
    assert len(err.strip().splitlines()) <= 2, err
