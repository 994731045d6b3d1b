from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from lightning_opd.collection import Learner
from lightning_opd.collection.tool_checks import check_tool_turns
from lightning_opd.errors import ConfigError
from lightning_opd.interfaces import Environment, Task
from lightning_opd.models import StudentConfig
from lightning_opd.modules import OPDModule
from lightning_opd.objectives import PolicyGradient
from lightning_opd.tasks.tools import Tool, ToolEnvironment, calculate
from lightning_opd.teachers import CrossTokenizerTeacher, LocalTeacher, TeacherPool
from lightning_opd.tokenization.tool_calls import BareJson, ToolCallParser
from lightning_opd.types import Prompt, Split
from tests.agents import ScriptedChat
from tests.tiny import save_model
from tests.tokenization.templates import tokenizer_with as with_turns
from tests.tokenization.test_replies import CALLS, OPEN, TURN, tokenizer_with
from tests.world import Letters, make_data, make_trainer

SCHEMAS = "{% for tool in tools or [] %}{{ tool|tojson }}{% endfor %}"
HERMES = CALLS[next(iter(CALLS))]


class Calculator(Task):
    """Questions for a student that may call a calculator."""

    def __init__(self, parser: ToolCallParser | None = None, *, shows_tools: bool = True) -> None:
        self.parser, self.shows_tools = parser, shows_tools

    def prompts(self, split: Split) -> Sequence[Prompt]:
        return [Prompt(({"role": "user", "content": "What is 2+3?"},), str(i), "math", "math") for i in range(4)]

    def environment(self, prompt: Prompt) -> Environment:
        tools = [Tool(calculate, isolated=False)]
        return ToolEnvironment(prompt.messages, tools, lambda _: 0.0, self.parser, shows_tools=self.shows_tools)


def with_template(call: str, schemas: str = SCHEMAS, turn: str = TURN, before: str = "") -> PreTrainedTokenizerBase:
    tokenizer = tokenizer_with(call)
    calls = f"{{% for c in m.tool_calls or [] %}}{call}{{% endfor %}}"
    tokenizer.chat_template = f"{schemas}{before}{{% for m in messages %}}{turn}{calls}<|im_end|>{{% endfor %}}{OPEN}"
    return tokenizer


def check(student: PreTrainedTokenizerBase, task: Task | None = None, max_turns: int = 16, **teachers: Any) -> None:
    def nothing(*_: Any) -> Any:
        pytest.fail("nothing is loaded for a check")

    learner = Learner(student, (0,), 512, nothing, nothing, nothing, TeacherPool(teachers), PolicyGradient())
    task = task or Calculator()
    check_tool_turns(task, task.prompts("train"), learner, max_turns)


REFUSED = {
    "refuses a turn with tools.*no tools here": with_template(
        HERMES, before="{% for m in messages if m.role == 'tool' %}{{ raise_exception('no tools here') }}{% endfor %}"
    ),
    r"does not show the tools \['calculate'\]": with_template(HERMES, schemas=""),
    "does not show a tool's answer": with_template(HERMES, turn="{{ m.content if m.role != 'tool' }}"),
    "writes tool calls in a form that is not known": with_template("run {{ c.function.name }}"),
}


@pytest.mark.parametrize("said", REFUSED)
def test_a_students_template_that_cannot_show_a_tool_turn_is_refused(said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check(REFUSED[said])


def test_templates_that_show_tool_turns_pass() -> None:
    for call in CALLS.values():
        check(with_template(call))
    check(with_template("", schemas=SCHEMAS), Calculator(shows_tools=False))
    check(with_template("run {{ c.function.name }}"), Calculator(BareJson()))
    check(with_template(HERMES, schemas=""), Calculator(shows_tools=False))


def test_a_teacher_of_another_family_must_show_the_turn_as_well(tmp_path: Path) -> None:
    def teacher(name: str, tokenizer: PreTrainedTokenizerBase) -> CrossTokenizerTeacher:
        tokenizer.save_pretrained(tmp_path / name)
        return CrossTokenizerTeacher(str(tmp_path / name))

    student = with_template(HERMES)
    check(student, math=teacher("llama", with_template(CALLS[BareJson])))
    check(student, other=teacher("blind", with_template("", schemas="")))
    check(student, math=LocalTeacher(str(tmp_path / "nowhere")))
    for said, tokenizer in REFUSED.items():
        if "form" not in said:
            with pytest.raises(ConfigError, match=f"of teacher `math`.*{said}"):
                check(student, math=teacher("bad", tokenizer))
    with pytest.raises(ConfigError, match=r"of teacher `math`.*does not show tool calls"):
        check(student, math=teacher("no calls", with_template("")))
    check(with_template(""), math=teacher("no calls", with_template("")))


def test_a_template_that_keeps_no_kind_of_reply_is_refused() -> None:
    for template in ("ChatML", "strips thoughts"):
        check(with_turns(template), ScriptedChat())
    for template in ("opens a thought", "last closer"):
        with pytest.raises(ConfigError, match=r"renders replies.* otherwise once .* `user` follows.*max_turns` to 1"):
            check(with_turns(template), ScriptedChat())
        check(with_turns(template), ScriptedChat(), max_turns=1)
        check(with_turns(template), Letters())


def test_a_call_must_be_kept_with_or_without_a_thought() -> None:
    agent = Calculator(shows_tools=False)
    fills = "{% if m.role == 'assistant' and not loop.last and '</think>' not in m.content %}<think></think>{% endif %}"
    check(with_template(HERMES, turn=TURN.replace("{{ m['content'] }}", fills + "{{ m['content'] }}")), agent)
    kept = "m.content.split('</think>')[-1] if m.role == 'assistant' and not loop.last else m.content"
    strips = with_template(HERMES, turn=TURN.replace("m['content']", kept))
    check(strips, agent)
    strips.chat_template = str(strips.chat_template).replace(OPEN, OPEN.replace("{% endif", "<think>\n{% endif"))
    with pytest.raises(ConfigError, match=r"renders tool calls with thoughts otherwise once .* `tool` follows"):
        check(strips, agent)
    marks = with_template(HERMES, turn=TURN + "{{ '!' if m.tool_calls and not loop.last }}")
    with pytest.raises(ConfigError, match=r"renders tool calls otherwise once .* `tool` follows.*max_turns` to 1"):
        check(marks, agent)
    check(marks, agent, max_turns=1)


def test_a_run_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    student = save_model(tmp_path / "student", tokenizer=with_template(HERMES, schemas=""))
    module = OPDModule(StudentConfig(str(student)), {"math": str(tmp_path / "nowhere")}, PolicyGradient())
    with pytest.raises(ConfigError, match=r"the student .*does not show the tools \['calculate'\]"):
        make_trainer(tmp_path).fit(module, datamodule=make_data(Calculator()))
    assert module.student is None


def test_a_run_with_turns_that_no_template_keeps_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    student = save_model(tmp_path / "student", tokenizer=with_turns("last closer"))
    teachers = dict.fromkeys(("code", "math"), str(tmp_path / "nowhere"))
    module = OPDModule(StudentConfig(str(student)), teachers, PolicyGradient())
    with pytest.raises(ConfigError, match=r"renders replies otherwise once a message of role `user` follows"):
        make_trainer(tmp_path).fit(module, datamodule=make_data(ScriptedChat()))
    assert module.student is None
