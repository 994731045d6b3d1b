"""Forms of tool calls besides JSON between tags: XML (Qwen3-Coder, GLM), Mistral, DeepSeek, Python."""

from __future__ import annotations

import ast
import math
import re
import warnings
from dataclasses import dataclass

from typing_extensions import override

from lightning_opd.tokenization.thoughts import until
from lightning_opd.tokenization.tool_calls import (
    DECODER,
    TaggedCalls,
    ToolCall,
    ToolCallParser,
    arguments_of,
    call_from_json,
)

MAX_CHARACTERS = 20_000
"""Longest reply that is read as Python."""

BAR, LOW = "\N{FULLWIDTH VERTICAL LINE}", "\N{LOWER ONE EIGHTH BLOCK}"
"""In DeepSeek's control tokens."""

_WHITE_SPACE = re.compile(r"\s*")

_CONSTANTS = {"true": True, "false": False, "null": None}
"""What JSON writes otherwise than Python; some templates mix the two."""


@dataclass(frozen=True)
class XmlParameters(TaggedCalls):
    r"""Calls as `<tool_call><function=name><parameter=key>value</parameter></function></tool_call>`: Qwen3-Coder.

    Example:
        >>> XmlParameters()("<tool_call><function=now>\n<parameter=zone>\nUTC\n</parameter>\n</function></tool_call>")
        [ToolCall(name='now', arguments={'zone': 'UTC'})]
    """

    @override
    def read_body(self, body: str) -> ToolCall | None:
        found = re.match(r"\s*<function=([^<>\n]+)>", body)
        inner, is_closed, after = body[found.end() :].rpartition("</function>") if found else ("", "", "")
        if found is None or not is_closed or after.strip():
            return None
        pairs: list[tuple[str, str]] = []
        start = _next(inner, 0)
        while start < len(inner):
            key, has_key, start = until(inner, ">", start)
            value, has_value, start = until(inner, "</parameter>", start)
            is_whole = key.startswith("<parameter=") and has_key and has_value
            if not is_whole or "<parameter=" in value:  # the latter: one before it is not closed
                return None
            pairs.append((key.removeprefix("<parameter=").strip(), value.removeprefix("\n").removesuffix("\n")))
            start = _next(inner, start)
        return _plain_call(found[1].strip(), pairs)


@dataclass(frozen=True)
class XmlArguments(TaggedCalls):
    r"""Calls as `<tool_call>name <arg_key>key</arg_key><arg_value>value</arg_value></tool_call>`: GLM.

    Example:
        >>> XmlArguments()("<tool_call>now\n<arg_key>zone</arg_key>\n<arg_value>UTC</arg_value>\n</tool_call>")
        [ToolCall(name='now', arguments={'zone': 'UTC'})]
    """

    @override
    def read_body(self, body: str) -> ToolCall | None:
        name = body.partition("<arg_key>")[0]
        start, name = len(name), name.strip()
        if not name or not re.fullmatch(r"[^\s<>{}]+", name):
            return None
        pairs: list[tuple[str, str]] = []
        while _next(body, start) < len(body):
            key, is_key, start = _element(body, "arg_key", start)
            value, is_value, start = _element(body, "arg_value", start)
            if not (is_key and is_value) or "<arg_" in key + value:  # the latter: one before it is not closed
                return None
            pairs.append((key.strip(), value))
        return _plain_call(name, pairs)


def _element(text: str, tag: str, start: int) -> tuple[str, bool, int]:
    """Return the content of the element that a text has from `start` on, whether it is one, and where it ends."""
    start = _next(text, start)
    is_open = text.startswith(f"<{tag}>", start)
    content, is_closed, end = until(text, f"</{tag}>", start + is_open * len(f"<{tag}>"))
    return content, is_open and is_closed, end


def _next(text: str, start: int) -> int:
    """Return where the next character stands that is no white space."""
    found = _WHITE_SPACE.match(text, start)
    assert found is not None  # it matches nothing, too
    return found.end()


def _plain_call(name: str, pairs: list[tuple[str, str]]) -> ToolCall | None:
    arguments: dict[str, object] = dict(pairs)
    return ToolCall(name, arguments, tuple(arguments)) if len(arguments) == len(pairs) else None


@dataclass(frozen=True)
class FencedJson(TaggedCalls):
    """A tool's name and its arguments as JSON, in a fence or not: DeepSeek."""

    open_tag: str = f"<{BAR}tool{LOW}call{LOW}begin{BAR}>"
    close_tag: str = f"<{BAR}tool{LOW}call{LOW}end{BAR}>"
    separator: str = f"<{BAR}tool{LOW}sep{BAR}>"
    around: tuple[str, str] = (f"<{BAR}tool{LOW}calls{LOW}begin{BAR}>", f"<{BAR}tool{LOW}calls{LOW}end{BAR}>")

    @property
    @override
    def final_tag(self) -> str:
        return self.around[1]

    @property
    @override
    def markers(self) -> tuple[str, ...]:
        return (*self.tags, self.separator, *self.around)

    @override
    def read_body(self, body: str) -> ToolCall | None:
        before, found, after = body.partition(self.separator)
        after = after.strip()
        opened, has_fence, fenced = after.removesuffix("```").partition("```")
        if after.endswith("```") and has_fence and len(opened.split()) == 1:
            name, arguments = opened.strip(), fenced.removeprefix("json").strip()
        else:
            name, arguments = before.strip(), after
        read = arguments_of(arguments) if found and name else None
        return None if read is None else ToolCall(name, read)

    @override
    def content(self, text: str) -> str:
        said = super().content(text)
        for marker in self.around:
            said = said.replace(marker, "")
        return said.strip()


@dataclass(frozen=True)
class MistralCalls(ToolCallParser):
    """Calls as `[TOOL_CALLS][{"name": …, "arguments": {…}}]` or `[TOOL_CALLS]name[ARGS]{…}`.

    Example:
        >>> MistralCalls()('[TOOL_CALLS]now[ARGS]{"zone": "UTC"}') == MistralCalls()(
        ...     '[TOOL_CALLS] [{"name": "now", "arguments": {"zone": "UTC"}, "id": "call00000"}]'
        ... )
        True
    """

    marker: str = "[TOOL_CALLS]"

    @property
    @override
    def markers(self) -> tuple[str, ...]:
        return self.marker, "[ARGS]", "[CALL_ID]"

    @override
    def __call__(self, text: str) -> list[ToolCall | None]:
        return [call for part in text.split(self.marker)[1:] for call in self._calls(part.strip())]

    @override
    def content(self, text: str) -> str:
        return text.partition(self.marker)[0].strip()

    def _calls(self, part: str) -> list[ToolCall | None]:
        named = re.match(r"([\w.-]+)(?:\[CALL_ID\]\w+)?\s*(?:\[ARGS\]\s*)?(?=\{)", part)
        try:
            value, end = DECODER.raw_decode(part[named.end() :] if named else part)
        except (ValueError, RecursionError):
            return [None]
        if part[(named.end() if named else 0) + end :].strip():
            return [None]  # something stands after the arguments
        if named:
            arguments = arguments_of(value)
            return [None if arguments is None else ToolCall(named[1], arguments)]
        return (
            [call_from_json(call) for call in value] if isinstance(value, list) and value else [call_from_json(value)]
        )


@dataclass(frozen=True)
class PythonicCalls(ToolCallParser):
    """Calls as a Python list, `[now(zone="UTC"), here()]`: Llama 4, LFM2 and others. Nothing is run to read them.

    Args:
        tag_pairs: What may stand around each list; without it the reply must be nothing else.

    Example:
        >>> PythonicCalls()('[now(zone="UTC"), here()]')
        [ToolCall(name='now', arguments={'zone': 'UTC'}), ToolCall(name='here', arguments={})]
        >>> PythonicCalls()("[1, 2]"), PythonicCalls()("[now(1)]")
        ([], [None])
    """

    tag_pairs: tuple[tuple[str, str], ...] = (
        ("<|tool_call_start|>", "<|tool_call_end|>"),
        ("<|python_start|>", "<|python_end|>"),
    )

    @property
    @override
    def markers(self) -> tuple[str, ...]:
        return tuple(tag for tags in self.tag_pairs for tag in tags)

    @override
    def __call__(self, text: str) -> list[ToolCall | None]:
        _, bodies = self._parts(text)
        if bodies:
            return [call for body in bodies for call in _python_calls(body.strip()) or [None]]
        return _python_calls(text.strip()) if text.strip().startswith("[") else []

    @override
    def content(self, text: str) -> str:
        outside, bodies = self._parts(text)
        return "".join(outside).strip() if bodies else ""

    def _parts(self, text: str) -> tuple[list[str], list[str]]:
        """Return the text outside of tags and between each pair of them; the last may be left open."""
        closers = dict(self.tag_pairs)
        opener = re.compile("|".join(map(re.escape, closers)) or "(?!)")
        outside, bodies, start = [], [], 0
        while found := opener.search(text, start):
            outside.append(text[start : found.start()])
            body, _, start = until(text, closers[found[0]], found.end())
            bodies.append(body)
        return [*outside, text[start:]], bodies


def _python_calls(text: str) -> list[ToolCall | None]:
    """Return the calls of a list of them; nothing for any other text."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python's warnings about the style of arbitrary text
            tree = ast.parse(text[:MAX_CHARACTERS], mode="eval").body if len(text) <= MAX_CHARACTERS else None
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        tree = None
    if tree is None:
        return [None] if re.match(r"\[\s*[A-Za-z_][\w.]*\(\s*(?:\w+\s*=|\)\s*[,\]])", text) else []
    nodes = tree.elts if isinstance(tree, ast.List) else [tree]
    if not nodes or not all(isinstance(node, ast.Call) for node in nodes):
        return []
    return [_python_call(node) for node in nodes if isinstance(node, ast.Call)]


def _python_call(node: ast.Call) -> ToolCall | None:
    name = ast.unparse(node.func) if isinstance(node.func, ast.Name | ast.Attribute) else ""
    if not re.fullmatch(r"[A-Za-z_][\w.]*", name) or node.args or any(k.arg is None for k in node.keywords):
        return None
    try:
        arguments: dict[str, object] = {str(k.arg): _literal(k.value) for k in node.keywords}
    except (ValueError, RecursionError):
        return None
    read = arguments_of(arguments)
    return ToolCall(name, read) if read is not None and len(arguments) == len(node.keywords) else None


def _literal(node: ast.expr) -> object:
    """Return the value of a literal that JSON can hold.

    Raises:
        ValueError: It is anything else.
    """
    match node:
        case ast.Constant(value=str() | bool() | int() | None as value):
            return value
        case ast.Constant(value=float() as value) if math.isfinite(value):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
            return -value
        case ast.Name(id=("true" | "false" | "null") as name):
            return _CONSTANTS[name]
        case ast.List(elts=elements):
            return [_literal(element) for element in elements]
        case ast.Dict(keys=keys, values=values):
            names = [_literal(key) if key is not None else None for key in keys]
            if all(isinstance(name, str) for name in names) and len(set(names)) == len(names):
                return {str(name): _literal(value) for name, value in zip(names, values, strict=True)}
    msg = f"{type(node).__name__} is no literal of JSON"
    raise ValueError(msg)
