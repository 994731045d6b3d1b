from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lightning_opd.models import LanguageModel, TreeReading, load_causal_lm
from lightning_opd.teachers.cross_tokenizer.prefix_tree import PrefixTree, prefix_tree
from lightning_opd.teachers.cross_tokenizer.translation import Translator
from lightning_opd.types import TokenTree
from tests.teachers.cross_tokenizer.families import family, normalising
from tests.teachers.cross_tokenizer.random_pairs import random_translator, scored
from tests.teachers.cross_tokenizer.test_translation import NASTY
from tests.trees import after_prompt, pack, whole_tree_states

PROMPTS = [[5, 6, 7], [8], [9, 10]]
VOCAB_SIZE = 288


def branching_tree(seed: int, num_nodes: int) -> PrefixTree:
    """Return a tree of random tokens of which most nodes have siblings, each with other tokens below it."""
    noise, tree = random.Random(seed), PrefixTree()
    while len(tree.token_ids) <= num_nodes:
        tree.child(noise.randrange(max(0, len(tree.token_ids) - 6), len(tree.token_ids)), noise.randrange(VOCAB_SIZE))
    return tree


def branch(tree: PrefixTree, node: int) -> list[int]:
    """Return the tokens from the root to a node."""
    tokens: list[int] = []
    while node > 0:
        tokens.append(tree.token_ids[node])
        node = tree.parents[node]
    return tokens[::-1]


def num_forks(tree: PrefixTree) -> int:
    return sum(tree.parents.count(node) > 1 for node in range(len(tree.token_ids)))


@pytest.fixture(scope="module")
def model(tiny_model_dir: Path) -> LanguageModel:
    return LanguageModel(load_causal_lm(str(tiny_model_dir), dtype="float64").eval(), VOCAB_SIZE)


@torch.no_grad()
def largest_error(model: LanguageModel, states: Tensor, trees: list[PrefixTree]) -> float:
    """Return the largest difference between states of a tree and those of a plain forward over each branch."""
    errors = [0.0]
    for row, (prompt, tree) in enumerate(zip(PROMPTS, trees, strict=True)):
        for node in range(len(tree.token_ids)):
            ids = torch.tensor([[*prompt, *branch(tree, node), 0]])
            expected = model.states(ids, torch.ones_like(ids, dtype=torch.bool))[0, -1]
            errors.append(float((states[row, len(prompt) - 1 + node].detach() - expected).abs().max()))
    return max(errors)


def test_a_tree_is_read_as_its_branches_one_by_one(model: LanguageModel) -> None:
    """A branch's states are those of a plain forward over it; without the mask, or the positions, they are not."""
    trees = [branching_tree(0, 20), branching_tree(0, 5), branching_tree(2, 30)]
    assert all(num_forks(tree) >= 2 for tree in trees)
    token_ids, mask, positions = pack(PROMPTS, trees)
    assert largest_error(model, whole_tree_states(model, token_ids, mask, positions), trees) < 1e-10
    causal = torch.ones_like(mask).tril()
    assert largest_error(model, whole_tree_states(model, token_ids, causal, positions), trees) > 1e-3
    linear = torch.arange(token_ids.shape[1]).expand_as(token_ids)
    assert largest_error(model, whole_tree_states(model, token_ids, mask, linear), trees) > 1e-3


@pytest.mark.parametrize("at_once", [1, 3, 8, 1000])
def test_a_tree_read_in_chunks_is_that_read_in_one_forward(model: LanguageModel, at_once: int) -> None:
    """Several trees, of which some share a chunk; branches are cut and go on in later chunks."""
    trees = [branching_tree(0, 20), branching_tree(0, 5), PrefixTree(), branching_tree(2, 30)]
    prompts = [*PROMPTS[:2], [4, 4], PROMPTS[2]]
    whole = whole_tree_states(model, *pack(prompts, trees))
    reading = TreeReading([after_prompt(*pair) for pair in zip(prompts, trees, strict=True)], at_once)
    for row, states in enumerate(model.read_trees(reading)):
        assert len(states) == len(prompts[row]) + len(trees[row].token_ids) - 1
        assert not states.requires_grad
        assert float((states - whole[row, : len(states)]).abs().max()) < 1e-10
    assert row == 3
    assert all(len(chunk.columns) <= max(at_once, chunk.num_known + 1) for chunk in reading.chunks)
    assert len(reading.chunks) == 1 or any(chunk.num_known for chunk in reading.chunks)


@pytest.mark.parametrize("at_once", [1, 3, 8, 1000])
def test_branches_read_after_their_trunks_are_those_read_with_them(model: LanguageModel, at_once: int) -> None:
    """Trunks that share a chunk, one without a branch, and branches that go on in later chunks."""
    from transformers import DynamicCache

    trees = [branching_tree(0, 20), branching_tree(0, 5), PrefixTree(), branching_tree(2, 30)]
    prompts, wholes = [*PROMPTS[:2], [4, 4], PROMPTS[2]], []
    whole = whole_tree_states(model, *pack(prompts, trees))
    for prompt, tree in zip(prompts, trees, strict=True):
        tree.end = len(tree.token_ids) // 2
        wholes.append([*range(len(prompt)), *(len(prompt) - 1 + node for node in tree.trunk()[1:])])
    columns = [
        [*trunk, *sorted(set(range(len(p) + len(t.token_ids) - 1)) - set(trunk))]
        for trunk, p, t in zip(wholes, prompts, trees, strict=True)
    ]
    sorted_trees = []
    for order, prompt, tree in zip(columns, prompts, trees, strict=True):
        piece, place = after_prompt(prompt, tree), {column: i for i, column in enumerate(order)}
        parents = [place.get(piece.parents[column], -1) for column in order]
        sorted_trees.append(TokenTree([piece.token_ids[column] for column in order], parents))
    lengths, cache = [len(trunk) for trunk in wholes], DynamicCache()
    trunks = [TokenTree(t.token_ids[:n], t.parents[:n]) for t, n in zip(sorted_trees, lengths, strict=True)]
    first = list(model.read_trees(TreeReading(trunks, at_once, goes_on=True), cache))
    second = list(model.read_trees(TreeReading(sorted_trees, at_once, lengths), cache))
    for row, (order, of_trunk, of_branches) in enumerate(zip(columns, first, second, strict=True)):
        assert len(of_trunk) == lengths[row]
        states = torch.cat([of_trunk, of_branches])
        assert float((states - whole[row, order]).abs().max()) < 1e-10


def test_a_reply_is_read_as_its_beginnings_one_by_one(model: LanguageModel) -> None:
    """Every beginning ends at a node, whose branch is what the teacher's tokenizer makes of the beginning."""
    both = random_translator(8, 7)
    texts = ("4{\n4b\n{85a983,3,5a983,3, B", "", "4b,\n4{\n4b")  # full of what the teacher merges
    replies = [both.student_spelling.encode(text.encode()) for text in texts]
    trees = [prefix_tree(both, ids) for ids in replies]
    assert num_forks(trees[0]) >= 2
    assert not trees[1].segments
    for tree in trees:
        for segment in tree.segments:
            for length, node in enumerate(segment.nodes):
                assert node is not None
                assert branch(tree, node) == both.teacher_spelling.encode(segment.text[:length])
    within = [PrefixTree([i % VOCAB_SIZE for i in tree.token_ids], tree.parents) for tree in trees]
    states = whole_tree_states(model, *pack(PROMPTS, within))
    assert largest_error(model, states, within) < 1e-10


def test_control_tokens_travel_by_role_and_one_without_counterpart_is_read_as_text() -> None:
    both, ids = Translator(family("chatml"), family("llama3")), family("chatml").get_vocab()
    text = both.student_spelling.encode(b"ab")
    tree = prefix_tree(both, [*text, ids["<think>"], *text, ids["<|im_end|>"], ids["<tool_call>"]])
    assert [segment.first_student for segment in tree.segments] == [0, len(text) + 1]
    first, second = tree.segments
    assert first.next_node is None
    shown = both.teacher_spelling.encode(b"<think>")
    assert branch(tree, second.root) == [*both.teacher_spelling.encode(b"ab"), *shown]
    end = family("llama3").get_vocab()["<|eot_id|>"]
    (index, node, node_before) = tree.controls[0]
    assert len(tree.controls) == 1, "what has no counterpart has no score"
    assert (index, node, node_before) == (2 * len(text) + 1, second.next_node, second.nodes[-1])
    assert branch(tree, node) == [*branch(tree, node_before), end]


def test_a_token_that_the_tokenizer_would_not_generate_is_not_canonical() -> None:
    both = Translator(family("llama3"), family("deepseek"))
    whole = both.student_spelling.encode(b"name: name")
    spelt = [token for letter in b"name" for token in both.student_spelling.encode(bytes([letter]))]
    assert both.student.convert_ids_to_tokens(both.student_spelling.encode(b"name")) == ["n", "a", "me"]
    (segment,) = prefix_tree(both, [*spelt, *whole[len(both.student_spelling.encode(b"name")) :]]).segments
    assert segment.text == b"name: name"
    assert segment.is_canonical[:4] == [True, True, False, False]
    assert all(segment.is_canonical[4:])
    assert len(segment.is_canonical) > 4
    (canonical,) = prefix_tree(both, whole).segments
    assert all(canonical.is_canonical)


@pytest.mark.parametrize("nasty", NASTY, ids=ascii)
@pytest.mark.parametrize("name", ["llama3", "gemma"])
def test_a_character_that_the_teacher_normalises_costs_only_itself(name: str, nasty: str) -> None:
    """Around it the scores are those of the same reply with the character in its normal form."""
    both, vocabulary = Translator(family("chatml"), normalising(name)), family("chatml").get_vocab()
    other = both.teacher_spelling.normal(nasty.encode())[0].decode()
    encode = both.student_spelling.encode
    before, after = encode(b"R = 5"), [*encode(b" xyz is 27;"), vocabulary["<|im_end|>"]]
    token_ids, normal_ids = ([*before, *encode(f" {x}".encode()), *after] for x in (nasty, other))
    (segment,) = prefix_tree(both, token_ids).segments
    assert segment.text.decode() == f"R = 5 {other} xyz is 27;"
    assert [end for _, end in segment.student_spans[:-1]] == [begin for begin, _ in segment.student_spans[1:]]
    *_, scores, distributions = scored(both, token_ids, 0)
    *_, expected, of_normal = scored(both, normal_ids, 0)
    num_after = len(after)
    assert scores.is_scored[: len(before)].all()
    assert scores.is_scored[-num_after:].all()
    assert bool(scores.is_scored[len(before) : -num_after].all()) == (nasty == other)
    torch.testing.assert_close(scores.logprobs[-num_after:], expected.logprobs[-num_after:])
    torch.testing.assert_close(distributions[-num_after:], of_normal[-num_after:])
    torch.testing.assert_close(scores.logprobs[: len(before)].sum(), expected.logprobs[: len(before)].sum())


def test_text_that_the_teacher_normalises_is_read_as_it_is_translated() -> None:
    both, ids = Translator(family("chatml"), normalising("llama3")), family("chatml").get_vocab()
    text = both.student_spelling.encode("R = 5 \u2126".encode())
    token_ids = [*text, ids["<|im_end|>"]]
    tree = prefix_tree(both, token_ids)
    ((index, node, _),) = tree.controls
    assert index == len(text)
    assert branch(tree, node) == both.reply(token_ids).token_ids
