"""Checks of tokenizers: of one for training, and of two for a common vocabulary."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lightning_opd.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def check_student_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise unless the tokenizer can stop and render a chat.

    Raises:
        ValueError: With what is missing and how to add it.
    """
    if tokenizer.eos_token_id is None:
        msg = (
            f"The tokenizer `{tokenizer.name_or_path}` has no `eos_token`: responses would never end. Set it in "
            'tokenizer_config.json, for example {"eos_token": "<|endoftext|>"}, with a token the vocabulary has.'
        )
        raise ConfigError(msg)
    if not tokenizer.chat_template:
        raise ConfigError(missing_template(tokenizer))


def padding_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the token that fills rows up: any will do, since padding is masked."""
    pad, stop = tokenizer.pad_token_id, tokenizer.eos_token_id
    return int(cast("int", pad if pad is not None else stop or 0))


def missing_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the message about a tokenizer that cannot turn messages into text."""
    return (
        f"The tokenizer `{tokenizer.name_or_path}` has no chat template, so messages cannot become tokens. "
        "Put a chat_template.jinja beside it, or use the tokenizer of the chat model."
    )


def check_same_vocabulary(
    student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase, teacher_name: str
) -> None:
    """Raise unless both map the same tokens to the same ids and stop with the same token.

    Padded rows of an output layer do not matter: maps are compared, not sizes. One side may have added tokens that the
    other lacks, as Qwen 3 has beside Qwen 2.5, if their ids come after all of the other's: a line says which. Where
    the student generates one that the teacher lacks, that token and those after it get no score.

    Raises:
        ConfigError: With the first tokens that differ, or the two stop tokens.
    """
    ours, theirs = student.get_vocab(), teacher.get_vocab()
    different = sorted(token for token in ours.keys() | theirs.keys() if ours.get(token) != theirs.get(token))
    if different and not (_only_adds(student, teacher) and _only_adds(teacher, student)):
        shown = ", ".join(f"{t!r}: {ours.get(t)} here, {theirs.get(t)} there" for t in different[:3])
        msg = (
            f"Teacher `{teacher_name}` has another vocabulary than the student: {len(different)} tokens differ "
            f"({shown}). A local teacher scores the student's own tokens, so both must share one tokenizer. Use "
            "`CrossTokenizerTeacher`, which reads the student's text in the teacher's tokens."
        )
        raise ConfigError(msg)
    if different:
        lacked = [token for token in different if token not in theirs]
        extra = [token for token in different if token not in ours]
        told = [f"it lacks {lacked}, which get no score where they are generated, nor what follows them"] * bool(lacked)
        told += [f"it has {extra} besides"] * bool(extra)
        shared = f"Teacher `{teacher_name}` shares the student's vocabulary but for added tokens"
        rank_zero_info(f"{shared}: {'; and '.join(told)}.")
    if student.eos_token_id != teacher.eos_token_id:
        msg = (
            f"Teacher `{teacher_name}` stops with {teacher.eos_token!r}, the student with {student.eos_token!r}: "
            "the teacher would punish every ending. Give both the same `eos_token` in tokenizer_config.json."
        )
        raise ConfigError(msg)


def _only_adds(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> bool:
    """Whether what one tokenizer has and the other lacks are added tokens, with ids after all of the other's."""
    ours, theirs = one.get_vocab(), other.get_vocab()
    known = max(theirs.values(), default=-1)
    added = {str(entry) for entry in one.added_tokens_decoder.values()}
    return all(
        theirs[token] == token_id if token in theirs else token in added and token_id > known
        for token, token_id in ours.items()
    )
