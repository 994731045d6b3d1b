"""A tool's arguments: a typed Python function as JSON schema, and checks against it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import cast

from lightning_opd.errors import ConfigError
from lightning_opd.tokenization.tool_calls import DECODER, ToolCall

Schema = Mapping[str, object]

_TYPES: Mapping[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
    "null": (type(None),),
}
_PYTHON = {"True": True, "False": False, "None": None}
"""What templates write that show values as Python does."""


def function_schema(function: Callable[..., object]) -> Schema:
    """Return a function's schema as chat templates show it, from its annotations and Google docstring.

    Raises:
        ValueError: An argument lacks its type or its line in the docstring.
    """
    from transformers.utils.chat_template_utils import (
        DocstringParsingException,
        TypeHintParsingException,
        get_json_schema,
    )

    try:
        return cast("Schema", get_json_schema(function))
    except (DocstringParsingException, TypeHintParsingException) as error:
        name = getattr(function, "__name__", repr(function))
        msg = (
            f"`{name}` cannot become a tool: {error} A tool needs a type for every argument, and a Google docstring "
            "with a line for each under `Args:`."
        )
        raise ConfigError(msg) from error


def argument_error(schema: Schema, arguments: Mapping[str, object]) -> str | None:
    """Return what is wrong with a call's arguments, or None. Nothing is converted: "3" is not an integer.

    Args:
        schema: Of the tool, as `function_schema` gives it.
        arguments: Of the call.

    Example:
        >>> takes_x = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}
        >>> argument_error({"function": {"parameters": takes_x}}, {"x": "3"})
        '`x` must be of type integer'
    """
    function = cast("Mapping[str, Schema]", schema["function"])
    return _object_error(function["parameters"], arguments, "")


def typed_arguments(schema: Schema, call: ToolCall) -> dict[str, object]:
    """Return a call's arguments, those given as plain text in the types that the tool takes.

    A text stays a text where the tool takes one, and where it is not of the type that the tool takes.

    Args:
        schema: Of the tool, as `function_schema` gives it.
        call: Of the tool.

    Example:
        >>> takes_x = {"type": "object", "properties": {"x": {"type": "integer"}}}
        >>> typed_arguments({"function": {"parameters": takes_x}}, ToolCall("f", {"x": "3"}, plain=("x",)))
        {'x': 3}
    """
    function = cast("Mapping[str, Schema]", schema["function"])
    properties = cast("Mapping[str, Schema]", function["parameters"].get("properties", {}))
    return {
        name: _typed(properties[name], value) if name in call.plain and name in properties else value
        for name, value in call.arguments.items()
    }


def _typed(schema: Schema, value: object) -> object:
    if not isinstance(value, str) or _error(schema, value, "") is None:
        return value
    try:
        read = _PYTHON[value.strip()] if value.strip() in _PYTHON else DECODER.decode(value)
    except (ValueError, RecursionError):
        return value
    return read if _error(schema, read, "") is None else value


def _object_error(schema: Schema, value: Mapping[str, object], where: str) -> str | None:
    properties = cast("Mapping[str, Schema]", schema.get("properties", {}))
    for name in cast("list[str]", schema.get("required", [])):
        if name not in value:
            return f"`{where}{name}` is missing"
    for name, inner in value.items():
        if name not in properties:
            return f"there is no argument `{where}{name[:40]}`"
        error = _error(properties[name], inner, f"{where}{name}")
        if error:
            return error
    return None


def _error(schema: Schema, value: object, where: str) -> str | None:
    if value is None and schema.get("nullable"):
        return None
    if "anyOf" in schema:
        errors = [_error(option, value, where) for option in cast("list[Schema]", schema["anyOf"])]
        return None if None in errors else errors[0]
    names, choices = schema.get("type", []), cast("list[object]", schema.get("enum", []))
    names = [names] if isinstance(names, str) else cast("list[str]", names)
    if names and not any(_is_of_type(value, name) for name in names):
        return f"`{where}` must be of type {' or '.join(names)}"
    if choices and value not in choices:
        return f"`{where}` must be one of {', '.join(map(str, choices))}"
    return _inner_error(schema, value, where)


def _inner_error(schema: Schema, value: object, where: str) -> str | None:
    if isinstance(value, list) and "items" in schema:
        errors = (_error(cast("Schema", schema["items"]), item, f"{where}[{i}]") for i, item in enumerate(value))
        return next((error for error in errors if error), None)
    if isinstance(value, dict) and "properties" in schema:
        return _object_error(schema, value, f"{where}.")
    return None


def _is_of_type(value: object, name: str) -> bool:
    if isinstance(value, bool):  # a number in Python, not in JSON
        return name == "boolean"
    return isinstance(value, _TYPES.get(name, (object,)))
