"""Say which columns of a kind of row may change, and change them: labels stay, tags stay aligned, answers keep their place.

    plan = plan_of(rows, config, where="reviews.jsonl")
    for number, copy in vary(row, plan, editor, source, counts): ...
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmpipe.augment.edit import NEW_TOKEN, Editor
from llmpipe.config import nearest
from llmpipe.data.rows import Row, rows_kind
from llmpipe.errors import InputError, UsageError

if TYPE_CHECKING:
    from llmpipe.augment.stage import Config

KINDS: tuple[tuple[frozenset[str], tuple[str, ...]], ...] = (
    (frozenset({"tokens", "tags"}), ("tokens",)),
    (frozenset({"context", "question", "answers"}), ("question",)),  # answers point into the context
    (frozenset({"question", "choices", "answer"}), ("question",)),
    (frozenset({"text", "text_pair"}), ("text", "text_pair")),
    (frozenset({"text"}), ("text",)),
)
SPANS = ("entities", "spans", "answer_start", "offsets", "start", "end")
"""Columns that point into the text by position: a changed text would leave them pointing at something else."""


@dataclass(frozen=True, slots=True)
class RowPlan:
    columns: tuple[str, ...]
    outside: str | None
    """For tokens,tags: the tag of the words that may change."""


def plan_of(rows: Sequence[Row], config: Config, *, where: str) -> RowPlan:
    """Recognise the kind of rows; refuse those that a change would break."""
    found = rows_kind(rows)
    columns = next((columns for needed, columns in KINDS if needed <= found), None)
    if columns is None:
        raise InputError(
            f"{where}: rows with {', '.join(sorted(found))} cannot be augmented",
            hint="it takes text (with or without label and text_pair) · tokens,tags · context,question,answers · question,choices,answer; a translation, a chat or a preference would no longer fit its other half",
        )
    if columns == ("tokens",):
        if config.columns not in ([], ["tokens"]):
            raise UsageError(f"columns: of tokens,tags rows only tokens can change, not {', '.join(config.columns)}")
        return RowPlan(columns, config.outside)
    for name in config.columns:
        if name not in found:
            raise UsageError(f"columns: {where} has no column {name!r}{nearest(name, sorted(found))}")
        if name == "context":
            raise UsageError("columns: answers point into the context by position, so it cannot change", hint="leave columns out, and the question changes")
    if columns[0] == "text" and (spans := [c for c in SPANS if any(row.get(c) is not None for row in rows)]):
        raise InputError(f"{where}: {', '.join(spans)} point into the text by position, and a changed text would move what they mean", hint="turn the rows into tokens,tags: tags stay aligned")
    return RowPlan(tuple(config.columns) or columns, None)


def vary(row: Row, plan: RowPlan, editor: Editor, source: str, counts: Counter[str]) -> list[tuple[int, Row]]:
    """Return number and row of each copy."""
    if plan.outside is not None:
        return _vary_tokens(row, plan.outside, editor, source, counts)
    changed: dict[int, Row] = {}
    for column in plan.columns:
        if isinstance(row.get(column), str):
            for number, text in editor.copies(row[column], f"{source}\x00{column}" if column != plan.columns[0] else source, counts):
                changed.setdefault(number, dict(row))[column] = text
    return sorted(changed.items())


def _vary_tokens(row: Row, outside: str, editor: Editor, source: str, counts: Counter[str]) -> list[tuple[int, Row]]:
    """Change words outside of entities. A new word gets the outside tag, so words and tags stay as many."""
    tokens, tags = [str(t) for t in row["tokens"]], list(row["tags"])
    if len(tokens) != len(tags):
        raise InputError(f"a row has {len(tokens)} tokens and {len(tags)} tags: {' '.join(tokens)[:80]!r}")
    free = next((tag for tag in tags if str(tag) == outside), outside)  # a number stays one
    units = [i for i, (token, tag) in enumerate(zip(tokens, tags, strict=True)) if str(tag) == outside and any(c.isalpha() for c in token)]
    out = []
    for number, pieces in editor.vary(tokens, units, source, counts, spaced=False):
        new_tokens, new_tags = [], []
        for i, piece in enumerate(pieces):
            words = [piece] if i not in units else [w for part in piece.split(NEW_TOKEN) for w in part.split()]
            new_tokens += words
            new_tags += [tags[i]] if i not in units else [free] * len(words)
        out.append((number, {**row, "tokens": new_tokens, "tags": new_tags}))
    return out
