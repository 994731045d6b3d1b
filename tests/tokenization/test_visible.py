from __future__ import annotations

import re
import time
import unicodedata

import pytest

from lightning_opd.tokenization.visible import shortened, visible

ACTING = {
    "clear": "\x1b[2J",
    "title": "\x1b]0;owned\x07",
    "link": "\x1b]8;;http://x\x1b\\x\x1b]8;;\x1b\\",
    "C1": "\x9b31m\x90\x9d0;t\x9c",
    "return": "right\rwrong",
    "backspace": "no\b\byes",
    "override": "\u202egnp.exe\u202c",
    "isolate": "\u2066a\u2069",
    "marks": "\u200e\u200f\u061c",
    "lines": "a\x0bb\x0cc\u2028d\u2029e\x85f",
    "delete": "\x7f\x00",
    "tags": "\U000e0041\U000e007f",
    "half": "\ud83d",
}


@pytest.mark.parametrize("text", ACTING.values(), ids=list(ACTING))
def test_nothing_in_a_visible_text_acts_on_a_terminal(text: str) -> None:
    shown = visible(f"before {text} after")
    assert shown.startswith("before ")
    assert shown.endswith(" after")
    assert "\\" in shown
    assert shown.isprintable()
    assert visible(shown) == shown
    shown.encode()


def test_every_control_character_is_written_out_and_every_letter_stays() -> None:
    everything = [chr(code) for code in range(0x110000)]
    acting = {c for c in everything if unicodedata.category(c) in {"Cc", "Cs", "Zl", "Zp"}}
    acting |= {c for c in everything if unicodedata.bidirectional(c) in {"LRE", "RLE", "LRO", "RLO", "PDF"}}
    acting |= {c for c in everything if unicodedata.bidirectional(c) in {"LRI", "RLI", "FSI", "PDI"}}
    assert all(visible(c) == c.encode("unicode_escape").decode() for c in acting - {"\n", "\t"})
    assert all(visible(c) == c for c in everything if unicodedata.category(c)[0] in "LMNPS")
    joined = "\N{WOMAN}\N{ZERO WIDTH JOINER}\N{ROCKET}, n\N{COMBINING TILDE}, می\N{ZERO WIDTH NON-JOINER}خواهم"
    kept = f"two\nlines\tand a tab, 你好, {joined}"
    assert visible(kept) == kept


@pytest.mark.parametrize("unit", ["\n", "x", "ab\n", "\x1b", " "])
@pytest.mark.parametrize(("max_characters", "max_lines"), [(1, 1), (8, 3), (100, 4), (1000, 40)])
def test_a_long_text_keeps_its_beginning_and_end_and_says_what_is_left_out(
    unit: str, max_characters: int, max_lines: int
) -> None:
    for length in (0, 1, 7, 8, 9, 10, 101, 1000, 1001, 5000):
        text = ("<" + unit * length)[:length] + ">"
        short = shortened(text, max_characters, max_lines)
        if short == text:
            assert len(text) <= max_characters
            assert text.count("\n") < max_lines
            continue
        found = re.fullmatch(r"(.*)\n\[([\d,]+) characters left out\]\n(.*)", short, re.DOTALL)
        assert found is not None
        head, tail = found[1], found[3]
        assert text.startswith(head)
        assert text.endswith(tail)
        assert len(head) + len(tail) + int(found[2].replace(",", "")) == len(text)
        assert len(head) + len(tail) <= max(2, max_characters)
        assert short.count("\n") <= max_lines + 2


@pytest.mark.parametrize("unit", ["\n", "\x1b", "x", "\u202e"])
def test_a_text_of_a_million_characters_is_shown_in_no_time(unit: str) -> None:
    started = time.perf_counter()
    assert len(visible(shortened(unit * 1_000_000, 1000, 40))) < 10_000
    assert time.perf_counter() - started < 1
