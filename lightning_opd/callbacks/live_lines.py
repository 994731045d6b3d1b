"""Two lines at the bottom of a terminal that are drawn again and again, while other text scrolls above them."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from typing import TypeAlias

from rich import get_console
from rich.console import Console, ConsoleOptions
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

MIN_WIDTH_OF_BAR = 10

State: TypeAlias = tuple[str, str, float | None, list[str]]
"""Counts, phase, the fraction that is done or None, and figures."""


class LiveLines:
    """A bar with its counts and phase, and a line of figures below it.

    Whatever is printed or logged meanwhile appears above: handlers of the `logging` module that hold the process's
    own streams are led there, too.

    Args:
        state: Returns counts, phase, the fraction that is done or None, and the figures.
        refresh_per_second: How often to draw.
        stays: Whether the last state is left on the screen.
    """

    def __init__(self, state: Callable[[], State], refresh_per_second: float, *, stays: bool) -> None:
        """Begin to draw."""
        self._state = state
        streams = (sys.stdout, sys.stderr)
        self._live = Live(self, console=get_console(), refresh_per_second=refresh_per_second, transient=not stays)
        self._live.start()
        self._moved = [
            (handler, handler.stream)
            for handler in _stream_handlers()
            if handler.stream in {*streams, sys.__stdout__, sys.__stderr__}
        ]
        for handler, stream in self._moved:
            handler.setStream(sys.stdout if stream in (streams[0], sys.__stdout__) else sys.stderr)

    def close(self) -> None:
        """Draw once more, and leave the screen to others."""
        for handler, stream in self._moved:
            handler.setStream(stream)
        self._live.stop()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Table | Text]:
        """Draw both lines in the width of the terminal; figures that do not fit are left out from the end."""
        counts, phase, fraction, figures = self._state()
        width = options.max_width
        line = Table.grid(expand=True, padding=(0, 1))
        line.add_column(no_wrap=True, overflow="ellipsis")
        cells: list[Text | ProgressBar] = [Text(counts)]
        if width - len(counts) - len(phase) - 4 >= MIN_WIDTH_OF_BAR:
            line.add_column(ratio=1)
            cells.append(ProgressBar(total=1.0, completed=fraction or 0.0))
        line.add_column(no_wrap=True, overflow="ellipsis", justify="right")
        line.add_row(*cells, Text(phase, style="cyan"))
        yield line
        while len(figures) > 1 and len(" · ".join(figures)) > width:
            figures = figures[:-1]
        yield Text(" · ".join(figures), style="dim", no_wrap=True, overflow="ellipsis")


def _stream_handlers() -> Iterator[logging.StreamHandler]:  # type: ignore[type-arg]  # of any stream
    """Yield every handler of every logger that writes into a stream, but for those of files."""
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    seen: set[int] = set()
    for logger in loggers:
        for handler in logger.handlers if isinstance(logger, logging.Logger) else ():
            is_movable = "stream" in vars(handler) and not isinstance(handler, logging.FileHandler)
            if isinstance(handler, logging.StreamHandler) and is_movable and id(handler) not in seen:
                seen.add(id(handler))
                yield handler
