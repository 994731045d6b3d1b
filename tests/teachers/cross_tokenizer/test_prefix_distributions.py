from __future__ import annotations

import pytest

from lightning_opd.teachers.cross_tokenizer.prefix_distributions import MAX_OPEN_FRACTION
from tests.teachers.cross_tokenizer.texts import TEXTS, WORLDS, Texts


def begin(mass: dict[tuple[str, ...], float], tokens: list[str]) -> float:
    """Return the probability of the texts that begin with the tokens."""
    return sum(p for sequence, p in mass.items() if sequence[: len(tokens)] == tuple(tokens))


@pytest.mark.parametrize("world", WORLDS)
def test_every_known_probability_is_exact(world: str) -> None:
    num_known = 0
    for seed in range(5):
        texts_ = Texts(*WORLDS[world], seed=seed)
        sequences, vocabulary = texts_.student.sequences, texts_.student.vocabulary()
        mass = {tuple(s): float(x.sum().exp()) for s, x in zip(sequences, texts_.teacher_logprobs, strict=True)}

        for sequence, known in zip(sequences, texts_.prefix_distributions, strict=True):
            for i, row in enumerate(known.tolist()):
                exact = [begin(mass, [*sequence[:i], token]) / begin(mass, sequence[:i]) for token in vocabulary]
                assert row[vocabulary.index(sequence[i])] > 0
                for expected, got in zip(exact, row, strict=True):
                    assert got == 0 or got == pytest.approx(expected, abs=1e-12, rel=2 * MAX_OPEN_FRACTION)
                    num_known += got > 0
    assert num_known > 2 * len(TEXTS) * 5
