"""Change some words of a text: replace by synonyms, swap, insert synonyms, delete (EDA; Wei and Zou 2019, section 2).

    editor = Editor({"quick": ("fast",)}, ("synonym", "swap"), alpha=0.1, num_copies=2, seed=1337)
    editor.copies("The quick brown fox.", "row 7", Counter())  ->  [(0, "The fast brown fox."), (1, "The brown quick fox.")]

A word is a run of letters; in Chinese the longest match in the dictionary, else a character. Numbers, punctuation and white
space stay as they are. Each copy's random numbers come from the seed, the row's id and the copy's number.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import regex

_PIECES = regex.compile(r"\p{Han}+|[\p{L}\p{M}]+(?:['’-][\p{L}\p{M}]+)*(?![\p{N}_])|\s+|[^\p{L}\s]+|.", regex.DOTALL)
_HAN = regex.compile(r"\p{Han}")
_WORD = regex.compile(r"[\p{L}\p{M}]+(?:['’-][\p{L}\p{M}]+)*")
NEW_TOKEN = "\x01"
"""Stands between a token and the one inserted behind it."""
TRIES = 3
"""For a copy that comes out like the source or like another copy."""


class Editor:
    """Makes copies of texts; holds the dictionary in the form that look-ups want."""

    def __init__(self, synonyms: Mapping[str, Sequence[str]], operations: Sequence[str], *, alpha: float, num_copies: int, seed: int) -> None:
        self.synonyms, self.operations = synonyms, tuple(operations)
        self.alpha, self.num_copies, self.seed = alpha, num_copies, seed
        lengths: dict[str, set[int]] = defaultdict(set)
        for word in synonyms:
            if _HAN.match(word):
                lengths[word[0]].add(len(word))
        self._lengths = {first: sorted(found, reverse=True) for first, found in lengths.items()}
        self._operations: dict[str, Callable[[list[str], list[int], np.random.Generator, bool], list[str] | None]] = {
            "synonym": self._synonym, "swap": self._swap, "insert": self._insert, "delete": self._delete,
        }  # fmt: skip

    def copies(self, text: str, source: str, counts: Counter[str]) -> list[tuple[int, str]]:
        """Return number and text of the copies that differ from the text and from each other."""
        pieces = self.cut(text)
        units = [i for i, piece in enumerate(pieces) if _WORD.fullmatch(piece)]
        made = self.vary(pieces, units, source, counts, spaced=True)
        return [(number, "".join(changed)) for number, changed in made]

    def vary(self, pieces: list[str], units: list[int], source: str, counts: Counter[str], *, spaced: bool) -> list[tuple[int, list[str]]]:
        """Change the pieces that are `units`. `spaced`: the pieces hold the spaces between words, as those of a text do."""
        if not units:
            return []
        seen = {"".join(pieces) if spaced else "\x00".join(pieces)}
        out = []
        for number in range(self.num_copies):
            for attempt in range(TRIES):
                rng = self.generator(source, number, attempt)
                name = self.operations[(number + int(rng.integers(len(self.operations))) * (attempt > 0)) % len(self.operations)]
                changed = self._operations[name](list(pieces), units, rng, spaced)
                key = None if changed is None else ("" if spaced else "\x00").join(changed)
                if key is not None and key.strip() and key not in seen:
                    seen.add(key)
                    out.append((number, changed))
                    counts[f"operation.{name}"] += 1
                    break
        return out

    def generator(self, source: str, number: int, attempt: int = 0) -> np.random.Generator:
        digest = hashlib.blake2b(f"{self.seed}\x00{source}\x00{number}\x00{attempt}".encode("utf-8", "surrogatepass"), digest_size=16).digest()
        return np.random.default_rng(int.from_bytes(digest))

    def cut(self, text: str) -> list[str]:
        """Cut a text in pieces that make it up again: words, white space, the rest."""
        out: list[str] = []
        for piece in _PIECES.findall(text):
            if _HAN.match(piece):
                at = 0
                while at < len(piece):
                    size = next((n for n in self._lengths.get(piece[at], ()) if piece[at : at + n] in self.synonyms), 1)
                    out.append(piece[at : at + size])
                    at += size
            else:
                out.append(piece)
        return out

    # --- the four operations: the changed pieces, or None where there is nothing to change; units keep their numbers ----

    def _number(self, units: Sequence[int]) -> int:
        return max(1, int(self.alpha * len(units) + 0.5))

    def _known(self, pieces: list[str], units: Sequence[int]) -> list[int]:
        return [i for i in units if pieces[i].lower() in self.synonyms]

    def _choose(self, word: str, rng: np.random.Generator) -> str:
        known = self.synonyms[word.lower()]
        chosen = known[int(rng.integers(len(known)))]
        return chosen[:1].upper() + chosen[1:] if word[:1].isupper() else chosen

    def _synonym(self, pieces: list[str], units: list[int], rng: np.random.Generator, spaced: bool) -> list[str] | None:
        known = self._known(pieces, units)
        if not known:
            return None
        for i in rng.permutation(known)[: self._number(units)].tolist():
            pieces[i] = self._choose(pieces[i], rng)
        return pieces

    def _swap(self, pieces: list[str], units: list[int], rng: np.random.Generator, spaced: bool) -> list[str] | None:
        if len(units) < 2:
            return None
        for _ in range(self._number(units)):
            a, b = rng.choice(len(units), 2, replace=False).tolist()
            a, b = units[a], units[b]
            pieces[a], pieces[b] = pieces[b], pieces[a]
        return pieces

    def _insert(self, pieces: list[str], units: list[int], rng: np.random.Generator, spaced: bool) -> list[str] | None:
        known = self._known(pieces, units)
        if not known:
            return None
        words = [pieces[i].lower() for i in known]
        for _ in range(self._number(units)):
            word = self._choose(words[int(rng.integers(len(words)))], rng)
            i = units[int(rng.integers(len(units)))]
            gap = NEW_TOKEN if not spaced else "" if _HAN.match(word) else " "
            pieces[i] = f"{pieces[i]}{gap}{word}"
        return pieces

    def _delete(self, pieces: list[str], units: list[int], rng: np.random.Generator, spaced: bool) -> list[str] | None:
        if len(units) < 2:
            return None
        gone = rng.choice(len(units), min(self._number(units), len(units) - 1), replace=False).tolist()
        for i in (units[g] for g in gone):
            pieces[i] = ""
            before, after = pieces[i - 1] if i else "\n", pieces[i + 1] if i + 1 < len(pieces) else "\n"
            if not spaced:
                continue
            if before.isspace() and "\n" not in before and not after[:1].isalnum():
                pieces[i - 1] = ""
            elif after.isspace() and "\n" not in after and before[-1:] == "\n":
                pieces[i + 1] = ""
        return pieces
