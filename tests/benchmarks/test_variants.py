from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.benchmarks.evidence import RECIPES, with_variant

RUN = Path("elsewhere/seed1")


@pytest.mark.parametrize("recipe", ["merge_tiny", "cross_tokenizer"])
def test_a_variant_leaves_the_recipes_own_outputs_alone(recipe: str) -> None:
    read = {
        name: yaml.safe_load(
            with_variant((RECIPES / recipe / f"{name}.yaml").read_text(encoding="utf-8"), RUN, "other")
        )
        for name in ("merge", "test", "parity")
    }
    assert read["merge"]["trainer"]["default_root_dir"] == "elsewhere/seed1/other"
    assert read["merge"]["model"]["student"]["path"] == "elsewhere/seed1/base/model"
    assert read["test"]["model"]["student"]["path"] == "elsewhere/seed1/other/model"
    assert read["test"]["trainer"]["default_root_dir"] == "elsewhere/seed1/test_other"
    assert read["parity"]["scores"][0] == "student=elsewhere/seed1/test_other/scores.json"
    assert read["parity"]["output"] == "elsewhere/seed1/parity_other"
    assert "${" not in str(read)
