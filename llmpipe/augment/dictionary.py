"""Read a dictionary of synonyms: TSV, JSON, or the lines of Cilin (同义词词林).

    read_dictionary(Path("synonyms.tsv"))["quick"]  ->  ("fast", "rapid")
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from llmpipe.errors import InputError

_CILIN = re.compile(r"[A-Z][a-z]\d{2}[A-Z]\d{2}([=#@])")


def read_dictionary(path: Path) -> dict[str, tuple[str, ...]]:
    """Return the synonyms of each word, in lower case, in the order of the file, none of them the word itself."""
    try:
        text = pa.input_stream(str(path), compression="detect").read().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as a dictionary ({error})", hint="a dictionary is UTF-8: TSV, JSON or Cilin") from None
    entries = _json(text, path) if text.lstrip()[:1] in ("{", "[") else _lines(text, path)
    out: dict[str, dict[str, None]] = {}
    for word, synonyms in entries:
        known = out.setdefault(word.strip().lower(), {})
        known.update((s.strip(), None) for s in synonyms if s.strip() and s.strip().lower() != word.strip().lower())
    return {word: tuple(synonyms) for word, synonyms in out.items() if word and synonyms}


def _lines(text: str, path: Path) -> Iterator[tuple[str, list[str]]]:
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        if m := _CILIN.match(line):
            if m[1] == "=":  # `#` are related words, `@` words that stand alone
                group = line[m.end() :].split()
                yield from ((word, group) for word in group)
            continue
        word, tab, rest = line.partition("\t")
        if not tab:
            raise InputError(f"{path}: line {number} has no tab between a word and its synonyms", hint="TSV is word<TAB>synonym<TAB>synonym")
        yield word, re.split(r"[\t,，;；、|]", rest)


def _json(text: str, path: Path) -> Iterator[tuple[str, list[str]]]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON ({error})") from None
    if isinstance(value, list):  # groups of words that mean the same
        pairs = [(word, group) for group in value if isinstance(group, list) for word in group]
    else:
        pairs = [(word, [given] if isinstance(given, str) else given) for word, given in value.items()]
    for word, synonyms in pairs:
        if not isinstance(word, str) or not isinstance(synonyms, list) or not all(isinstance(s, str) for s in synonyms):
            raise InputError(f"{path}: {word!r} has no list of words", hint='JSON is {"word": ["synonym", …]} or [["equal", "words"], …]')
        yield word, synonyms
