"""Turn blocks of documents into hashed shingles: 5 words, or 8 characters where the script puts no spaces.

    hashes, docs = shingles(block, block.tables.folded, words=5, characters=8)

The script decides at each token, not for the document: a shingle that starts at a Han character spans 8 tokens, one that
starts at a word spans 5, so a mixed page and its copy with one more English line still share their shingles. A document
too short for any is one shingle as a whole, so that short documents are compared too.

That is for candidates, and for the comparison of pairs of which one at least is written with spaces. Two documents of a
script without spaces are compared by 8 characters throughout, letters of their English words too: `character_shingles`.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import numpy as np

from llmpipe.text.block import Block, Rolling, fmix64, hash_spans
from llmpipe.text.characters import SINGLE, WORD

MIN_WIDE_SHARE = 0.02
"""Part of the letters and digits that must be single characters for a document to count as one of a script without spaces."""


def prepare(text: str) -> str:
    """Compose characters: accents and Hangul may be written in two ways. Nearly free where that is so already."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def block_of(texts: Sequence[str]) -> Block:
    return Block([prepare(t) for t in texts], inner_dots=False)


def shingles(block: Block, values: np.ndarray, *, words: int, characters: int, short: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Return (S,) uint64 hashes and (S,) document numbers, ascending. Repeated shingles are repeated.

    `values` is `tables.folded` for candidates (case, accents and all digits alike) or `tables.exact` for verification.
    Without `short` a document that is too short for any has none.
    """
    starts = block.word_starts
    tokens = block.hashes(values, starts)
    docs = np.searchsorted(block.doc_ends, starts, side="right")
    single = block.kinds[starts] == SINGLE
    out = np.zeros(len(tokens), np.uint64)
    valid = np.zeros(len(tokens), bool)
    for n, mask in ((words, ~single), (characters, single)):
        if len(tokens) >= n and mask.any():
            whole = len(tokens) - n + 1
            inside = mask[:whole] & (docs[:whole] == docs[n - 1 :])
            out[:whole][inside] = Rolling(tokens).advance(n)[inside]
            valid[:whole] |= inside
    if not short:
        return out[valid], docs[valid]
    first, present = first_tokens(docs, block.num_docs)
    alone = present & (np.bincount(docs[valid], minlength=block.num_docs) == 0)
    if alone.any():
        at = first[alone]
        out[at] = hash_spans(tokens, first[present])[alone[present]]
        valid[at] = True
    return out[valid], docs[valid]


def wide_docs(block: Block) -> np.ndarray:
    """(D,) whether documents are written in a script without spaces, or a good part of them."""
    starts = block.doc_ends - block.num_chars - 1
    singles = np.add.reduceat(block.kinds == SINGLE, starts, dtype=np.int64)
    letters = singles + np.add.reduceat(block.kinds == WORD, starts, dtype=np.int64)
    return singles > np.maximum(letters * MIN_WIDE_SHARE, 0)


def character_shingles(block: Block, characters: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (S,) hashes of all runs of that many letters and digits, case and width folded, and (S,) document numbers."""
    values = block.tables.exact.take(block.code_points, mode="clip")
    at = np.flatnonzero(values)
    docs = np.searchsorted(block.doc_ends, at, side="right")
    if len(at) < characters:
        return np.empty(0, np.uint64), np.empty(0, np.int64)
    inside = docs[: len(at) - characters + 1] == docs[characters - 1 :]
    return Rolling(values[at]).advance(characters)[inside], docs[: len(at) - characters + 1][inside]


def text_hashes(block: Block) -> np.ndarray:
    """Return (D, 2) uint64: 128 bits that are equal for texts of the same words (case, width, punctuation and spacing aside)."""
    starts = block.word_starts
    tokens = block.hashes(block.tables.exact, starts)
    first, present = first_tokens(np.searchsorted(block.doc_ends, starts, side="right"), block.num_docs)
    out = np.zeros((block.num_docs, 2), np.uint64)
    out[present, 0] = hash_spans(tokens, first[present])
    out[present, 1] = hash_spans(fmix64(tokens ^ np.uint64(0xA0761D6478BD642F)), first[present])
    return out


def first_tokens(docs: np.ndarray, num_docs: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (D,) the number of each document's first token, and (D,) whether it has one."""
    bounds = np.searchsorted(docs, np.arange(num_docs + 1))
    return bounds[:-1], np.diff(bounds) > 0
