"""The table of architectures: tiny random models of transformers' own classes, each through the whole path."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from lightning_opd.errors import ConfigError
from lightning_opd.functional.logprobs import linear_token_statistics, log_softmax
from lightning_opd.models import (
    LanguageModel,
    Lora,
    StudentConfig,
    build_student,
    causal_lm,
    export_student,
    load_causal_lm,
    load_tokenizer,
)
from lightning_opd.rollouts import InProcessEngine
from lightning_opd.rollouts.noise import row_seed
from lightning_opd.types import SampledTokens, Sampling
from tests.architectures import ARCHITECTURES, VOCAB, tiny_architecture
from tests.tiny import save_tokenizer

COLUMNS = ("head", "prompts", "rollout", "LoRA", "bf16", "export")
PROMPTS = ((5, 9, 30), (7,), (40, 41, 42, 43, 44, 45), (9, 9))
NUM_SAMPLES = 3
REAL_TOKENS = 90
"""Tokens of the vocabulary that may be drawn: the output matrix has more rows, as real ones do."""

SAMPLING = Sampling(max_new_tokens=8, stop_token_ids=tuple(range(2, VOCAB, 9)), vocab_size=REAL_TOKENS)
CLASSES = {"1e-4": 1e-4, "1e-3": 1e-3, "1e-2": 1e-2, "1e-1": 1e-1}
"""Bounds (nats) into which differences are sorted, so that the table is the same on every processor."""


def markdown() -> str:
    """Return the table: one row per architecture, and the refusals below it."""
    rows, reasons = [], dict[str, int]()
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = save_tokenizer(Path(folder, "tokenizer"))
        for name in ARCHITECTURES:
            cells = row(name, Path(folder, name), tokenizer)
            shown = [_numbered(cell, reasons) if cell.startswith("refused: ") else cell for cell in cells]
            rows.append(f"| {name} | {' | '.join(shown)} |")
    header = f"| architecture | {' | '.join(COLUMNS)} |\n|{'---|' * (len(COLUMNS) + 1)}"
    notes = [f"{number}. {reason}" for reason, number in reasons.items()]
    return "\n".join([header, *rows, "", *notes])


def _numbered(cell: str, reasons: dict[str, int]) -> str:
    return f"refused ({reasons.setdefault(cell.removeprefix('refused: '), len(reasons) + 1)})"


def row(name: str, folder: Path, tokenizer: Path) -> list[str]:
    """Return one architecture's cells in the order of `COLUMNS`."""
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)  # of the adapters
        model = tiny_architecture(name)
        model.save_pretrained(folder)
        attention = str(model.config._attn_implementation)
        load_tokenizer(str(tokenizer)).save_pretrained(folder)
        return [
            _worded(lambda: head(model)),
            *_rollout(model),
            _worded(lambda: lora(folder, attention)),
            _worded(lambda: bfloat16(folder, attention)),
            _worded(lambda: export(folder, attention)),
        ]


def _worded(column: Callable[[], str]) -> str:
    """Return a column's cell; only refusals of our own are results, any other error is a fault."""
    try:
        return column()
    except ConfigError as error:
        return f"refused: {error}"


def head(model: nn.Module) -> str:
    """Return how the output layer is kept: its factor and soft cap, or whole logits."""
    found = LanguageModel(causal_lm(model), REAL_TOKENS).head()
    if found.weight is None:
        return "whole logits"
    factor = "" if found.scale == 1 else f"× {found.scale:.3g}"
    cap = "" if found.soft_cap is None else f"cap {found.soft_cap:g}"
    return " ".join(filter(None, (factor, cap))) or "linear"


def _rollout(model: nn.Module) -> tuple[str, str]:
    engine = InProcessEngine()
    try:
        batch = generate(model, engine)
    except ConfigError as refusal:
        return "-", f"refused: {refusal}"
    together = "padded" if engine._pads else "of one length"
    with torch.no_grad():
        error = (logprobs(model, batch) - batch.rollout_logprobs)[batch.response_mask].abs().max()
    return together, bound(error)


def generate(model: nn.Module, engine: InProcessEngine) -> SampledTokens:
    """Return several responses to prompts of different lengths, as one batch."""
    engine.sync(model, 0)
    seeds = [row_seed(0, i, j) for i in range(len(PROMPTS)) for j in range(NUM_SAMPLES)]
    samples = engine.generate(PROMPTS, NUM_SAMPLES, seeds, SAMPLING)
    prompts = [prompt for prompt in PROMPTS for _ in range(NUM_SAMPLES)]
    both: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]
    both = [(prompt, sample.token_ids) for prompt, sample in zip(prompts, samples, strict=True)]
    return SampledTokens.from_sequences(
        [[*prompt, *response] for prompt, response in both],
        [[False] * len(prompt) + [True] * len(response) for prompt, response in both],
        0,
        torch.float32,
        torch.device("cpu"),
        logprobs=[[0.0] * len(p) + list(sample.logprobs) for p, sample in zip(prompts, samples, strict=True)],
    )


def logprobs(model: nn.Module, batch: SampledTokens) -> Tensor:
    """Return the log-probs of the training forward, through states and head."""
    language_model = LanguageModel(causal_lm(model), REAL_TOKENS)
    states = language_model.states(batch.token_ids, batch.attention_mask)
    own = language_model.head().logits
    return linear_token_statistics(states, own, batch.token_ids, batch.response_mask, chunk_size=7)[0]


def lora(folder: Path, attention: str) -> str:
    """Return whether one step on an adapter raises the likelihood of given tokens, with gradients in all of it."""
    student = build_student(StudentConfig(str(folder), lora=Lora(rank=2), attn_implementation=attention))
    student.eval()
    adapter = {name: weight for name, weight in student.named_parameters() if weight.requires_grad}
    batch = given_tokens()
    before = logprobs(student, batch).sum()
    before.backward()
    second = [weight for name, weight in adapter.items() if "lora_B" in name]  # the first has none before B moves
    reached = sum(weight.grad is not None and bool(weight.grad.abs().sum() > 0) for weight in second)
    with torch.no_grad():
        for weight in second:
            if weight.grad is not None:
                weight.add_(weight.grad / (weight.grad.norm() + 1e-12), alpha=1e-4)
        after = logprobs(student, batch).sum()
    return f"{'trains' if after > before else 'does not train'}, {reached}/{len(second)}"


def given_tokens() -> SampledTokens:
    """Return four rows of tokens of different lengths."""
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randint(3, REAL_TOKENS, (length,), generator=generator).tolist() for length in (12, 5, 9, 12)]
    masks = [[i > 1 for i in range(len(row))] for row in rows]
    return SampledTokens.from_sequences(rows, masks, 0, torch.float32, torch.device("cpu"))


@torch.no_grad()
def bfloat16(folder: Path, attention: str) -> str:
    """Return how far the head's log-probs are from those of the model's own logits in bfloat16."""
    model = causal_lm(build_student(StudentConfig(str(folder), dtype="bfloat16", attn_implementation=attention)))
    model.train(False)
    language_model, batch = LanguageModel(model, REAL_TOKENS), given_tokens()
    got = language_model.head().logits(language_model.states(batch.token_ids, batch.attention_mask))[:, 1:]
    own = model(input_ids=batch.token_ids, attention_mask=batch.attention_mask.long(), use_cache=False).logits[:, :-1]
    errors = (log_softmax(got) - log_softmax(own[..., :REAL_TOKENS])).abs().amax(dim=-1)
    return bound(errors[batch.response_mask[:, 1:]].max())


@torch.no_grad()
def export(folder: Path, attention: str) -> str:
    """Return whether a student with a merged adapter loads again from its export and computes the same."""
    student = build_student(StudentConfig(str(folder), lora=Lora(rank=2), attn_implementation=attention))
    student.eval()
    for name, weight in student.named_parameters():
        if "lora_B" in name:
            weight.fill_(0.01)
    target = folder / "export"
    export_student(student, load_tokenizer(str(folder)), target)
    loaded = load_causal_lm(str(target), attn_implementation=attention)
    ids = given_tokens().token_ids
    errors = log_softmax(loaded(input_ids=ids).logits) - log_softmax(causal_lm(student)(input_ids=ids).logits)
    return f"loads, {bound(errors.abs().max(), least=1e-3)}"


def bound(error: Tensor, least: float = 1e-4) -> str:
    """Return the smallest of `CLASSES` that a difference does not exceed."""
    return next((f"≤ {name}" for name, limit in CLASSES.items() if limit >= least and error <= limit), "wrong")
