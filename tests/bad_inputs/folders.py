"""Model folders, checkpoints and output folders that are damaged, incomplete, or something else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.bad_inputs.row import Bad, Prepare, setting, thinned

STUDENT = ("--model.student.path=HERE/model",)
TEACHER = ("--model.teachers.math=HERE/model",)
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4665a5ea423c\nsize 1526321\n"
WEIGHTS, CONFIG = "model.safetensors", "config.json"


def copied(change: Callable[[Path], object]) -> Prepare:
    """Return what copies the student to `HERE/model` and changes that folder."""

    def prepare(world: Path, folder: Path) -> None:
        shutil.copytree(world / "student", folder / "model")
        change(folder / "model")

    return prepare


def model(name: str, change: Callable[[Path], object], *says: str, words: tuple[str, ...] = STUDENT) -> Bad:
    """Return the case of a changed model folder."""
    return Bad(f"model: {name}", ("HERE/model", *says), words, prepare=copied(change))


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0x55
    file.write_bytes(bytes(content))


def without(*names: str) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return change


def empty(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()


def configured(**changes: Any) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        content = json.loads((folder / CONFIG).read_text())
        content = {key: value for key, value in (content | changes).items() if value is not None}
        (folder / CONFIG).write_text(json.dumps(content))

    return change


def pickled(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    torch.save({"x": torch.zeros(1)}, folder / "pytorch_model.bin")


def sharded(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    index = {"metadata": {}, "weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))


def adapter(**changes: Any) -> Prepare:
    """Return what makes `HERE/model` the folder of an adapter."""

    def prepare(world: Path, folder: Path) -> None:
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM

        base: Any = AutoModelForCausalLM.from_pretrained(world / "student")
        base.config.name_or_path = str(world / "student")
        get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(str(folder / "model"))
        path = folder / "model" / "adapter_config.json"
        content = json.loads(path.read_text()) | {"base_model_name_or_path": str(world / "student")} | changes
        path.write_text(json.dumps(content).replace("HERE", str(folder)))

    return prepare


def adapter_file(name: str, content: bytes | None) -> Prepare:
    def prepare(world: Path, folder: Path) -> None:
        adapter()(world, folder)
        path = folder / "model" / name
        if content is None:
            path.unlink()
        else:
            path.write_bytes(content)

    return prepare


def checkpoint(content: bytes) -> Prepare:
    def prepare(world: Path, folder: Path) -> None:
        (folder / "last.ckpt").write_bytes(content)

    return prepare


def saved(content: object, change: Callable[[Path], object] = lambda file: None) -> Prepare:
    def prepare(world: Path, folder: Path) -> None:
        torch.save(content, folder / "last.ckpt")
        change(folder / "last.ckpt")

    return prepare


def regular_file(world: Path, folder: Path) -> None:
    (folder / "taken").write_text("a file")


def folder_of_a_checkpoint(world: Path, folder: Path) -> None:
    (folder / "last.ckpt").mkdir()


MODELS = [
    model("truncated weights", lambda f: truncate(f / WEIGHTS), WEIGHTS, "truncated"),
    model("empty weights", lambda f: (f / WEIGHTS).write_bytes(b""), WEIGHTS, "empty"),
    model("an LFS pointer for weights", lambda f: (f / WEIGHTS).write_bytes(POINTER), "git lfs pull"),
    model("text for weights", lambda f: (f / WEIGHTS).write_text("<html>404</html>"), WEIGHTS, "safetensors"),
    model("pickled weights only", pickled, "safetensors", "pytorch_model.bin"),
    model("no weights", without(WEIGHTS), "safetensors"),
    model("an index of missing shards", sharded, "model-00001-of-00002.safetensors"),
    model("no config.json", without(CONFIG), CONFIG),
    model("a broken config.json", lambda f: truncate(f / CONFIG), CONFIG, "JSON"),
    model("an empty config.json", lambda f: (f / CONFIG).write_text(""), CONFIG, "is empty"),
    model("a config.json that is a list", lambda f: (f / CONFIG).write_text("[]"), CONFIG),
    model("an LFS pointer for config.json", lambda f: (f / CONFIG).write_bytes(POINTER), "git lfs pull"),
    model("no model_type", configured(model_type=None), CONFIG, "model_type"),
    model("an unknown model_type", configured(model_type="qwen99"), "qwen99"),
    model("a text for a size", configured(hidden_size="large"), "hidden_size"),
    model("another size than the weights'", configured(hidden_size=48), "shape"),
    model("more layers than the weights'", configured(num_hidden_layers=3), "num"),
    model("an encoder", configured(model_type="bert", architectures=["BertModel"]), "HERE/model"),
    model("no tokenizer", without("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"), "tokenizer"),
    model("a broken tokenizer.json", lambda f: truncate(f / "tokenizer.json"), "tokenizer.json"),
    model("an LFS pointer for tokenizer.json", lambda f: (f / "tokenizer.json").write_bytes(POINTER), "git lfs pull"),
    model("no chat template", without("chat_template.jinja"), "chat_template"),
    model("a broken chat template", lambda f: (f / "chat_template.jinja").write_text("{% if %}"), "template"),
    model("an empty folder", empty, "config.json"),
    model(
        "a teacher without a tokenizer",
        without("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
        "tokenizer",
        words=TEACHER,
    ),
    model("a teacher with truncated weights", lambda f: truncate(f / WEIGHTS), "truncated", words=TEACHER),
    model("a teacher of another vocabulary", configured(vocab_size=100), "HERE/model", words=TEACHER),
    Bad(
        "model: a file for a folder", ("HERE/taken", "file"), ("--model.student.path=HERE/taken",), prepare=regular_file
    ),
    Bad(
        "model: a misspelled folder",
        ("`WORLD/studnt`", "Did you mean `WORLD/student`?"),
        ("--model.student.path=WORLD/studnt",),
    ),
    Bad(
        "model: a misspelled teacher",
        ("`WORLD/mth`", "Did you mean `WORLD/math`?"),
        ("--model.teachers.math=WORLD/mth",),
    ),
    setting("model.student.path=org/no-such-model", "`org/no-such-model`", "HF_HUB_OFFLINE"),
    setting("model.student.path=my models/base", "`my models/base`", "no folder"),
    setting("model.student.path=runs", "`runs`", "no folder"),
    setting("model.student.path=", "an empty path"),
    setting("model.student.tokenizer=HERE/none", "`HERE/none`", "a tokenizer"),
    setting("model.student.revision=main", "revision", "folder"),
    Bad(
        "adapter: another base",
        ("HERE/model", "does not fit its base"),
        STUDENT,
        prepare=adapter(target_modules=["nothing"]),
    ),
    Bad("adapter: another rank", ("HERE/model", "another shape"), STUDENT, prepare=adapter(r=3)),
    Bad(
        "adapter: a missing base",
        ("HERE/model", "`HERE/none`", "adapter_config.json"),
        STUDENT,
        prepare=adapter(base_model_name_or_path="HERE/none"),
    ),
    Bad("adapter: no base", ("names no base model",), STUDENT, prepare=adapter(base_model_name_or_path=None)),
    Bad("adapter: an unknown kind", ("HERE/model", "adapter_config.json"), STUDENT, prepare=adapter(peft_type="MAGIC")),
    Bad(
        "adapter: a broken config",
        ("adapter_config.json", "JSON"),
        STUDENT,
        prepare=adapter_file("adapter_config.json", b'{"r": '),
    ),
    Bad(
        "adapter: a config that is a list",
        ("adapter_config.json",),
        STUDENT,
        prepare=adapter_file("adapter_config.json", b"[]"),
    ),
    Bad(
        "adapter: no weights",
        ("adapter_model.safetensors",),
        STUDENT,
        prepare=adapter_file("adapter_model.safetensors", None),
    ),
    Bad(
        "adapter: an LFS pointer",
        ("adapter_model.safetensors", "git lfs pull"),
        STUDENT,
        prepare=adapter_file("adapter_model.safetensors", POINTER),
    ),
]

CHECKPOINTS = [
    Bad("checkpoint: none", ("`HERE/none.ckpt`", "does not exist"), ("--ckpt_path=HERE/none.ckpt",)),
    Bad("checkpoint: empty", ("`HERE/last.ckpt`", "empty"), ("--ckpt_path=HERE/last.ckpt",), prepare=checkpoint(b"")),
    Bad(
        "checkpoint: text",
        ("`HERE/last.ckpt`", "no whole checkpoint"),
        ("--ckpt_path=HERE/last.ckpt",),
        prepare=checkpoint(b"hello"),
    ),
    Bad(
        "checkpoint: truncated",
        ("`HERE/last.ckpt`", "no whole checkpoint"),
        ("--ckpt_path=HERE/last.ckpt",),
        prepare=saved({"x": torch.zeros(1000)}, truncate),
    ),
    Bad(
        "checkpoint: one flipped byte",
        ("`HERE/last.ckpt`", "bytes"),
        ("--ckpt_path=HERE/last.ckpt",),
        prepare=saved({"x": torch.zeros(10_000)}, flip),
    ),
    Bad(
        "checkpoint: foreign",
        ("`HERE/last.ckpt`", "checkpoint"),
        ("--ckpt_path=HERE/last.ckpt",),
        prepare=saved({"weights": torch.zeros(3)}),
    ),
    Bad("checkpoint: a tensor", ("`HERE/last.ckpt`",), ("--ckpt_path=HERE/last.ckpt",), prepare=saved(torch.zeros(3))),
    Bad("checkpoint: a folder", ("HERE/last.ckpt",), ("--ckpt_path=HERE/last.ckpt",), prepare=folder_of_a_checkpoint),
    Bad(
        "checkpoint: last without one",
        ("there is no last checkpoint", "Leave the option out"),
        (
            "--ckpt_path=last",
            "--trainer.enable_checkpointing=true",
            "--trainer.callbacks+=lightning_opd.callbacks.LastCheckpoint",
        ),
    ),
    Bad("checkpoint: best without one", ("best",), ("--ckpt_path=best",)),
]

OUTPUTS = [
    Bad(
        "output: a regular file",
        ("`HERE/taken`", "file"),
        ("--trainer.default_root_dir=HERE/taken",),
        prepare=regular_file,
    ),
    Bad(
        "output: below a regular file",
        ("HERE/taken", "file"),
        ("--trainer.default_root_dir=HERE/taken/run",),
        prepare=regular_file,
    ),
]

TABLE = [*thinned(MODELS, 5), *thinned(CHECKPOINTS, 4), *OUTPUTS]
