"""One field term for one thing: the words that code, settings, messages and pages no longer use."""

from __future__ import annotations

import functools
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OLD_WORDS = {
    "rollout batch": r"(?<!sliding )\bwindows?\b(?! line)|(?<!sliding)_windows?\b|PromptWindows",
    "training step, package, folder, layer": r"\broads?\b|\bhouses?\b|\brooms?\b|\bin_room\b|\bRoad\b",
    "score (teacher), reward (task)": r"\bverdicts?\b|\bgrad(?:e|es|ed|er|ing)\b|\bjudg(?:e|es|ed|ing)\b",
    "fraction": r"[Ss]hares? of\b|\w_share\b|_SHARE\b",
    "generates": r"\b(?:student|teacher|model)s? (?:writes?|wrote)\b",
    "signals": r"\bwanted:",
    "off-policy": r"GivenResponses|given_responses|given_share|given responses|is_given\b",
    "GenerationContext, RolloutFn, ReplayEngine": r"\bScene\b|\bPlay\b|_Script\b",
    "set_student_tokenizer": r"\bintroduc(?:e|es|ed|ing|tion)\b",
    "cross-tokenizer": r"[Rr]e-?tokeni[sz]",
    "the credits": r"\b(?:Strict|WholeText|Splice|Prefix|Span)\(|credit\.(?:Strict|WholeText|Splice|Prefix|Span)\b",
    "TokenBytes, ByteSpelling, TextSegment": r"\bPieces\b|\bSpelling\b|\bStretch\b|\b_Following\b|UNSPELT|is_native",
    "attention_mask, tree_hidden_states, shift_right": r"\bsees\[|\btree_states\b|\bpredicting\(",
    "LogRatioTransform": r"\b[Ss]haping\w*|\bshaped\b(?!\[|$)",
    "PPOClip, TruncatedImportance, MaskedImportance": r"ClippedRatio|ImportanceSampled|KeepInside",
    "RLOO, DrGRPO": r"outcomes\.LeaveOneOut|GroupMean",
    "aligned_mask": r"comparable_mask",
    "command, ConfigSources, archive": r"\bverbs?\b|\bWritten\b|set_aside",
    "Recorder, ScriptedChat, RandomEngine, ADVERSARIAL_OUTPUTS": r"Witness|\bTalks\b|AnythingEngine|HOSTILE",
}
EXCEPTIONS = {"tests/test_words.py", "tests/benchmarks/bit_identity.py", "tests/flash_attn_interface.py", "LICENSE"}


@functools.cache
def texts() -> dict[Path, tuple[str, str]]:
    """Return the content of every text file that is kept under version control, or would be, and its `words_of`."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    kept = [ROOT / name for name in listed if name not in EXCEPTIONS and not name.endswith((".png", "results.json"))]
    contents = {path: path.read_text(encoding="utf-8") for path in kept if path.is_file()}
    return {path: (text, words_of(text)) for path, text in contents.items()}


def words_of(text: str) -> str:
    """Return a text with its identifiers taken apart: `RewardTask` and `reward_task` become `reward task`."""
    return re.sub(r"_|(?<=[a-z0-9])(?=[A-Z])", " ", text).lower()


@pytest.mark.parametrize("term", OLD_WORDS)
def test_nothing_uses_an_old_word(term: str) -> None:
    pattern, found = re.compile(OLD_WORDS[term]), []
    for path, (text, words) in texts().items():
        if not pattern.search(text) and not pattern.search(words):
            continue
        for number, line in enumerate(text.splitlines(), start=1):
            if pattern.search(line) or pattern.search(words_of(line)):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}")
    assert not found, f"the field's term is: {term}\n" + "\n".join(found)
