"""Files of a model's folder that are damaged, missing, or only stand for others: found before anything is loaded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lightning_opd.errors import ConfigError

CONFIG = "config.json"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
POINTER = b"version https://git-lfs"
"""The first bytes of what git leaves in place of a large file that was not fetched."""

TOKENIZER_FILES = ("tokenizer*", "tokenization*", "vocab*", "*.model", "*.tiktoken", "spm*")

JSON_FILES = (CONFIG, "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json")
"""What transformers reads to make a tokenizer, where it is there."""

UNFINISHED = ".unfinished"
"""Folder inside an output, with files that are still being written."""


@contextmanager
def written_whole(output: Path) -> Iterator[Path]:
    """Give a folder to write a model's files into, which lie in `output` only once all of them are written.

    Files of the same names are replaced. What an earlier process that was killed has left is removed.
    """
    folder = output / UNFINISHED
    shutil.rmtree(folder, ignore_errors=True)
    is_new = not output.is_dir()
    folder.mkdir(parents=True)
    try:
        yield folder
        for file in sorted(folder.iterdir()):
            if file.is_file():
                file.replace(output / file.name)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if is_new and not any(output.iterdir()):
            output.rmdir()


def check_json(file: Path) -> dict[str, object]:
    """Return the object that a JSON file holds.

    Raises:
        ConfigError: It cannot be read, is not JSON, or holds something else.
    """
    check_file(file)
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        msg = f"`{file}` is not JSON in UTF-8 ({reason}). Copy it again from where the model came from."
        raise ConfigError(msg) from None
    if not isinstance(content, dict):
        msg = f"`{file}` must hold a JSON object, got {type(content).__name__}. Copy it again."
        raise ConfigError(msg)  # the file is wrong, not an argument's type
    return content


def check_file(file: Path) -> None:
    """Refuse an empty file and a pointer of Git LFS.

    Raises:
        ConfigError: With the file and the cure.
    """
    with file.open("rb") as stream:
        start = stream.read(len(POINTER))
    if not start:
        msg = f"`{file}` is empty. Copy it again from where the model came from."
        raise ConfigError(msg)
    if start == POINTER:
        msg = f"`{file}` is a pointer of Git LFS, not the file itself. Run `git lfs pull` in `{file.parent}`."
        raise ConfigError(msg)


def check_safetensors(file: Path) -> None:
    """Refuse a file of weights that is cut off or holds something else; its tensors are not read.

    Raises:
        ConfigError: With the file and the cure.
    """
    from safetensors import SafetensorError, safe_open

    check_file(file)
    try:
        with safe_open(file, framework="pt"):
            pass
    except (SafetensorError, OSError) as error:
        size = file.stat().st_size
        msg = (
            f"`{file}` ({size:,} bytes) is truncated or no safetensors file ({error}). Copy it again, or save the "
            "model again."
        )
        raise ConfigError(msg) from None


def check_model(folder: Path) -> None:
    """Refuse a folder whose configuration or weights cannot be loaded.

    Raises:
        ConfigError: With the file and the cure.
    """
    check_config(folder)
    check_weight_files(folder)


def check_config(folder: Path) -> None:
    """Refuse a folder without a readable `config.json` that says what kind of model it is.

    Raises:
        ConfigError: With the file and the cure.
    """
    file = folder / CONFIG
    if not file.is_file():
        msg = (
            f"`{folder}` has no `{CONFIG}`, so it holds no model. Name the folder that `save_pretrained` or "
            f"`export` made; it holds {_names(folder)}."
        )
        raise ConfigError(msg)
    kind = check_json(file).get("model_type")
    if not isinstance(kind, str):
        msg = f"`{file}` names no `model_type` (for example qwen3), got {kind!r}. Copy it again from the model."
        raise ConfigError(msg)


def check_weight_files(folder: Path) -> None:
    """Refuse a folder without whole weights in safetensors.

    Raises:
        ConfigError: With the file and the cure.
    """
    index = folder / INDEX
    if (folder / WEIGHTS).is_file():
        names = [WEIGHTS]
    elif index.is_file():
        shards = check_json(index).get("weight_map")
        if not isinstance(shards, dict) or not shards:
            msg = f"`{index}` must hold a mapping `weight_map`, got {type(shards).__name__}. Copy it again."
            raise ConfigError(msg)
        names = sorted({str(name) for name in shards.values()})
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            msg = (
                f"`{folder}` lacks {len(missing)} of the {len(names)} files that its index names (`{missing[0]}`). "
                "Copy them, too."
            )
            raise ConfigError(msg)
    else:
        pickled = sorted(path.name for path in [*folder.glob("*.bin"), *folder.glob("*.pt")])
        cure = (
            f"`{pickled[0]}` is a pickle, which may run code when it is read. Convert it where you trust it: load it "
            "with transformers and `save_pretrained(folder)`."
            if pickled
            else f"Copy it, too; the folder holds {_names(folder)}."
        )
        msg = f"`{folder}` has no weights in safetensors (`{WEIGHTS}`). {cure}"
        raise ConfigError(msg)
    for name in names:
        check_safetensors(folder / name)


def check_tokenizer(folder: Path) -> None:
    """Refuse a folder without a tokenizer, from whose configuration transformers would make up an empty one.

    Raises:
        ConfigError: With the file and the cure.
    """
    if not any(path for pattern in TOKENIZER_FILES for path in folder.glob(pattern)):
        msg = (
            f"`{folder}` has no tokenizer (tokenizer.json, tokenizer_config.json); it holds {_names(folder)}. Copy "
            "those of the model that it was trained from."
        )
        raise ConfigError(msg)
    for name in JSON_FILES:
        if (folder / name).is_file():
            check_json(folder / name)


def _names(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir())
    return ", ".join(names[:6]) + (", …" if len(names) > 6 else "") or "nothing"
