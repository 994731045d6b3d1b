"""Real chat templates, turn by turn: are an episode's tokens those of the whole rendering, and where does it stop?"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from lightning_opd.errors import ConfigError
from lightning_opd.tokenization.rendering import encode, render
from lightning_opd.tokenization.turn_borders import stop_token_ids
from lightning_opd.tokenization.turns import episode_tokens, first_difference, render_demonstration
from lightning_opd.types import Message
from tests.real import fetch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKENIZERS: Mapping[str, str] = {
    "cohere": "command_r_plus",
    "deepseek": "deepseek_v3",
    "gemma": "gemma3",
    "llama3": "llama3_1",
    "llava": "llama2",
    "mistral": "mistral_nemo",
    "phi3": "llama2",
    "qwen2_5": "qwen2_5",
}
"""Beginning of a template's name → the real tokenizer to render it with; by default Qwen 3's."""

ENDS: Mapping[str, str] = {
    "cohere": "<|END_OF_TURN_TOKEN|>",
    "gemma": "<eos>",
    "glm4moe": "<|endoftext|>",
    "gptoss": "<|return|>",
    "idefics3": "<end_of_utterance>",
    "smolvlm": "<end_of_utterance>",
    "llava": "</s>",
    "muse": "<|eot|>",
    "phi3": "<|endoftext|>",
}
"""Beginning of a template's name → the model's `eos_token`, where it is not its tokenizer's."""

TAGS = re.compile(r"</?[a-z_]+>")
CONTROL = re.compile(r"<\|[^|<>\s]{1,40}\|>|<[a-z]+_of_[a-z]+>|<\|?(?:turn|channel|tool)[a-z_]*\|?>|" + TAGS.pattern)

CALL = {"id": "call00001", "type": "function", "function": {"name": "add", "arguments": {"a": 27, "b": 48}}}
DESCRIPTION = "Add two numbers."
TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": DESCRIPTION,
        "parameters": {
            "type": "object",
            "properties": {
                "a": {"type": "integer", "description": "One."},
                "b": {"type": "integer", "description": "The other."},
            },
            "required": ["a", "b"],
        },
    },
}
USER, REPLY = {"role": "user", "content": "What is 27 + 48?"}, {"role": "assistant", "content": "It is 75."}
THOUGHT = "<think>\nSeven and eight.\n</think>\n\nIt is 75."
RESULT = {"role": "tool", "name": "add", "tool_call_id": "call00001", "content": "75"}
AGAIN: tuple[Message, ...] = ({"role": "user", "content": "And\n\ntwice?"}, REPLY, USER)
CALLING = {"role": "assistant", "content": "", "tool_calls": [CALL]}
DEMONSTRATIONS: Mapping[str, tuple[Message, ...]] = {
    "one turn": (USER, REPLY),
    "a thought": (USER, {**REPLY, "content": THOUGHT}),
}
EPISODES: Mapping[str, tuple[Message, ...]] = {
    "three turns": (USER, REPLY, *AGAIN),
    "with thoughts": (USER, {**REPLY, "content": THOUGHT}, *AGAIN),
    "tools": ({**USER, "tools": [TOOL]}, CALLING, RESULT),
    "tools, thoughts": ({**USER, "tools": [TOOL]}, {**CALLING, "content": THOUGHT}, RESULT),
}


def tokenizer_of(template: str) -> PreTrainedTokenizerBase:
    """Return a real tokenizer with a real chat template; control tokens that only the template has are added."""
    family = next((f for start, f in TOKENIZERS.items() if template.startswith(start)), "qwen3")
    tokenizer, text = fetch.tokenizer(family), fetch.chat_templates()[template]
    tokenizer.chat_template = text
    missing = sorted(set(CONTROL.findall(text)) - tokenizer.get_vocab().keys())
    end = next((e for start, e in ENDS.items() if template.startswith(start)), str(tokenizer.eos_token))
    tokenizer.add_tokens([token for token in missing if TAGS.fullmatch(token)])
    tokenizer.add_tokens([token for token in [*missing, end] if not TAGS.fullmatch(token)], special_tokens=True)
    tokenizer.eos_token = end
    return tokenizer


def outcome(tokenizer: PreTrainedTokenizerBase, kind: str) -> str:
    """Return "=" where the tokens turn by turn are those of the whole chat and the replies end at a stop, else why not.

    A chat of one turn is compared as a demonstration, one of several turns as an episode.
    """
    stops = stop_token_ids(tokenizer)
    try:
        if kind in DEMONSTRATIONS:
            token_ids, mask = render_demonstration(tokenizer, DEMONSTRATIONS[kind])
            whole = encode(tokenizer, render(tokenizer, DEMONSTRATIONS[kind], add_generation_prompt=False))
            is_same = whole[: len(token_ids)] == token_ids or whole == token_ids[:-1]  # nothing may close a turn
            if not is_same:
                return "The whole chat shows such a reply with other tokens: it cannot be part of a longer chat."
        else:
            chat = EPISODES[kind]
            token_ids, mask = episode_tokens(tokenizer, chat)
            difference = first_difference(tokenizer, chat)
            if difference:
                return f"The whole chat differs: {difference}."
            if kind.startswith("tools") and DESCRIPTION not in tokenizer.decode(token_ids):
                return "The template does not show the tools."
    except ConfigError as error:
        return str(error).replace(str(tokenizer.name_or_path), "…")
    lasts = [token_ids[i] for i, own in enumerate(mask) if own and not (i + 1 < len(mask) and mask[i + 1])]
    return "=" if set(lasts) <= set(stops) else f"ends with {tokenizer.convert_ids_to_tokens(lasts)}"


def markdown() -> str:
    """Return the table, and under it every refusal in words; `=` is equal."""
    kinds = [*DEMONSTRATIONS, *EPISODES]
    lines = [f"| template | stops | {' | '.join(kinds)} |", "|---" * (len(kinds) + 2) + "|"]
    refusals: list[str] = []
    for template in fetch.chat_templates():
        tokenizer = tokenizer_of(template)
        cells = []
        for kind in kinds:
            found = outcome(tokenizer, kind)
            if found != "=" and found not in refusals:
                refusals.append(found)
            cells.append("=" if found == "=" else f"refused ({refusals.index(found) + 1})")
        stops = " ".join(f"`{stop}`" for stop in tokenizer.convert_ids_to_tokens(list(stop_token_ids(tokenizer))))
        lines.append(f"| {template} | {stops} | {' | '.join(cells)} |".replace("<|", "<\\|").replace("|>", "\\|>"))
    return "\n".join([*lines, "", *(f"{i}. {refusal}" for i, refusal in enumerate(refusals, start=1))])
