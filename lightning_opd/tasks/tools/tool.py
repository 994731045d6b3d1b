"""A typed Python function that a student may call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property

from lightning_opd.errors import ConfigError
from lightning_opd.tasks.tools.limits import TimeUp, call_in_child, call_in_process
from lightning_opd.tokenization.tool_schema import Schema, argument_error, function_schema

MAX_ERROR_CHARACTERS = 200


class Tool:
    """A function whose annotations and docstring are its schema, called with checked arguments.

    Whatever happens becomes text: a wrong argument, an exception, a time-out, an answer that is too long.

    Args:
        function: Has a type for every argument and a Google docstring; its name is the tool's.
        timeout: Seconds after which a call is stopped.
        isolated: Whether a call runs in a forked child that can be killed, whatever it does. False, for
            functions that are bounded by themselves, or keep state, runs it here under an alarm.
        max_characters: Longest answer; the rest is cut.
        max_memory: Bytes that an isolated call may take besides what this process has (Linux); null for no limit.

    Example:
        >>> def double(x: int) -> int:
        ...     '''Double a number.
        ...
        ...     Args:
        ...         x: The number.
        ...     '''
        ...     return 2 * x
        >>> tool = Tool(double, isolated=False)
        >>> tool.call({"x": 21}), tool.call({"x": "21"})
        ('42', 'error: `x` must be of type integer')
    """

    def __init__(
        self,
        function: Callable[..., object],
        timeout: float = 1.0,
        isolated: bool = True,  # a key in YAML
        max_characters: int = 2000,
        max_memory: int | None = 1 << 30,
    ) -> None:
        """Check the limits; the schema is made when it is first needed."""
        if timeout <= 0:
            msg = f"`timeout` must be a positive number of seconds, got {timeout}."
            raise ConfigError(msg)
        if max_characters < 1:
            msg = f"`max_characters` must be at least 1, got {max_characters}."
            raise ConfigError(msg)
        if max_memory is not None and max_memory < 1:
            msg = f"`max_memory` must be at least 1 byte, or null for no limit, got {max_memory}."
            raise ConfigError(msg)
        self.function, self.timeout, self.isolated, self.max_characters = function, timeout, isolated, max_characters
        self.max_memory = max_memory

    @property
    def name(self) -> str:
        """Name under which it is called."""
        return self.function.__name__

    @cached_property
    def schema(self) -> Schema:
        """Its JSON schema, as chat templates show it."""
        return function_schema(self.function)

    def call(self, arguments: Mapping[str, object]) -> str:
        """Return the function's answer as text, or what went wrong as `error: …`."""
        wrong = argument_error(self.schema, arguments)
        if wrong:
            return f"error: {wrong}"

        def run() -> str:
            return str(self.function(**arguments))

        try:
            if self.isolated:
                answer = call_in_child(run, self.timeout, self.max_memory)
            else:
                answer = call_in_process(run, self.timeout)
        except TimeUp:
            return f"error: no answer within {self.timeout:g} s"
        except Exception as error:  # whatever a tool raises is an answer
            return f"error: {str(error) or type(error).__name__}"[:MAX_ERROR_CHARACTERS]
        return answer[: self.max_characters]
