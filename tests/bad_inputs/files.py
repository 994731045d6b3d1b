"""Configuration files and options that say what no class understands, and prompts' files that hold no prompts."""

from __future__ import annotations

import json
from pathlib import Path

from tests.bad_inputs.row import ROWS, Bad, part, setting, thinned

TASKS, TEACHERS = "lightning_opd.tasks", "lightning_opd.teachers"
TRAINING = "lightning.pytorch.callbacks"


def file(name: str, content: str | bytes, *says: str, words: tuple[str, ...] = ()) -> Bad:
    """Return the case of a second config file that is wrong."""
    return Bad(f"YAML: {name}", ("wrong.yaml", *says), words, yaml=content)


def rows(name: str, content: str | bytes, *says: str) -> Bad:
    """Return the case of a wrong file of prompts."""
    return Bad(f"rows: {name}", ("prompts.jsonl", *says), rows=content)


def one_row(name: str, row: object, *says: str) -> Bad:
    """Return the case of one wrong row, the second of the file."""
    return rows(name, f"{json.dumps(ROWS[0])}\n{json.dumps(row)}\n", ":2", *says)


def hint_of_a_missing_column(world: Path, folder: Path) -> None:
    teacher = {
        "class_path": f"{TEACHERS}.PrivilegedTeacher",
        "init_args": {"teacher": {"path": str(world / "math")}, "context": "{content} {solution}"},
    }
    (folder / "hints.yaml").write_text(json.dumps({"model": {"teachers": {"math": teacher}}}))


def folder_for_a_file(world: Path, folder: Path) -> None:
    (folder / "dir.yaml").mkdir()
    (folder / "rows").mkdir()


YAML = [
    file("empty", "", "is empty"),
    file("Latin-1", "model: {student: {path: modèle}}\n".encode("latin-1"), "UTF-8", "byte 28"),
    file("UTF-16", "model: {}\n".encode("utf-16"), "UTF-8"),
    file("binary", b"\x00\x01\x02\xff", "UTF-8"),
    file("a tab", "model:\n\tstudent: x\n", "not valid YAML", "line 2"),
    file("an open bracket", "model: [3", "not valid YAML", "line 1"),
    file("a wrong indentation", "model:\n    student: {}\n  teachers: {}\n", "not valid YAML", "line 3"),
    file("duplicate keys", "trainer:\n  max_steps: 3\n  max_steps: 5\n", "`trainer.max_steps`", "twice", "line 3"),
    file("duplicate sections", "data: {seed: 1}\nmodel: {}\ndata: {seed: 2}\n", "`data`", "twice", "line 3"),
    file("duplicate teachers", "model: {teachers: {math: a, math: b}}\n", "`model.teachers.math`", "twice"),
    file("two documents", "trainer: {}\n---\ndata: {}\n", "one document"),
    file("an unknown anchor", "trainer: *base\n", "not valid YAML", "line 1"),
    file("a Python object", "trainer: !!python/object/apply:os.getcwd []\n", "not valid YAML"),
    file("a list", "[3]\n", "must be a mapping", "got list"),
    file("a number", "7\n", "must be a mapping", "got int"),
    file("a section that is a word", "trainer: fast\n", "`trainer`"),
    file("a section that is null", "data: null\n", "`data`"),
    file("a null number", "data: {prompts_per_batch: null}\n", "`data.prompts_per_batch`", "None"),
    Bad("a null student", ("`model.student` must be given, got null",), yaml="model: {student: null}\n"),
    file("a null objective", "model: {objective: null}\n", "`model.objective`"),
    file("a null task", "data: {task: null}\n", "`data.task`"),
    file("a null temperature", "data: {sampling: {temperature: null}}\n", "`data.sampling.temperature`"),
    file("a key that is a number", "3: 4\n", "`3`"),
    file("a misspelled section", "modle: {student: {path: x}}\n", "`modle`", "Did you mean `model`?"),
    file("an unknown variable", "trainer: {default_root_dir: '${rn}'}\n", "`${rn}`", "Did you mean `run`?"),
    file("a text for a flag", "model: {student: {gradient_checkpointing: maybe}}\n", "gradient_checkpointing", "maybe"),
    file("a float for a count", "data: {prompts_per_batch: 4.5}\n", "`data.prompts_per_batch`", "4.5"),
    file("a list for a number", "data: {prompts_per_batch: [4]}\n", "`data.prompts_per_batch`", "[4]"),
    file("a mapping for a number", "trainer: {max_steps: {a: 1}}\n", "`trainer.max_steps`"),
    file("init_args of nothing", "data: {task: {init_args: {path: x}, class_pat: y}}\n", "`data.task", "class_pat"),
    file("init_args that is a list", f"data: {{task: {{class_path: {TASKS}.Jsonl, init_args: [x]}}}}\n", "`data.task"),
    file("a missing argument", f"data: {{task: {{class_path: {TASKS}.Jsonl, init_args: {{path: null}}}}}}\n", "path"),
    file("teachers in a list", "model: {teachers: [a]}\n", "`model.teachers`", "expected a mapping"),
    file("a callback that is a number", "trainer: {callbacks: [3]}\n", "`trainer.callbacks`"),
    file(
        "a wrong type in a teacher",
        f"model: {{teachers: {{math: {{class_path: {TEACHERS}.LocalTeacher, init_args: {{path: x, top_k: two}}}}}}}}\n",
        "`model.teachers.math.top_k`",
        "two",
    ),
    Bad(
        "a config file that is a folder",
        ("`HERE/dir.yaml`", "folder"),
        ("--config", "HERE/dir.yaml"),
        prepare=folder_for_a_file,
    ),
    Bad(
        "a config file that is missing",
        ("`HERE/god.yaml` does not exist", "Did you mean"),
        ("--config", "HERE/god.yaml"),
    ),
    Bad("--config without a file", ("--config",), ("--config",)),
]

OPTIONS = [
    setting("model.studnt.path=x", "`model.studnt`", "Did you mean `student`?"),
    setting("model.student.lora.rnk=3", "Did you mean `rank`?"),
    setting("trainr.max_steps=3", "`trainr`", "Did you mean `trainer`?"),
    setting("ckpt=last", "`ckpt`", "Did you mean `ckpt_path`?"),
    setting("data.samples_per_prompt=two", "`data.samples_per_prompt`", "expected an integer, got `two`."),
    setting("trainer.max_steps=", "`trainer.max_steps`"),
    setting("data.task=lightning_opd.tasks.Jsonll", "Did you mean `Jsonl`?"),
    setting("data.task=nowhere.Task", "module `nowhere`", "PYTHONPATH"),
    setting("data.task=lightning_opd.interfaces.Task", "`data.task`", "abstract"),
    setting("model.objective=lightning_opd.interfaces.Objective", "`model.objective`", "abstract"),
    setting("model=lightning_opd.modules.student.StudentModule", "No `training_step()`"),
    setting("data.task=lightning_opd.teachers.LocalTeacher", "subclass of Task. For example lightning_opd.tasks."),
    setting("data.task=os.path.join", "`data.task`", "os.path.join"),
    setting("model.optimizer=torch.optim.Adamm", "`model.optimizer`", "Did you mean `Adam`?"),
    setting("model.optimizer=torch.nn.Linear", "`model.optimizer`"),
    setting("model.objective=PolicyGradiant", "Did you mean `PolicyGradient`?"),
    setting(f"data.task={part(f'{TASKS}.Jsonl', pth='x')}", "`data.task.pth`", "Did you mean `path`?"),
    setting(f"data.task={part(f'{TASKS}.Jsonl', path='x', match='fuzzy')}", "match", "fuzzy"),
    setting(f"data.task={part(f'{TASKS}.Mixture', tasks={})}", "`tasks`"),
    setting("data.long_prompts=shorten", "`data.long_prompts`", "shorten"),
    setting("data.evaluation.modes=[argmax]", "modes", "argmax"),
    setting("data.evaluation.splits=[dev]", "splits", "dev"),
    setting("model.student.control_tokens_in_text=eat", "control_tokens_in_text", "eat"),
    setting("model.teachers.math=null", "`math`"),
    Bad("a word that is no option", ("max_steps=3",), ("max_steps=3",)),
    Bad("one dash", ("-trainer.max_steps",), ("-trainer.max_steps", "3")),
    setting("trainer.strategy=ddpp", "strategy='ddpp'"),
    setting("trainer.strategy=fsdp", "FSDP1", "configs/trainer/fsdp.yaml"),
    setting("trainer.logger=lightning.pytorch.loggers.WandbLogger", "wandb"),
    setting("trainer.detect_anomaly=perhaps", "`trainer.detect_anomaly`", "perhaps"),
    setting(
        f"trainer.callbacks+={part(f'{TRAINING}.EarlyStopping', monitor='val/loss')}", "`val/loss`", "`train/loss`"
    ),
    setting(f"trainer.callbacks+={part(f'{TRAINING}.EarlyStopping', monitor='x', mode='up')}", "mode", "up"),
    setting(f"trainer.callbacks+={part(f'{TRAINING}.Timer', duration='soon')}", "soon"),
    setting(
        f"trainer.callbacks+={part(f'{TRAINING}.Timer', duration={'hours': 1}, interval='epoc')}", "interval", "epoc"
    ),
    setting(f"trainer.callbacks+={part(f'{TRAINING}.LearningRateFinder')}", "LearningRateFinder"),
    setting(f"trainer.callbacks+={part(f'{TRAINING}.BatchSizeFinder')}", "BatchSizeFinder"),
    setting(f"trainer.callbacks+={part(f'{TRAINING}.LearningRateMonitor')}", "LearningRateMonitor"),
    setting(f"trainer.callbacks+={part(f'{TRAINING}.StochasticWeightAveraging', swa_lrs=-1)}", "swa_lrs"),
    Bad(
        "a hint from a missing column",
        ("solution", "prompts.jsonl", "columns"),
        ("--config", "HERE/hints.yaml"),
        prepare=hint_of_a_missing_column,
    ),
]

PROMPTS = [
    setting("data.task.init_args.path=HERE/none.jsonl", "`HERE/none.jsonl`"),
    Bad("a folder of prompts", ("HERE/rows",), ("--data.task.init_args.path=HERE/rows",), prepare=folder_for_a_file),
    rows("empty", "", "has no prompts"),
    rows("blank lines", "\n  \n\n", "has no prompts"),
    rows("an open line", '{"prompt": "a", "teacher": "math"}\n{"prompt": \n', ":2", "JSON object"),
    rows("UTF-16", '{"prompt": "a"}\n'.encode("utf-16"), "it is UTF-16", "iconv"),
    rows("Latin-1", '{"prompt": "é", "teacher": "math"}\n'.encode("latin-1"), ":1", "UTF-8"),
    rows("nothing but brackets", "{" * 100_000, ":1"),
    rows("deep lists", "[" * 100_000, ":1"),
    one_row("a number", 7, "JSON object", "int"),
    one_row("no prompt", {"question": "a", "teacher": "math"}, "`prompt`"),
    one_row("a null prompt", {"prompt": None, "teacher": "math"}, "`prompt`"),
    one_row("no messages", {"messages": [], "teacher": "math"}, "`messages`"),
    one_row("a message without content", {"messages": [{"role": "user"}], "teacher": "math"}, "`content`"),
    one_row("a message that is a text", {"messages": ["hi"], "teacher": "math"}, "`role`"),
    one_row(
        "the assistant first", {"messages": [{"role": "assistant", "content": "a"}], "teacher": "math"}, "begin with"
    ),
    one_row("no teacher", {"prompt": "a"}, "`teacher`"),
    one_row("a teacher that is a number", {"prompt": "a", "teacher": 3}, "`teacher`", "3"),
    one_row("tools in a text", {"prompt": "a", "teacher": "math", "tools": "calculator"}, "tools"),
    Bad(
        "an unknown teacher",
        ("`maths`", "['code', 'math']", "Did you mean `math`?"),
        rows="".join(json.dumps({**row, "teacher": "maths"}) + "\n" for row in ROWS),
    ),
    Bad("rows of fewer prompts than a batch", ("`prompts_per_batch` is 400",), ("--data.prompts_per_batch=400",)),
    Bad(
        "an unknown column of domains",
        ("prompts.jsonl:1", "`topic`"),
        ('--data.task.init_args.columns={"domain": "topic"}',),
    ),
    Bad(
        "an unknown column of teachers",
        ("prompts.jsonl:1", "`expert`"),
        ('--data.task.init_args.columns={"teacher": "expert"}',),
    ),
    Bad(
        "prompts longer than the context",
        ("context of 256", "`max_new_tokens`"),
        ("--data.sampling.max_new_tokens=250",),
    ),
]

TABLE = [*YAML, *thinned(OPTIONS, 6), *thinned(PROMPTS, 7)]
