"""A tokenizer without its control tokens: the bytes of each token, and the tokens of plain text."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from lightning_opd.errors import ConfigError
from lightning_opd.teachers.cross_tokenizer.same_bytes import SameBytes

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

METASPACE = "▁"
"""SentencePiece's mark for a space."""


def byte_alphabet() -> dict[str, int]:
    """Return the byte behind every character of byte-level vocabularies.

    Printable bytes of Latin-1 stand for themselves, the others for code points from 256 on.

    Reference:
        Radford et al., Language Models are Unsupervised Multitask Learners (2019), released code.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


class ByteSpelling:
    """Bytes of tokens and tokens of text, for byte-level and for SentencePiece tokenizers.

    Control tokens have no bytes, and text that merely looks like one stays text. No space is added
    before the text, so that a segment of a text is tokenised as it is inside the text.

    Args:
        tokenizer: A fast Hugging Face tokenizer.
        control_ids: Tokens that are never text.

    Raises:
        ValueError: The tokenizer does not say which bytes its tokens stand for.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, control_ids: Iterable[int]) -> None:
        """Read which bytes the tokenizer's tokens stand for."""
        self.name = str(tokenizer.name_or_path)
        self.control_ids = frozenset(control_ids)
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            msg = (
                f"The tokenizer `{self.name}` has no tokenizer.json, so the bytes of its tokens are unknown. "
                "Convert it to a fast tokenizer with `AutoTokenizer.from_pretrained(...).save_pretrained(...)`."
            )
            raise ConfigError(msg)
        self._text = backend.to_str()
        self._settings = _settings(self._text)
        self._vocabulary: dict[int, str] = {id_: token for token, id_ in tokenizer.get_vocab().items()}
        self._added = {entry["id"]: entry["content"] for entry in self._settings["added_tokens"]}
        kinds = _types(self._settings["decoder"])
        self._is_byte_level = "ByteLevel" in kinds
        if not kinds & {"ByteLevel", "ByteFallback", "Metaspace"}:
            msg = (
                f"Expected a byte-level or SentencePiece tokenizer at `{self.name}`, got one that decodes by "
                f"{sorted(kinds) or 'nothing'}. Only those two say which bytes a token stands for."
            )
            raise ConfigError(msg)
        self._alphabet = byte_alphabet()
        self._known: dict[int, bytes] = {}

    @property
    def merges_pairs(self) -> bool:
        """Whether it is a byte-pair encoding."""
        return bool(self._settings["model"]["type"] == "BPE")

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes of a token: none for a control token, and for an id without a token."""
        if token_id not in self._known:
            self._known[token_id] = self._spell(token_id)
        return self._known[token_id]

    def _spell(self, token_id: int) -> bytes:
        token = self._vocabulary.get(token_id, "")
        if token_id in self.control_ids:
            return b""
        if not self._is_byte_level:
            is_byte = len(token) == len("<0x00>") and token.startswith("<0x") and token.endswith(">")
            return bytes.fromhex(token[3:5]) if is_byte else token.replace(METASPACE, " ").encode()
        if token_id in self._added or any(c not in self._alphabet for c in token):
            return token.encode()
        return bytes(self._alphabet[c] for c in token)

    def encode(self, text: bytes) -> list[int]:
        """Return the tokens of plain text, whatever it looks like.

        Bytes that are no characters become tokens of single bytes, where there are such tokens, so that a
        model that generates them is scored for it.
        """
        token_ids: list[int] = []
        rest = text
        while rest:
            try:
                return token_ids + self._encode(rest.decode())
            except UnicodeDecodeError as error:
                token_ids += self._encode(rest[: error.start].decode())
                token_ids += [self._byte_ids[byte] for byte in rest[error.start : error.end] if byte in self._byte_ids]
                rest = rest[error.end :]
        return token_ids

    def normal(self, text: bytes) -> tuple[bytes, SameBytes | None]:
        """Return a text as its own tokens spell it, and which bytes are the same; None where all are."""
        spelled = b"".join(map(self.token_bytes, self.encode(text)))
        return spelled, None if spelled == text else SameBytes(self._clusters(text), spelled, text)

    def spans_in(self, token_bytes: Sequence[bytes], text: bytes) -> list[tuple[int, int]]:
        """Return the bytes of `text` that each of its own tokens covers.

        A tokenizer that normalises (NFC) or has no other space than `▁` spells some characters otherwise. Tokens that
        take part in one cover nothing: they get an empty span; the others are found again after it.

        Args:
            token_bytes: Bytes of each token of the text.
            text: What this tokenizer was given.
        """
        whole = b"".join(token_bytes)
        if whole == text:
            return spans_of(token_bytes, text)
        spans, start = [], 0
        same = SameBytes(self._clusters(text), whole, text)
        for token in token_bytes:
            spans.append(same.original(start, start + len(token)))
            start += len(token)
        return spans

    def _clusters(self, text: bytes) -> list[tuple[bytes, bytes]]:
        """Return the shortest parts of a text that the tokenizer normalises apart from their neighbours, with results.

        Bytes that are no characters are parts of their own.
        """
        parts: list[tuple[str, str]] = []
        for character in text.decode("utf-8", "surrogateescape"):
            normal = self._normal(character)
            if parts and not (character.isascii() and parts[-1][0].isascii()):
                last, of_last = parts[-1]
                if (joined := self._normal(last + character)) != of_last + normal:
                    parts[-1] = last + character, joined
                    continue
            parts.append((character, normal))
        return [(a.encode("utf-8", "surrogateescape"), b.encode("utf-8", "surrogateescape")) for a, b in parts]

    def _normal(self, text: str) -> str:
        """Return a text as the tokenizer spells it."""
        if any("\ud800" <= character <= "\udfff" for character in text):  # a byte that is no character
            return text
        normalizer = self._encoder.normalizer
        normal = text if normalizer is None else str(normalizer.normalize_str(text))
        return normal if self._is_byte_level else normal.replace(METASPACE, " ")

    def splits(self, before: str, after: str) -> bool:
        """Whether no token reaches from one character to another one that follows it.

        The tokenizer's own rules split there, or no token has the last byte of the one and the first of the other.
        """
        if any("\ud800" <= character <= "\udfff" for character in before + after):  # bytes that are no characters
            return False
        if (before.encode()[-1], after.encode()[0]) not in self._byte_pairs:
            return True
        normalizer, rules = self._encoder.normalizer, self._encoder.pre_tokenizer
        one, both = (
            text if normalizer is None else normalizer.normalize_str(text) for text in (before, before + after)
        )
        if rules is None or not both.startswith(one):
            return False
        return any(start == len(one) for _, (start, _) in rules.pre_tokenize_str(both))

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self._encoder.encode(text, add_special_tokens=False).ids if text else []
        return [self._original_ids.get(token_id, token_id) for token_id in ids]

    @cached_property
    def _byte_ids(self) -> dict[int, int]:
        known = {token_id: self.token_bytes(token_id) for token_id in self._vocabulary}
        return {of_token[0]: token_id for token_id, of_token in known.items() if len(of_token) == 1}

    @cached_property
    def _byte_pairs(self) -> set[tuple[int, int]]:
        """Bytes that follow each other inside some token."""
        return {pair for token_id in self._vocabulary for pair in pairwise(self.token_bytes(token_id))}

    @cached_property
    def _encoder(self) -> Tokenizer:
        """The tokenizer without control tokens and without a space of its own at the beginning."""
        return _encoder(self._text, self.control_ids)

    @cached_property
    def _original_ids(self) -> dict[int, int]:
        """Id in the encoder → id in the tokenizer: added tokens get new numbers where some are left out."""
        kept = [e for e in self._settings["added_tokens"] if e["id"] not in self.control_ids]
        ids = ((self._encoder.token_to_id(e["content"]), e["id"]) for e in kept)
        return {new: old for new, old in ids if new is not None and new != old}


@lru_cache(maxsize=8)
def _settings(text: str) -> dict[str, Any]:
    """Return what a tokenizer.json says; several teachers meet one student."""
    settings: dict[str, Any] = json.loads(text)
    return settings


@lru_cache(maxsize=8)
def _encoder(text: str, control_ids: frozenset[int]) -> Tokenizer:
    """Return the tokenizer of a tokenizer.json without control tokens, and without a space at the beginning."""
    from tokenizers import Tokenizer

    of_text = _settings(text)
    settings = {
        **of_text,
        "added_tokens": [e for e in of_text["added_tokens"] if e["id"] not in control_ids],
        "normalizer": _without_prefix(of_text["normalizer"]),
        "pre_tokenizer": _without_prefix(of_text["pre_tokenizer"]),
        "post_processor": None,
        "truncation": None,
        "padding": None,
    }
    return Tokenizer.from_str(json.dumps(settings))


def spans_of(token_bytes: Sequence[bytes], text: bytes) -> list[tuple[int, int]]:
    """Return the bytes of `text` that each token covers, as far as the tokens spell it.

    From the first token on that spells something else (a tokenizer that normalises, half a character), tokens cover
    nothing: they get an empty span where the last good token ends.

    Args:
        token_bytes: Bytes of each token.
        text: What they should spell.

    Example:
        >>> spans_of([b"ab", b"c"], b"abc"), spans_of([b"ab", b"C"], b"abc")
        ([(0, 2), (2, 3)], [(0, 2), (2, 2)])
    """
    spans, start = [], 0
    pending = iter(token_bytes)
    for token in pending:
        if not text.startswith(token, start):
            spans.append((start, start))
            break
        spans.append((start, start + len(token)))
        start += len(token)
    return spans + [(start, start) for _ in pending]


def _types(node: object) -> set[str]:
    """Return the names of all components inside a part of tokenizer.json."""
    if isinstance(node, list):
        return {name for part in node for name in _types(part)}
    if not isinstance(node, dict):
        return set()
    return {str(node.get("type"))} | {name for part in node.values() for name in _types(part)}


def _without_prefix(node: object) -> object:
    """Return a part of tokenizer.json that puts no space before the text."""
    if isinstance(node, list):
        return [changed for part in node if (changed := _without_prefix(part)) is not None]
    if not isinstance(node, dict):
        return node
    if node.get("type") == "Prepend":
        return None
    changed = {key: _without_prefix(part) for key, part in node.items()}
    if node.get("type") == "Metaspace":
        changed["prepend_scheme"] = "never"
    if node.get("type") == "ByteLevel":
        changed["add_prefix_space"] = False
    return changed
