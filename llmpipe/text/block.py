"""Cut a block of documents into tokens and lines, and hash them, in a few passes of numpy over its code points.

    for block in blocks(texts): block.token_hashes(block.tables.raw), block.line_docs, …

Documents stand one after another, each closed by a newline, so that no token or line spans two. About 200,000 code
points a block keep every array in the second-level cache (larger: up to 3 times slower); a longer document is a block of
its own and costs about 60 bytes of memory per code point.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache, cached_property

import numpy as np

from llmpipe.text.characters import ALPHA, DIGIT, JOINER, MARK, PUNCT, SINGLE, SPACE, UPPER, WORD, Characters, characters, fmix64

BLOCK_CODE_POINTS = 200_000
SPAN = 1 << 16
"""Length of the tables of powers. Longer input is hashed in several strides, cut between tokens."""
BASE = 0x9E6C63D0876A9A35  # odd, so it has an inverse mod 2^64
NEWLINE, DOT, COMMA, HYPHEN = ord("\n"), ord("."), ord(","), ord("-")
_LEADING = [ord(c) for c in "-/\\@+~^"]
_BEFORE_LETTER, _BETWEEN_LETTERS, _BETWEEN_DIGITS = ([ord(c) for c in marks] for marks in (":<>=/", "-,~", "+-*^"))


def blocks(texts: Sequence[str], *, inner_dots: bool = True) -> Iterator[tuple[int, Block]]:
    """Yield `(number of the first document, Block)` for consecutive runs of documents."""
    start = size = 0
    for i, text in enumerate(texts):
        if i > start and size + len(text) > BLOCK_CODE_POINTS:
            yield start, Block(texts[start:i], inner_dots=inner_dots)
            start, size = i, 0
        size += len(text) + 1
    if start < len(texts):
        yield start, Block(texts[start:], inner_dots=inner_dots)


class Block:
    """Arrays over some documents, each computed when first asked for. Shapes: N code points, T tokens, L lines, D documents.

    `inner_dots` keeps os.path, 3.14, 1,000 and open(2 whole, as the tokenizers do that the published thresholds of filters were
    found with; without it every punctuation mark but an apostrophe ends a word, as shingles want it.
    """

    def __init__(self, texts: Sequence[str], *, inner_dots: bool = True) -> None:
        self.texts, self.inner_dots = list(texts), inner_dots
        joined = "\n".join(self.texts) + "\n"
        self.code_points = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), np.int32)  # (N,)
        lengths = np.fromiter(map(len, self.texts), np.int64, len(self.texts))
        self.num_chars = lengths  # (D,) without the newline that closes each
        self.doc_ends = np.cumsum(lengths + 1)  # (D,) one past that newline

    @property
    def tables(self) -> Characters:
        return characters()

    @property
    def num_docs(self) -> int:
        return len(self.texts)

    def text_of(self, start: int, end: int) -> str:
        """Return the text between two positions of the block."""
        return self.code_points[start:end].tobytes().decode("utf-32-le", "surrogatepass")

    # --- tokens ---

    @cached_property
    def kinds(self) -> np.ndarray:
        """(N,) uint8 with JOINER resolved: MARK inside a word, PUNCT elsewhere."""
        cp = self.code_points
        kinds = self.tables.kind.take(cp, mode="clip")
        at = np.flatnonzero(kinds == JOINER)
        if len(at):
            before, after = kinds[np.maximum(at - 1, 0)], kinds[np.minimum(at + 1, len(kinds) - 1)]
            inside = (before == WORD) & (after == WORD) & ((cp[at] != DOT) & (cp[at] != COMMA))  # an apostrophe
            inside[at == 0] = False
            kinds[at] = np.where(inside, MARK, PUNCT)
        if self.inner_dots:
            self._join(kinds)
        return kinds

    def _join(self, kinds: np.ndarray) -> None:
        """Keep ASCII punctuation between word characters in the word (os.path, open(2, 3.14, a::b, UTF-8) and a mark that opens one (-e, /proc).

        As spaCy's rules for English do, which the thresholds of Gopher's and FineWeb's rules were used with. What divides: a hyphen
        or comma between letters, `:<>=/` before a letter, an operator between digits, two dots or more, a dot between a small
        letter and a capital (a missing space after a sentence).
        """
        cp, flags = self.code_points, self.tables.flags
        punct = np.flatnonzero((kinds == PUNCT) & (cp < 0x80))
        if not len(punct):
            return
        opens = np.append(True, np.diff(punct) > 1)
        first, last = punct[opens], punct[np.append(opens[1:], True)]
        before, after = np.maximum(first - 1, 0), last + 1  # the newline at the end is never punctuation
        word_after = kinds[after] == WORD
        leading = word_after & (first == last) & ((kinds[before] == SPACE) | (first == 0)) & np.isin(cp[first], _LEADING)
        opening = first[leading]
        between = word_after & (kinds[before] == WORD) & (first > 0)
        first, last, before, after = first[between], last[between], before[between], after[between]
        mark, left, right = cp[first], flags.take(cp[before], mode="clip"), flags.take(cp[after], mode="clip")
        alpha_left, alpha_right, digits = (left & ALPHA) != 0, (right & ALPHA) != 0, (left & right & DIGIT) != 0
        divides = np.isin(mark, _BEFORE_LETTER) & alpha_right
        divides |= np.isin(mark, _BETWEEN_LETTERS) & alpha_left & alpha_right
        divides |= np.isin(mark, _BETWEEN_DIGITS) & digits
        divides |= (mark == DOT) & alpha_left & ((left & UPPER) == 0) & ((right & UPPER) != 0)
        divides &= first == last
        divides |= (last > first) & ((mark == DOT) & (cp[last] == DOT) | (mark == HYPHEN) & (cp[last] == HYPHEN) & alpha_left & alpha_right)
        first, last = first[~divides], last[~divides]
        lengths = last - first + 1
        kinds[np.repeat(first, lengths) + _count_up(lengths)] = MARK
        kinds[opening] = WORD

    @cached_property
    def token_starts(self) -> np.ndarray:
        """(T,) words, single characters and runs of one punctuation mark."""
        return np.flatnonzero(self._start_mask)

    @cached_property
    def _start_mask(self) -> np.ndarray:
        k, cp = self.kinds, self.code_points
        before = np.empty_like(k)
        before[0], before[1:] = SPACE, k[:-1]
        starts = (k == SINGLE) | ((k == WORD) & (before != WORD) & (before != MARK)) | ((k == MARK) & (before == SPACE))
        punct = np.flatnonzero(k == PUNCT)
        if len(punct):
            starts[punct] = (cp[punct] != cp[np.maximum(punct - 1, 0)]) | (before[punct] != PUNCT) | self.tables.lone.take(cp[punct], mode="clip")
            if punct[0] == 0:
                starts[0] = True
        return starts

    @cached_property
    def token_ends(self) -> np.ndarray:
        """(T,) one past each token's last code point."""
        last = self.kinds != SPACE
        last[:-1] &= (self.kinds[1:] == SPACE) | self._start_mask[1:]
        return np.flatnonzero(last) + 1

    @cached_property
    def token_docs(self) -> np.ndarray:
        """(T,) int64 number of each token's document."""
        return self._docs_of(self.token_starts)

    @cached_property
    def token_kinds(self) -> np.ndarray:
        return self.kinds[self.token_starts]

    @cached_property
    def token_lengths(self) -> np.ndarray:
        return self.token_ends - self.token_starts

    @cached_property
    def word_starts(self) -> np.ndarray:
        """Starts of the tokens that are words or single characters: what shingles are made of."""
        starts = self.token_starts
        kinds = self.kinds[starts]
        return starts[(kinds == WORD) | (kinds == SINGLE)]

    def hashes(self, values: np.ndarray, starts: np.ndarray) -> np.ndarray:
        """Hash the spans from each start to the next by the values of their code points (a table of Characters).

        What has value 0 doesn't count, so a span may run on over spaces. Independent of the position in the block.
        """
        return hash_spans(values.take(self.code_points, mode="clip"), starts)

    @cached_property
    def raw_token_hashes(self) -> np.ndarray:
        """(T,) uint64 of the tokens as they stand."""
        return self.hashes(self.tables.raw, self.token_starts)

    # --- lines ---

    @cached_property
    def _newlines(self) -> np.ndarray:
        return np.flatnonzero(self.code_points == NEWLINE)

    @cached_property
    def line_spans(self) -> tuple[np.ndarray, np.ndarray]:
        """(L,), (L,) start and end of every line, white space around it left out; both equal for a blank line."""
        ends = self._newlines
        starts = np.empty_like(ends)
        starts[0], starts[1:] = 0, ends[:-1] + 1
        solid = np.flatnonzero(self.kinds != SPACE)
        first, last = np.searchsorted(solid, starts), np.searchsorted(solid, ends)
        blank = first == last
        solid = np.append(solid, 0)
        return np.where(blank, starts, solid[first]), np.where(blank, starts, solid[last - 1] + 1)

    @cached_property
    def line_docs(self) -> np.ndarray:
        return self._docs_of(self._newlines)

    @cached_property
    def line_blank(self) -> np.ndarray:
        starts, ends = self.line_spans
        return starts == ends

    @cached_property
    def line_first_tokens(self) -> np.ndarray:
        """(L + 1,) number of the first token at or after the start of each line."""
        starts = np.append(self.line_spans[0], len(self.code_points))
        return np.searchsorted(self.token_starts, starts)

    def span_hashes(self, first_tokens: np.ndarray) -> np.ndarray:
        """Hash runs of tokens, each from its first token to the next run's; every run must have a token."""
        return hash_spans(self.raw_token_hashes, first_tokens)

    # --- sums ---

    def _docs_of(self, positions: np.ndarray) -> np.ndarray:
        return np.searchsorted(self.doc_ends, positions, side="right")

    def per_doc(self, docs: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
        """(D,) count entries, or sum weights, by document."""
        return np.bincount(docs, weights, minlength=self.num_docs)


def _count_up(lengths: np.ndarray) -> np.ndarray:
    """0, 1, … for each length, one after another."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - lengths, lengths)


@cache
def _powers() -> tuple[np.ndarray, np.ndarray]:
    """BASE^i and BASE^-i mod 2^64, i < SPAN."""
    base, inverse = BASE, pow(BASE, -1, 1 << 64)
    up, down = np.empty(SPAN, np.uint64), np.empty(SPAN, np.uint64)
    x = y = 1
    for i in range(SPAN):
        up[i], down[i] = x, y
        x, y = x * base & 0xFFFFFFFFFFFFFFFF, y * inverse & 0xFFFFFFFFFFFFFFFF
    return up, down


def hash_spans(values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Hash runs of uint64 values: sum of values[s + i] * BASE^i over each run, mixed. A run ends where the next starts.

    Works in strides of at most SPAN values that end where a run ends. A longer run counts with a hash of its strides.
    """
    if not len(starts):
        return np.empty(0, np.uint64)
    up, down = _powers()
    stops = np.append(starts[1:], len(values))
    out = np.empty(len(starts), np.uint64)
    i = 0
    while i < len(starts):
        base = int(starts[i])
        j = int(np.searchsorted(stops, base + SPAN, side="right"))
        if j <= i:
            out[i] = _long_run(values[base : int(stops[i])])
            i += 1
            continue
        relative = starts[i:j] - base
        weighted = values[base : int(stops[j - 1])] * up[: int(stops[j - 1]) - base]
        out[i:j] = np.add.reduceat(weighted, relative) * down.take(relative)
        i = j
    return fmix64(out)


def _long_run(values: np.ndarray) -> np.uint64:
    """Hash one run longer than SPAN: a hash of its strides, those without value left out."""
    up, _ = _powers()
    total = np.zeros(1, np.uint64)
    for at in range(0, len(values), SPAN):
        part = values[at : at + SPAN]
        if part.any():
            total += (part * up[: len(part)]).sum(dtype=np.uint64, keepdims=True)
            if at:
                fmix64(total)
    return total[0]


class Rolling:
    """Hashes of n-grams for growing n: `advance(n)` returns the hash of the n tokens from each position on (shorter at the end)."""

    def __init__(self, hashes: np.ndarray) -> None:
        self._hashes, self._n = hashes, 1
        self._sum = hashes.copy()

    def advance(self, n: int) -> np.ndarray:
        """Return (T - n + 1,) uint64; n must not shrink between calls."""
        while self._n < n:
            self._sum = self._sum[:-1] if len(self._sum) else self._sum
            self._sum *= np.uint64(BASE)
            self._sum += self._hashes[self._n : self._n + len(self._sum)]
            self._n += 1
        return fmix64(self._sum.copy())


def group_equal(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sort keys; return `(order, first)`: positions sorted by key, then by position, and whether each opens a new key.

    The position is packed into the low bits, since sorting values is several times faster than argsort. So keys are
    compared by their upper 64 - log2(T) bits: 48 for a block, with one false match expected in 100,000 blocks.
    """
    bits = np.uint64(max(int(len(keys) - 1).bit_length(), 1))
    low = np.uint64((1 << int(bits)) - 1)
    packed = (keys & ~low) | np.arange(len(keys), dtype=np.uint64)
    packed.sort()
    first = np.empty(len(keys), bool)
    if len(keys):
        first[0] = True
        np.not_equal(packed[1:] >> bits, packed[:-1] >> bits, out=first[1:])
    return (packed & low).astype(np.int64), first


class HashSet:
    """Where hashes lie in a small set: one look at 14 bits leaves few to search for."""

    def __init__(self, hashes: np.ndarray) -> None:
        self.hashes = np.sort(hashes)
        self._seen = np.zeros(1 << 14, bool)
        self._seen[(self.hashes & np.uint64(0x3FFF)).astype(np.int64)] = True

    def find(self, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the positions of `hashes` that are in the set, and their numbers in `self.hashes`."""
        maybe = np.flatnonzero(self._seen.take((hashes & np.uint64(0x3FFF)).astype(np.int64)))
        if not len(self.hashes):
            return maybe, maybe
        at = np.searchsorted(self.hashes, hashes[maybe])
        at[at == len(self.hashes)] = 0
        hit = self.hashes[at] == hashes[maybe]
        return maybe[hit], at[hit]


def by_doc(hashes: np.ndarray, docs: np.ndarray) -> np.ndarray:
    """Mix the document's number into hashes, so that equal ones in different documents differ."""
    return fmix64(hashes + docs.astype(np.uint64) * np.uint64(0xD6E8FEB86659FD93))
