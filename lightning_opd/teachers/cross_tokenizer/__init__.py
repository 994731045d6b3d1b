"""A teacher with another tokenizer: how its scores reach the student's tokens.

A teacher scores tokens. If its tokenizer splits text differently from the student's, its tokens and the student's are
different events, and their log-probs cannot be subtracted token by token.

**An example.** The student generates the text `1+6` as the tokens

    `1`  `+`  `6`        log π: -0.2  -0.1  -1.0

and the teacher's tokenizer has a token `1+`, so that it reads the same text as

    `1+`  `6`            log T: -0.5  -0.7

*Never assemble the teacher's sequence from the student's tokens.* A teacher that reads `1`, `+`, `6` was not trained on
such sequences and finds them very unlikely, although the text is the same. It always reads the text in the tokens of
its own tokenizer, after a prompt rendered by its own chat template. `functional/alignment.py` then pairs the two sides
by the bytes that they cover, and a *credit* (`functional/credit.py`) decides what each student token is compared with.

*Exact match* (`ExactMatchCredit`) keeps the tokens that cover the same bytes on both sides: here `6`, which is compared
with -0.7. `1` and `+` learn nothing.

*Spans* (`SpanCredit`). A span is the shortest run of tokens on either side that covers the same bytes: here (`1` `+`)
against (`1+`), then `6` against `6`. The first span has log T - log π = -0.5 + 0.3 = -0.2, and both of its tokens are
credited with it. Nothing is lost, but the wrong token can be blamed: if the teacher expects `1-6`, the student chose
well at `1` and badly at `+`, and both get the same sign.

*Prefix probability* (`PrefixCredit`). Ask the teacher about text instead of tokens: P(x) is the probability that its
text begins with the bytes x. It is a sum over everything that the teacher may generate:

    P("1")  = T(`1`) + T(`1+`) + T(`1-`) + ...           every token that begins with 1
    P("1+") = T(`1+`) + T(`1`) * T(`+`... after `1`)     and so on

Token i is compared with log P(text up to token i) - log P(text before token i). So `1` gets log P("1"), and `+` gets
log P("1+") - log P("1"). P("1") contains `1-` as much as `1+`: the score of `1` does not depend on the `+` that came
after it, and no token answers for what follows. The scores of a reply add up to the log-prob of its text. The price:
the teacher must give whole distributions, after its tokens of *every beginning* of the reply. The reply `1+6` takes
`1`, `1+` and `1+` `6`: a tree. The teacher reads its *trunk* first, the tokens of the whole reply, and then the
branches of which the trunk does not already say that they are too unlikely to matter.

**The files, in reading order.** What both ways need:

    spelling.py              the bytes of each token, and the tokens of any bytes
    roles.py                 control tokens of one tokenizer <-> those of the other (end of turn, tool call, ...)
    opening.py               what stands before a reply's first word: leads of templates, opened thoughts
    translation.py           a prompt and a reply of the student, in the teacher's tokens, with their alignment
    views.py                 the same for each reply of a batch

Credits that align tokens:

    aligned_scoring.py       score a batch by exact match, spans or whole sequences

The credit that sums over texts:

    token_bytes.py           a sorted vocabulary: which tokens begin with these bytes?
    prefix_probabilities.py  a reply's segments of text, and sums over the tokens that cover a beginning
    prefix_tree.py           the tokens of all beginnings of a reply as a tree
    prefix_scores.py         the score of each token of the student
    prefix_distributions.py  the probability of every other token that the student could have generated
    branch_choice.py         the branches that are likely enough to be read
    node_table.py            what the teacher says at the nodes that it has read
    tree_scoring.py          score a batch this way

And on top:

    metrics.py               what reading other tokens costs, logged at each step
    teacher.py               `CrossTokenizerTeacher`: settings, and the choice between the two ways
    report.py                a closer look: the worst tokens, and how the teacher scores assembled sequences
"""

from lightning_opd.teachers.cross_tokenizer.teacher import CrossTokenizerTeacher

__all__ = ["CrossTokenizerTeacher"]
