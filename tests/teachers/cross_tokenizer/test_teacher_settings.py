from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from transformers import GenerationConfig

from lightning_opd.functional.credit import ExactMatchCredit, SpanCredit
from lightning_opd.modules import OPDModule
from lightning_opd.objectives import PolicyGradient
from lightning_opd.teachers import CrossTokenizerTeacher, LocalTeacher
from lightning_opd.types import Sampling
from tests.world import make_data, make_module, make_trainer


def test_one_teacher_under_two_credits_is_two_teachers() -> None:
    credits = ExactMatchCredit(), ExactMatchCredit(), SpanCredit()
    one, same, other = (CrossTokenizerTeacher("a", credit) for credit in credits)
    assert CrossTokenizerTeacher("a").identity == other.identity, "spans are the default"
    assert one.identity == same.identity != other.identity != CrossTokenizerTeacher("a", roles={"x": None}).identity


def test_control_tokens_that_end_responses_in_the_run_end_the_teachers_turn(
    world: Path, foreign: Path, tmp_path: Path
) -> None:
    module, teacher = make_module(world), CrossTokenizerTeacher(str(foreign))
    declared, chosen, text = (module.tokenizer.get_vocab()[token] for token in ("<think>", "<tool_call>", "x"))
    GenerationConfig(eos_token_id=[2, declared]).save_pretrained(tmp_path)
    for path in (world / "student").iterdir():
        if path.name != "generation_config.json":
            (tmp_path / path.name).symlink_to(path)
    student = replace(module.student_config, path=str(tmp_path))
    own = OPDModule(student, {"math": teacher, "code": LocalTeacher(str(world / "code"))}, PolicyGradient())
    sampling = Sampling(max_new_tokens=6, stop_token_ids=(2, chosen, text))
    make_trainer(tmp_path / "run", max_steps=1).fit(own, make_data(sampling=sampling))
    pairs, end = teacher.translator.roles.pairs, teacher.translator.teacher.eos_token_id
    assert [pairs.get(i) for i in (declared, chosen, text)] == [end, end, None]


def test_a_teacher_renders_with_its_own_template_settings(foreign: Path) -> None:
    settings: dict[str, object] = {"enable_thinking": False}
    teacher = CrossTokenizerTeacher(str(foreign), chat_template_kwargs=settings)
    assert teacher.own_tokenizer().init_kwargs["chat_template_kwargs"] == settings
    assert teacher.identity != CrossTokenizerTeacher(str(foreign)).identity
