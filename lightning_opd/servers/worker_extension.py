"""Taken over by vLLM's own worker processes: loads a student's new weights into a running server.

A copy of this file is put on the server's path; it imports nothing of this package.
"""

from __future__ import annotations

from typing import Any


class Weights:
    """Methods that vLLM's worker gets beside its own (`--worker-extension-cls`)."""

    model_runner: Any
    reload_weights: Any

    def load_student(self, folder: str) -> None:
        """Replace all weights by those of a Hugging Face folder (safetensors)."""
        self.reload_weights(weights_path=folder)
        model = self.model_runner.model
        if getattr(model.config, "tie_word_embeddings", False) and hasattr(model, "lm_head"):
            method = model.lm_head.quant_method
            method.process_weights_after_loading(model.lm_head)  # a CPU's packed copy of the tied matrix stays old
