"""A reply in a teacher's tokens, however it may go on: the tokenisations of all its beginnings, as a tree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby

from lightning_opd.teachers.cross_tokenizer.opening import Opening
from lightning_opd.teachers.cross_tokenizer.prefix_probabilities import TextSegment
from lightning_opd.teachers.cross_tokenizer.spelling import spans_of
from lightning_opd.teachers.cross_tokenizer.translation import Translator, without_lead


@dataclass
class PrefixTree:
    """The teacher's tokens of all beginnings of a reply.

    A teacher that reads `1+6=7` may begin with the token `1+`, and reads `1+6=10` from the token `1` on: its
    probability of the `6` takes both. A beginning of n bytes ends at one node, so that there are about as many nodes
    as bytes.

    Args:
        token_ids: The teacher's token at each node; node 0 is the end of the prompt and has none.
        parents: The node before each; always a smaller number.
        segments: The text between control tokens.
        controls: (student index, node, node before) of control tokens that both sides have.
        end: The node at the end of the whole reply.
    """

    token_ids: list[int] = field(default_factory=lambda: [-1])
    parents: list[int] = field(default_factory=lambda: [-1])
    segments: list[TextSegment] = field(default_factory=list)
    controls: list[tuple[int, int, int]] = field(default_factory=list)
    end: int = 0
    _children: dict[tuple[int, int], int] = field(default_factory=dict)

    def child(self, node: int, token_id: int) -> int:
        """Return the node of a token after another node, made if missing."""
        if (node, token_id) not in self._children:
            self._children[node, token_id] = len(self.token_ids)
            self.token_ids.append(token_id)
            self.parents.append(node)
        return self._children[node, token_id]

    def descendant(self, node: int, token_ids: Sequence[int]) -> int:
        """Return the node at the end of a sequence of tokens after another node."""
        for token_id in token_ids:
            node = self.child(node, token_id)
        return node

    def trunk(self) -> list[int]:
        """Return the nodes of the teacher's own tokens of the whole reply, node 0 included, from the first on."""
        nodes = [self.end]
        while nodes[-1]:
            nodes.append(self.parents[nodes[-1]])
        return nodes[::-1]


def prefix_tree(translator: Translator, token_ids: Sequence[int]) -> PrefixTree:
    """Return the tree of a reply of the student, the stop token included.

    Control tokens become their counterparts; one without a counterpart is shown as its text and gets no score, nor
    does a token with a character that the teacher's tokenizer normalises.
    """
    tree, roles, opening = PrefixTree(), translator.roles, translator.opening(token_ids)
    node, start = tree.descendant(0, opening.token_ids), opening.num_skipped
    for is_control, run in groupby(token_ids[start:], lambda i: i in roles.student_ids):
        tokens = list(run)
        if not is_control:
            following = token_ids[start + len(tokens) : start + len(tokens) + 1]
            next_id = roles.pairs.get(following[0]) if following else None
            of_text = opening if start == opening.num_skipped else Opening()
            node = _add_text(tree, node, translator, tokens, start, next_id, of_text)
        else:
            for index, token_id in enumerate(tokens, start):
                before = node
                if token_id in roles.pairs:
                    node = tree.child(before, roles.pairs[token_id])
                    tree.controls.append((index, node, before))
                else:
                    text = str(translator.student.convert_ids_to_tokens(token_id)).encode()
                    node = tree.descendant(before, translator.teacher_spelling.encode(text))
        start += len(tokens)
    tree.end = node
    return tree


def _add_text(
    tree: PrefixTree,
    root: int,
    translator: Translator,
    token_ids: list[int],
    index: int,
    next_id: int | None,
    opening: Opening,
) -> int:
    """Add a segment of text and return the node at its end; one that the teacher cannot spell is shown, not scored.

    Where the teacher's tokenizer normalises (NFC), it reads the normal form, and tokens that differ there are not
    scored.

    Args:
        tree: To add to.
        root: The node before the text.
        translator: From the student's tokens to the teacher's.
        token_ids: The student's tokens of the segment.
        index: Of the first of them in the reply.
        next_id: The teacher's control token after the text, if any.
        opening: Text before it that the student did not generate.
    """
    lead, own_lead = opening.text, opening.own_text
    ours, theirs = translator.student_spelling, translator.teacher_spelling
    token_bytes = without_lead([ours.token_bytes(i) for i in token_ids], own_lead)
    text = b"".join(token_bytes)
    normal, same = theirs.normal(lead + text)
    nodes = _nodes(tree, root, translator, normal)
    end = nodes[-1]
    if end is None:
        return tree.descendant(root, theirs.encode(lead + text))
    num_lead = next((n for n, token in enumerate(token_bytes) if token), len(token_bytes))
    if num_lead == len(token_bytes):  # nothing but lead
        return end
    spans = spans_of(token_bytes[num_lead:], text)
    canonical = without_lead([ours.token_bytes(i) for i in ours.encode(own_lead + text)], own_lead)
    canonical_spans = set(spans_of(canonical, text))
    in_whole = [(begin + len(lead), stop + len(lead)) for begin, stop in spans]
    in_normal = [(span, True) for span in in_whole] if same is None else same.normal_spans(in_whole, len(lead))
    tree.segments.append(
        TextSegment(
            text=normal,
            student_spans=[span for span, _ in in_normal],
            is_same=[is_same for _, is_same in in_normal],
            is_canonical=[
                is_same and span in canonical_spans for span, (_, is_same) in zip(spans, in_normal, strict=True)
            ],
            first_student=index + num_lead,
            nodes=nodes,
            next_node=None if next_id is None else tree.child(end, next_id),
        )
    )
    return end


def _nodes(tree: PrefixTree, root: int, both: Translator, text: bytes) -> list[int | None]:
    """Add the tokenisations of all beginnings of a text; return the node at the end of each, by number of bytes."""
    spelling = both.teacher_spelling
    whole = spelling.encode(text)
    if b"".join(map(spelling.token_bytes, whole)) != text:
        return [root, *([None] * len(text))]
    nodes: list[int | None] = [root]
    base, bases = root, {0: root}
    for length, (start, passed, last_ids) in enumerate(both.teacher_beginnings(text, whole), 1):
        for end, token_ids in passed:
            base = bases[end] = tree.descendant(base, token_ids)
        is_spelt = b"".join(map(spelling.token_bytes, last_ids)) == text[start:length]
        nodes.append(tree.descendant(bases[start], last_ids) if is_spelt else None)
    # A beginning that ends inside a character may be tokenised otherwise than the whole text. The nodes on the path
    # of the whole text take precedence: the sum of a token's scores must be the log-prob of that path.
    node, length = tree.descendant(root, whole), len(text)
    while node != root:
        nodes[length] = node
        node, length = tree.parents[node], length - len(spelling.token_bytes(tree.token_ids[node]))
    return nodes
