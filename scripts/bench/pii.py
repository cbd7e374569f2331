"""Precision and recall of the PII finder on the labelled sentences of the tests; or every hit in files of text.

    python scripts/bench/pii.py                      # a table by kind, and what was missed or wrong
    python scripts/bench/pii.py man.txt.zst …        # each hit with what stands around it, and megabytes a second

A hit counts when its kind is right and the text around the placeholder is exactly as labelled.
"""

from __future__ import annotations

import re
import sys
import time
from collections import Counter
from pathlib import Path

import pyarrow as pa

sys.path.insert(0, str(Path(__file__).parents[2]))

from llmpipe.clean.pii import KINDS, PLACEHOLDERS, find, redact
from tests.clean.pii_examples import NEGATIVE, POSITIVE

TAG = re.compile("|".join(map(re.escape, PLACEHOLDERS.values())))


def measure() -> tuple[dict[str, Counter[str]], list[tuple[str, str]]]:
    """Count true and false hits and misses by kind; return them with the sentences that went wrong."""
    kind_of = {tag: kind for kind, tag in PLACEHOLDERS.items()}
    counts: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
    wrong = []
    for text, expected in [*POSITIVE, *((t, t) for t in NEGATIVE)]:
        got = redact(text)[0]
        wanted, found = Counter(TAG.findall(expected)), Counter(TAG.findall(got))
        if got != expected:
            wrong.append((text, got))
            if wanted == found:  # right kind, wrong bounds
                wanted, found = Counter(), found + wanted
        for tag, kind in kind_of.items():
            counts[kind]["true"] += min(wanted[tag], found[tag])
            counts[kind]["missed"] += max(wanted[tag] - found[tag], 0)
            counts[kind]["false"] += max(found[tag] - wanted[tag], 0)
    return counts, wrong


def main(paths: list[str]) -> None:
    if not paths:
        counts, wrong = measure()
        print(f"{'kind':10} precision recall      n")
        for kind, c in [*counts.items(), ("all", sum(counts.values(), Counter()))]:
            print(f"{kind:10} {c['true'] / max(c['true'] + c['false'], 1):9.3f} {c['true'] / max(c['true'] + c['missed'], 1):6.3f} {c['true'] + c['missed']:6}")
        for text, got in wrong:
            print(f"wrong: {text!r} -> {got!r}")
        return
    for path in paths:
        text = pa.input_stream(path, compression="detect").read().decode("utf-8", "replace")
        documents = [text[i : i + 4000] for i in range(0, len(text), 4000)]
        began = time.perf_counter()
        hits = [(d, *span) for d in documents for span in find(d)]
        seconds = time.perf_counter() - began
        for d, start, end, kind in hits:
            print(f"{kind:9} {d[max(start - 40, 0) : start]!r} [{d[start:end]}] {d[end : end + 20]!r}")
        print(f"{path}: {len(hits)} hits in {len(documents):,} documents of 4,000 characters, {len(text.encode()) / seconds / 1e6:.1f} MB/s", file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1:])
