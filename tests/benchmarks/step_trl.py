"""The other side of `step.py`: training steps of TRL's `DistillationTrainer` behind the same gate.

Imports nothing of this package but the gate, so that another interpreter can run it.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

from tests.benchmarks.gate import Gate


def main() -> None:
    """Train behind a gate: on-policy, reverse KL over the whole vocabulary, AdamW, float32, no checkpointing."""
    import datasets
    from transformers import AutoTokenizer, TrainerCallback
    from trl import DistillationConfig, DistillationTrainer

    warnings.simplefilter("ignore")
    setting = json.loads(sys.argv[1])
    gate, folder = Gate(measures_memory=setting["measures_memory"]), Path(setting["folder"])

    class StepGate(TrainerCallback):
        def on_train_begin(self, *arguments: Any, **more: Any) -> None:
            gate.wait()

        def on_step_end(self, *arguments: Any, **more: Any) -> None:
            gate.wait(metrics=dict(metrics))
            metrics.clear()

    texts = json.loads((folder / "prompts.json").read_text(encoding="utf-8"))
    rows = [{"prompt": [{"role": "user", "content": text}]} for text in texts]
    metrics: dict[str, float] = {}
    trainer = DistillationTrainer(
        model=str(folder / "student"),
        teacher_model=str(folder / "t0"),
        args=DistillationConfig(
            output_dir=str(folder / "trl"),
            beta=1.0,  # the reverse KL
            max_completion_length=setting["new_tokens"],
            generation_kwargs={"min_new_tokens": setting["new_tokens"]},
            per_device_train_batch_size=setting["prompts"] // setting["micro_batches"],
            gradient_accumulation_steps=setting["micro_batches"],
            max_steps=setting["steps"],
            learning_rate=1e-6,
            lr_scheduler_type="constant",
            optim="sgd" if setting["measures_memory"] else "adamw_torch",
            weight_decay=0.0 if setting["measures_memory"] else 1e-2,
            max_grad_norm=0.0,
            gradient_checkpointing=False,
            bf16=setting["trainer_precision"] == "bf16-mixed",
            use_cpu=setting["device"] == "cpu",
            shuffle_dataset=False,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            model_init_kwargs={"dtype": setting["precision"]},
            teacher_model_init_kwargs={"dtype": setting["teacher_precision"]},
        ),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(folder / "student", padding_side="left"),
        callbacks=[StepGate()],
    )
    prepare, loss = trainer._prepare_inputs, trainer.compute_loss

    def marked(batch: Any) -> Any:
        inputs = prepare(batch)
        metrics["tokens"] = metrics.get("tokens", 0.0) + float(inputs["completion_mask"].sum())
        gate.mark()
        return inputs

    def noted(*arguments: Any, **more: Any) -> Any:
        found = loss(*arguments, **more)
        metrics["loss"] = metrics.get("loss", 0.0) + float((found[0] if isinstance(found, tuple) else found).detach())
        return found

    trainer._prepare_inputs, trainer.compute_loss = marked, noted
    trainer.train()


if __name__ == "__main__":
    main()
