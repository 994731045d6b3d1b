# ruff: noqa: RUF001  # digits and punctuation of other scripts
"""Real tokenizers in pairs: which fraction of the student's tokens gets a score under which credit."""

from __future__ import annotations

import torch

from lightning_opd.functional.credit import AlignedCredit, ExactMatchCredit, SpanCredit
from lightning_opd.teachers.cross_tokenizer.translation import Translator
from tests.real import fetch

FAMILIES = ("qwen2_5", "qwen3", "llama3_1", "mistral_nemo", "gemma2", "gemma3", "deepseek_v3")
NASTY = ("\u2126", "\u212b", "\u09df", "\u095b", "e\u0301", "\u1112\u1161\u11ab", "▁")
"""Characters that NFC composes or decomposes, and SentencePiece's mark for a space."""

TEXTS = (
    "Natalia sold 48 clips in April, and half as many in May: 48 + 24 = 72 altogether.",
    "To solve 3x² − 7x + 2 = 0, note that (3x − 1)(x − 2) = 0; so x ∈ {1/3, 2}. \\boxed{x = 2}",
    "1234567890 ÷ 37 = 33366699.729…, π ≈ 3.14159265, and 2^64 = 18446744073709551616.",
    "def fibonacci(n: int) -> int:\n    a, b = 0, 1\n    for _ in range(n):\n        a, b = b, a + b\n    return a\n",
    '{"name": "search", "arguments": {"query": "weather in Zürich", "limit": 10}}',
    "Der Fluss fließt schneller, wenn es geregnet hat; das überrascht niemanden.",
    "Le théorème s'énonce ainsi : toute suite croissante et majorée converge.",
    "河流在雨后流得更快，这并不奇怪。请计算二十七加四十八。",
    "雨が降ると川の流れは速くなります。答えは七十五です。",
    "비가 오면 강물이 더 빨리 흐른다. 정답은 75이다.",
    "إذا هطل المطر جرى النهر أسرع، والجواب هو ٧٥.",
    "बारिश के बाद नदी तेज़ बहती है। उत्तर ७५ है।",
    "После дождя река течёт быстрее; ответ: семьдесят пять.",
    "👩‍👩‍👧 says 🎉🎉 — “quotes”,\ttabs   and\r\n\r\nline breaks\n\n\n.",
    *(f"R = 5 {nasty}, and then U = 20 V." for nasty in NASTY),
)


def kept(both: Translator, credit: AlignedCredit) -> float:
    """Return the fraction of the student's tokens of all texts that get a score."""
    num_kept = num_tokens = 0
    for text in TEXTS:
        token_ids = both.student_spelling.encode(text.encode())
        translation = both.reply(token_ids)
        _, is_aligned = credit(
            torch.zeros(len(token_ids)), torch.zeros(sum(translation.response_mask)), translation.alignment
        )
        num_kept, num_tokens = num_kept + int(is_aligned.sum()), num_tokens + len(token_ids)
    return num_kept / num_tokens


def markdown() -> str:
    """Return the table: a row per student, a column per teacher, `SpanCredit` / `ExactMatchCredit`."""
    lines = [
        f"Fraction of the student's tokens that get a score, on {len(TEXTS)} texts in nine languages: "
        "`SpanCredit` / `ExactMatchCredit`.",
        "",
        "| student ↓ teacher → | " + " | ".join(FAMILIES) + " |",
        "|---" * (len(FAMILIES) + 1) + "|",
    ]
    tokenizers = {name: fetch.tokenizer(name) for name in FAMILIES}
    for student in FAMILIES:
        cells: list[str] = []
        for teacher in FAMILIES:
            both = Translator(tokenizers[student], tokenizers[teacher])
            cells.append(f"{kept(both, SpanCredit()):.3f} / {kept(both, ExactMatchCredit()):.3f}")
        lines.append(f"| {student} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
