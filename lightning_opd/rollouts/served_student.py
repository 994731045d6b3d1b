"""The student's weights on their way to the servers: written to a folder, loaded, proven elsewhere."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lightning_opd.errors import ConfigError
from lightning_opd.models import causal_lm, export_student
from lightning_opd.servers import ServerPool
from lightning_opd.servers.launch import Launch, LocalServer
from lightning_opd.servers.vllm import load_adapter, load_weights, models_of, unload_adapter

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

STANDARD_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Those that vLLM can make space for."""


class ServedStudent:
    """One student on one or more servers, version after version. Used by the first rank alone.

    Args:
        launch: How to start servers, or None where they run.
        model: Name of the model on running servers, or None for their only one.
        weights_folder: Where to write weights, or None for a temporary folder.
        pool: The running servers, or None.
        pool_settings: Of the pool of servers that are started here.
    """

    def __init__(
        self,
        launch: Launch | None,
        model: str | None,
        weights_folder: str | None,
        pool: ServerPool | None,
        pool_settings: dict[str, Any],
    ) -> None:
        """Make the folder."""
        memory = Path("/dev/shm")  # a file system in memory, where there is one
        parent = weights_folder or (str(memory) if memory.is_dir() else None)
        if weights_folder is not None:
            Path(weights_folder).mkdir(parents=True, exist_ok=True)
        self._folder = Path(tempfile.mkdtemp(prefix="student-", dir=parent))
        self._launch, self._model, self._pool, self._pool_settings = launch, model, pool, pool_settings
        self._servers: list[LocalServer] = []
        self._number, self._previous = 0, ""

    def update(
        self, student: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, weights: dict[str, torch.Tensor] | None
    ) -> tuple[str, str, ServerPool]:
        """Give every server the student as it is now; return the name to ask for, its folder, and the servers.

        Args:
            student: A full model, or one with an adapter.
            tokenizer: Saved beside the weights.
            weights: The whole state dict of a sharded student, or None.

        Raises:
            ConfigError: A server refuses them, or cannot be started.
            ServersDownError: A server does not answer.
        """
        from peft import PeftModel

        self._number += 1
        name = f"{self._folder.name}-{self._number}"
        folder = self._folder / str(self._number)
        is_adapter = isinstance(student, PeftModel)
        export_student(student, tokenizer, folder, merge=False, weights=weights)
        is_new = self._pool is None
        if self._pool is None:
            self._pool = self._start(_base_of(student) if is_adapter else str(folder), student)
        if not is_adapter:
            name = self._served_name(self._pool)
            if not (is_new and self._number == 1):
                for url in self._pool.alive:
                    load_weights(self._pool, url, str(folder), has_extension=bool(self._servers))
        else:
            for url in self._pool.alive:
                load_adapter(self._pool, url, name, str(folder))
                if self._previous:
                    unload_adapter(self._pool, url, self._previous)
            self._previous = name
        old = self._folder / str(self._number - 2)  # the last one may still be read
        shutil.rmtree(old, ignore_errors=True)
        return name, str(folder), self._pool

    def _served_name(self, pool: ServerPool) -> str:
        if self._model is not None:
            return self._model
        names = {models_of(pool, url)[0].name for url in pool.alive}
        if len(names) > 1:
            listed = ", ".join(f"`{name}`" for name in sorted(names))
            msg = f"The engine's servers must serve one model, got {listed}. Name it in `model`."
            raise ConfigError(msg)
        return names.pop()

    def _start(self, model: str, student: torch.nn.Module) -> ServerPool:
        """Start servers of the student's first version, or of its base, and wait until all answer."""
        assert self._launch is not None
        base = causal_lm(student)
        device = base.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else base.dtype
        arguments = ["--dtype", str(dtype).removeprefix("torch."), *_adapter_arguments(student)]
        self._servers = self._launch.servers(model, arguments, self._folder)
        try:
            for server in self._servers:
                server.start()
            for server in self._servers:
                server.wait()
        except BaseException:
            self.close()
            raise
        return ServerPool([server.url for server in self._servers], **self._pool_settings)

    def close(self) -> None:
        """Stop the servers that were started here, and remove the weights."""
        for server in self._servers:
            server.stop()
        self._servers, self._pool = [], None
        shutil.rmtree(self._folder, ignore_errors=True)


def _base_of(student: torch.nn.Module) -> str:
    path = str(causal_lm(student).config.name_or_path)
    if not path:
        msg = "A student with an adapter needs a base from a folder or the hub, for the servers to load it, too."
        raise ConfigError(msg)
    return path


def _adapter_arguments(student: torch.nn.Module) -> list[str]:
    """Return what a server needs to take adapters such as the student's."""
    from peft import LoraConfig, PeftModel

    if not isinstance(student, PeftModel):
        return []
    config = student.peft_config[student.active_adapter]
    assert isinstance(config, LoraConfig)  # `StudentConfig` makes no other
    space = next((rank for rank in LORA_RANKS if rank >= config.r), config.r)
    arguments = ["--enable-lora", "--max-lora-rank", str(space), "--max-loras", "2", "--max-cpu-loras", "2"]
    targets = {str(name).rsplit(".", 1)[-1] for name in config.target_modules or ()}
    if targets <= set(STANDARD_TARGETS):  # vLLM's own head for adapters fails on a CPU
        arguments += ["--lora-target-modules", *STANDARD_TARGETS]
    return arguments
