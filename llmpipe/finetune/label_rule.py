"""Make labelled rows of documents that carry their label already: in a URL, a source, a date.

    rule = LabelRule(column="url", pattern=r"^http://pydoc\\.invalid/(\\w+)")
    rows, dropped = label_documents(Path("docs"), rule)      # {"text", "label", "group": id, "language", "source"}

A document is cut in passages, so that a few hundred pages make enough examples; all passages of one document share
its `group`, by which rows are split.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmpipe.data.docs import AUGMENTED, AUGMENTED_FROM, SCHEMA, meta_value, read_docs
from llmpipe.data.rows import GROUP, Row
from llmpipe.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelRule:
    pattern: str
    """Regular expression searched in the column; its first group that matches is the label."""
    column: str = "url"
    """A column of the documents, or `meta.KEY`."""
    min_documents: int = 8
    """Labels of fewer documents are left out, or become `other`."""
    max_documents: int | None = None
    """Documents of one label that are used, drawn by a hash of their id; null: all."""
    other: str | None = None
    """What rarer labels are called together; null leaves their documents out."""
    passage_chars: int = 600
    """Documents are cut in passages of at most so many characters, at line or sentence ends; 0: one passage each."""
    max_passages: int | None = 8
    """Passages of one document that are used, spread evenly over it; null: all."""
    min_chars: int = 40
    """Shorter passages are left out."""

    def __post_init__(self) -> None:
        try:
            groups = re.compile(self.pattern).groups
        except re.error as error:
            raise ValueError(f"pattern {self.pattern!r} is not a regular expression ({error})") from None
        if not groups:
            raise ValueError(f"pattern {self.pattern!r} has no group; the label is what the first (…) matches")
        if self.column not in SCHEMA.names and not self.column.startswith("meta."):
            raise ValueError(f"column {self.column!r} is none of {', '.join(SCHEMA.names)}, meta.KEY")


def label_documents(directory: Path, rule: LabelRule) -> tuple[list[Row], Counter[str]]:
    """Return labelled passages in order of documents, and how many documents and passages each rule left out."""
    dropped: Counter[str] = Counter()
    documents: list[dict[str, Any]] = []
    column = rule.column.split(".", 1)[0]
    pattern = re.compile(rule.pattern)
    for batch in read_docs(directory, columns=list(dict.fromkeys(["id", "text", "language", "source", "meta", column]))):
        for document in batch.to_pylist():
            value = meta_value(document["meta"], rule.column[5:]) if rule.column.startswith("meta.") else document[column]
            match = pattern.search(str(value)) if value is not None else None
            label = next((g for g in match.groups() if g), None) if match else None
            if label is None:
                dropped["no_label"] += 1
            else:
                documents.append({**document, "label": label, AUGMENTED_FROM: meta_value(document["meta"], AUGMENTED_FROM)})
    documents = _balance(documents, rule, dropped)
    rows: list[Row] = []
    for document in documents:
        passages = cut_passages(document["text"], rule.passage_chars)
        long = [p for p in passages if len(p) >= rule.min_chars]
        dropped["short_passage"] += len(passages) - len(long)
        for passage in _spread(long, rule.max_passages):
            copy = {AUGMENTED: True, AUGMENTED_FROM: document[AUGMENTED_FROM]} if document[AUGMENTED_FROM] else {}
            rows.append({"text": passage, "label": document["label"], GROUP: document[AUGMENTED_FROM] or document["id"], "language": document["language"], "source": document["source"], **copy})
    if not rows:
        raise InputError(f"{directory}: label_from found no label in `{rule.column}` that {rule.min_documents} documents share", hint="look at a few values with llmpipe inspect, and lower min_documents or change the pattern")
    return rows, +dropped


def _balance(documents: list[dict[str, Any]], rule: LabelRule, dropped: Counter[str]) -> list[dict[str, Any]]:
    counts = Counter(d["label"] for d in documents if not d[AUGMENTED_FROM])
    kept: list[dict[str, Any]] = []
    for document in documents:
        if counts[document["label"]] < rule.min_documents:
            if rule.other is None:
                dropped["rare_label"] += 1
                continue
            document["label"] = rule.other
        kept.append(document)
    if rule.max_documents is None:
        return kept
    by_label: dict[str, list[str]] = defaultdict(list)
    for document in kept:
        by_label[document["label"]].append(document["id"])
    chosen = {i for ids in by_label.values() for i in sorted(ids, key=lambda i: hashlib.blake2b(i.encode()).digest())[: rule.max_documents]}
    dropped["above_max_documents"] += len(kept) - len(chosen)
    return [d for d in kept if d["id"] in chosen]


_END = re.compile(r"[。！？!?]+[”’」』\"')]*|\.(?=\s)|\n+")


def cut_passages(text: str, size: int) -> list[str]:
    """Cut a text in passages of at most `size` characters, after a sentence or line where one ends in the second half, else anywhere."""
    text = text.strip()
    if size <= 0:
        return [text] if text else []
    passages, start = [], 0
    while start < len(text):
        end = min(start + size, len(text))
        if end < len(text):
            ends = [m.end() for m in _END.finditer(text, start + size // 2, end)]
            space = text.rfind(" ", start + size // 2, end)
            end = ends[-1] if ends else space if space > 0 else end
        if passage := text[start:end].strip():
            passages.append(passage)
        start = end
    return passages


def _spread(items: list[str], most: int | None) -> list[str]:
    if most is None or len(items) <= most:
        return items
    return [items[i * len(items) // most] for i in range(most)]
