from __future__ import annotations

from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_opd.tokenization.tool_schema import argument_error, function_schema


def search(
    query: str,
    limit: int = 3,
    weight: float = 1.0,
    fresh: bool = False,
    order: Literal["new", "old"] = "new",
    words: list[str] | None = None,
    place: int | str = 0,
    more: dict[str, Any] | None = None,
) -> str:
    """Search.

    Args:
        query: What for.
        limit: How many.
        weight: How much.
        fresh: Whether new.
        order: In which order.
        words: Which ones.
        place: Where.
        more: Anything.
    """
    return query


SCHEMA = function_schema(search)


def test_a_typed_function_is_its_own_schema() -> None:
    function = SCHEMA["function"]
    assert isinstance(function, dict)
    assert function["name"] == "search"
    assert function["description"] == "Search."
    parameters = function["parameters"]
    assert parameters["required"] == ["query"]
    assert parameters["properties"]["limit"] == {"type": "integer", "description": "How many."}
    assert parameters["properties"]["order"]["enum"] == ["new", "old"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"query": "a"}, None),
        ({"query": "a", "limit": 1, "weight": 2, "fresh": True, "order": "old", "words": ["x"], "place": "y"}, None),
        ({"query": "a", "words": None, "more": {"any": [1, {"thing": None}]}}, None),
        ({}, "`query` is missing"),
        ({"query": 1}, "`query` must be of type string"),
        ({"query": None}, "`query` must be of type string"),
        ({"query": "a", "limit": "3"}, "`limit` must be of type integer"),
        ({"query": "a", "limit": 3.0}, "`limit` must be of type integer"),
        ({"query": "a", "limit": True}, "`limit` must be of type integer"),
        ({"query": "a", "weight": True}, "`weight` must be of type number"),
        ({"query": "a", "fresh": 1}, "`fresh` must be of type boolean"),
        ({"query": "a", "order": "random"}, "`order` must be one of new, old"),
        ({"query": "a", "words": "x"}, "`words` must be of type array"),
        ({"query": "a", "words": ["x", 1]}, "`words[1]` must be of type string"),
        ({"query": "a", "place": 1.5}, "`place` must be of type integer or string"),
        ({"query": "a", "more": []}, "`more` must be of type object"),
        ({"query": "a", "self": 1}, "there is no argument `self`"),
    ],
)
def test_arguments_are_checked_and_never_converted(arguments: dict[str, object], expected: str | None) -> None:
    assert argument_error(SCHEMA, arguments) == expected


def test_inner_objects_and_alternatives_are_checked() -> None:
    inner = {"type": "object", "properties": {"y": {"type": "integer"}}, "required": ["y"]}
    schema = {"function": {"parameters": {"properties": {"x": {"anyOf": [inner, {"type": "null"}]}}}}}
    assert argument_error(schema, {"x": {"y": 1}}) is None
    assert argument_error(schema, {"x": None}) is None
    assert argument_error(schema, {"x": {"y": "1"}}) == "`x.y` must be of type integer"
    assert argument_error(schema, {"x": {}}) == "`x.y` is missing"


@given(st.dictionaries(st.text(), st.recursive(st.none() | st.integers() | st.text(), st.lists)))
def test_no_arguments_break_the_check(arguments: dict[str, object]) -> None:
    assert argument_error(SCHEMA, arguments)


def test_a_function_without_types_or_descriptions_is_refused() -> None:
    def untyped(x):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        """Do it.

        Args:
            x: What.
        """

    def undescribed(x: int) -> None:
        """Do it."""

    for function in (untyped, undescribed):
        with pytest.raises(ValueError, match=r"cannot become a tool.*Args"):
            function_schema(function)
