"""The student before its weights: learning rate, embedding, adapter, stop tokens."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from lightning_opd.errors import ConfigError
from lightning_opd.models import Outline, check_rows, outline
from lightning_opd.modules.student import StudentModule
from lightning_opd.preflight.report import Check, Status


def check_learning_rates(module: StudentModule) -> Check:
    """Refuse a learning rate that is not positive.

    Raises:
        ConfigError: It is not, or the optimiser refuses its settings.
    """
    rates = module.learning_rates()
    wrong = [rate for rate in rates if not 0 < rate < math.inf]
    if wrong:
        msg = (
            f"The learning rate of `model.optimizer` must be a positive number, got {wrong[0]:g}: nothing would be "
            "learned. Set `lr`."
        )
        raise ConfigError(msg)
    return Check("learning rate", ", ".join(f"{rate:g}" for rate in rates), values={"learning_rates": rates})


def outline_of(module: StudentModule) -> tuple[Outline | None, Check]:
    """Return the student without its weights, where its class and code allow it, and what is to be said of it.

    Raises:
        ConfigError: The adapter's targets are none of the student's, or a token has no embedding.
    """
    config, name = module.student_config, "student"
    if type(module).configure_student is not StudentModule.configure_student:
        text = f"{type(module).__name__} builds it in `configure_student`: looked at once it is loaded."
        return None, Check(name, text, Status.NOTE)
    try:
        found = outline(config)
    except ConfigError:
        raise
    except Exception as error:  # code of any architecture, made for real weights
        text = f"cannot be looked at without weights ({type(error).__name__}: {error})"
        return None, Check(name, text, Status.NOTE)
    check_rows(config.name, found.model, len(module.tokenizer))
    share = f"{found.num_trained:,} of {found.num_parameters:,} weights are trained"
    if config.lora is None:
        text = share if found.narrowest_target else f"all {found.num_parameters:,} weights are trained"
    else:
        text = f"{share}, by an adapter of rank {config.lora.rank} on {found.num_targets} layers"
    if config.lora is not None and found.narrowest_target and config.lora.rank > found.narrowest_target:
        text += f"; the rank is above the narrowest layer's {found.narrowest_target}: a lower one can say as much"
        return found, Check(name, text, Status.NOTE)
    rows = int(found.model.config.get_text_config().vocab_size)
    text += f"; {rows:,} embeddings for {len(module.tokenizer):,} tokens"
    values = {"num_parameters": found.num_parameters, "num_trained": found.num_trained, "embedding_rows": rows}
    return found, Check(name, text, values=values)


def check_stops(module: StudentModule, chosen: Sequence[int] = ()) -> Iterator[Check]:
    """Look at the tokens that end a reply.

    Args:
        module: Knows the student's own.
        chosen: Those of `data.sampling.stop_token_ids`, which take their place.

    Raises:
        ConfigError: One of the chosen, or all of the student's, are none of the tokenizer's tokens.
    """
    stops, size = tuple(chosen) or module.stop_token_ids, len(module.tokenizer)
    unknown = [stop for stop in stops if not 0 <= stop < size]
    if unknown and (chosen or len(unknown) == len(stops)):
        where = "`data.sampling.stop_token_ids`" if chosen else "`eos_token_id` of the model's configuration"
        msg = (
            f"{where} has {unknown}, and the tokenizer only {size:,} tokens: no reply would end there. Use ids below "
            f"{size:,}."
        )
        raise ConfigError(msg)
    names = ", ".join(f"{module.tokenizer.convert_ids_to_tokens(i)} ({i})" for i in stops if i not in unknown)
    status = Status.NOTE if unknown else Status.PASSED
    more = f"; {unknown} are none of the tokenizer's {size:,} tokens" if unknown else ""
    yield Check("stop tokens", f"{names}{more}", status, {"stop_token_ids": list(stops)})
