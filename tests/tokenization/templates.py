"""Chat templates with the structure of real ones: what differs between families, and nothing else."""

from __future__ import annotations

from functools import cache

from transformers import PreTrainedTokenizerBase

from lightning_opd.tokenization.training import train_tokenizer
from tests.tiny import SPECIAL_TOKENS, TEXTS

OPEN = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
TURN = "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}"
CALLS = (
    "{% for c in m.tool_calls or [] %}<tool_call>"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}</tool_call>{% endfor %}'
)

TEMPLATES = {
    "ChatML": "{% for m in messages %}" + TURN + CALLS + "<|im_end|>\n{% endfor %}" + OPEN,
    # Gemma, Phi-3: a turn closes with a token that is not the tokenizer's eos
    "own closer": "{% for m in messages %}" + TURN + "<turn|>\n{% endfor %}" + OPEN,
    # GLM-4: nothing closes a turn but the next one's role
    "no closer": (
        "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}" + CALLS + "{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    ),
    # Gemma 4: a tool call is closed by the token that opens the tool's answer
    "call closer": (
        "{% for m in messages %}{% if m.role == 'tool' %}{{ m.content }}<|tool_end|>{% else %}"
        + TURN
        + CALLS
        + "{{ '<|tool|>' if m.tool_calls else '<turn|>\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt and messages[-1].role != 'tool' %}<|im_start|>assistant\n{% endif %}"
    ),
    # Cohere 2: two control tokens close a turn
    "two closers": "{% for m in messages %}" + TURN + "<turn|><|im_end|>{% endfor %}" + OPEN,
    # gpt-oss: the last turn of a chat closes with another token than the earlier ones
    "last closer": (
        "{% for m in messages %}" + TURN + "{{ '<|im_end|>' if loop.last else '<turn|>' }}{% endfor %}" + OPEN
    ),
    # Llama 2: spaces around a reply
    "spaces": "{% for m in messages %}{{ '[' + m.role + '] ' + m.content + ' <|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}",
    # Qwen 3: earlier replies lose their thoughts, and the last one without any gets an empty one
    "strips thoughts": (
        "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}"
        "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
        "{% for m in messages %}{% set content = m.content %}{% set thought = '' %}"
        "{% if m.role == 'assistant' and '</think>' in content %}"
        "{% set thought = content.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
        "{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}"
        "<|im_start|>{{ m.role }}\n"
        "{% if m.role == 'assistant' and loop.index0 > ns.last and (loop.last or thought) %}"
        "<think>\n{{ thought }}\n</think>\n\n{% endif %}"
        "{{ content }}" + CALLS + "<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n"
        "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
    ),
    # DeepSeek-R1: the prompt opens a thought, of which a finished turn shows nothing
    "opens a thought": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{{ m.content.split('</think>')[-1] if m.role == 'assistant' else m.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
    ),
    # DeepSeek: a call's arguments are pasted as they are
    "pastes arguments": (
        "{% for m in messages %}" + TURN + "{% for c in m.tool_calls or [] %}<tool_call>"
        "{{ c.function.name + ' ' + c.function.arguments }}</tool_call>{% endfor %}<|im_end|>\n{% endfor %}" + OPEN
    ),
    # SmolVLM: content is a list of parts
    "parts": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for part in m.content %}{{ part.text }}{% endfor %}"
        "<|im_end|>\n{% endfor %}" + OPEN
    ),
    # Gemma 2: roles alternate, and there are no tools
    "alternates": (
        "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) or m.role == 'tool' %}"
        "{{ raise_exception('Roles must alternate') }}{% endif %}" + TURN + "<|im_end|>\n{% endfor %}" + OPEN
    ),
    # Llama 3.2: the system message tells the date
    "date": "Today is {{ strftime_now('%d %b %Y') }}.{% for m in messages %}"
    + TURN
    + "<|im_end|>\n{% endfor %}"
    + OPEN,
}

MORE_TOKENS = ("<turn|>", "<|user|>", "<|assistant|>", "<|tool|>", "<|tool_end|>")


@cache
def tokenizer_with(template: str) -> PreTrainedTokenizerBase:
    """Return a small tokenizer with one of `TEMPLATES`; every control token is one token."""
    tokenizer = train_tokenizer(TEXTS, vocab_size=288, special_tokens=SPECIAL_TOKENS)
    tokenizer.add_tokens(list(MORE_TOKENS), special_tokens=True)
    tokenizer.chat_template = TEMPLATES[template]
    return tokenizer
