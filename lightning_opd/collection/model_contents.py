"""What the files of a model hold, in a hash that costs milliseconds: it shows that a model was replaced in place."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

CONFIG, ADAPTER_CONFIG = "config.json", "adapter_config.json"
OTHER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
UNIMPORTANT = {"transformers_version", "_name_or_path", "base_model_name_or_path"}
"""Keys of configurations that differ where the same model was saved or copied again."""

BYTES_PER_TENSOR = 1024
MAX_HEADER = 100_000_000
"""Longest header in bytes, as the format has it."""


def contents(settings: Mapping[str, object]) -> dict[str, str]:
    """Return the content of every model's folder among settings, by the setting's name with `.content` behind it.

    Args:
        settings: Described settings: plain values, mappings and lists.

    Example:
        >>> contents({"model.teachers": {"math": {"path": "org/on-the-hub"}}})
        {}
    """
    found: dict[str, str] = {}
    for name, value in _texts(settings):
        folder = Path(value) if len(value) < 1024 else None
        if folder is not None and any((folder / file).is_file() for file in (CONFIG, ADAPTER_CONFIG)):
            found[f"{name}.content"] = content_of(folder)
    return found


def content_of(folder: Path) -> str:
    """Return a hash of a model's configuration, its tokenizer, and the beginning of each of its tensors.

    That of an adapter covers its base, where that is a folder. A model that was trained further has other values in
    every tensor that was trained.
    """
    digest = hashlib.blake2b(digest_size=8)
    for name in (CONFIG, ADAPTER_CONFIG):
        config = _json(folder / name)
        base = Path(str(config.get("base_model_name_or_path", "")))
        if name == ADAPTER_CONFIG and (base / CONFIG).is_file():
            digest.update(content_of(base).encode())
        digest.update(json.dumps({k: v for k, v in config.items() if k not in UNIMPORTANT}, sort_keys=True).encode())
    for name in OTHER_FILES:
        if (folder / name).is_file():
            digest.update((folder / name).read_bytes())
    for file in sorted(folder.glob("*.safetensors")):
        for part in _beginnings(file):
            digest.update(part)
    return f"files with hash {digest.hexdigest()}"


def _json(file: Path) -> dict[str, object]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # what cannot be read is refused where it is loaded
        return {}
    return content if isinstance(content, dict) else {}


def _beginnings(file: Path) -> Iterator[bytes]:
    """Yield the header of a safetensors file and the first bytes of each tensor in it."""
    with file.open("rb") as stream:
        size = stream.read(8)
        header = stream.read(min(struct.unpack("<Q", size)[0], MAX_HEADER) if len(size) == 8 else 0)
        yield header
        try:
            tensors = {k: v for k, v in json.loads(header).items() if k != "__metadata__"}
            places = sorted(tuple(map(int, tensor["data_offsets"])) for tensor in tensors.values())
        except (ValueError, KeyError, TypeError, AttributeError):  # torn: refused where it is loaded
            return
        for begin, end in places:
            stream.seek(8 + len(header) + begin)
            yield stream.read(min(end - begin, BYTES_PER_TENSOR))


def _texts(node: object, name: str = "") -> Iterator[tuple[str, str]]:
    """Yield every text in nested settings with its name."""
    if isinstance(node, str):
        yield name, node
    elif isinstance(node, Mapping):
        for key, value in node.items():
            yield from _texts(value, f"{name}.{key}" if name else str(key))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from _texts(value, f"{name}.{index}")
