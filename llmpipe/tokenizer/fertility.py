"""How far tokenizers compress text: UTF-8 bytes a token and tokens a character, by language and source, side by side.

    rows = measure({"this": ours, "gpt2_like": theirs}, [Path("docs")])

What more bytes a token buys: a window holds more text, and the same text costs fewer steps; what it costs is vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from llmpipe.data.docs import read_docs
from llmpipe.tokenizer.sample import primary

BYTES_PER_GROUP = 200_000  # of each language and source: enough for three digits, a tenth of a second
MAX_GROUPS = 40


def measure(tokenizers: Mapping[str, Tokenizer], paths: Iterable[Path]) -> list[dict[str, Any]]:
    """Encode the first texts of each language and source with each tokenizer.

    Return a row for each language (source null: all of its sources) and for each source of a language that has several.
    `bytes_per_token` and `tokens_per_character` are of the first tokenizer, which is also compared with the others:
    `against` says how many times as many bytes a token of it holds. `lossless`: the share of texts that come back as they were.
    """
    names = list(tokenizers)
    groups: dict[tuple[str, str], dict[str, int]] = {}
    for path in paths:
        for batch in read_docs(path, columns=["text", "language", "source"]):
            for text, tag, source in zip(*(batch.column(c).to_pylist() for c in ("text", "language", "source")), strict=True):
                key = (primary(tag), source or "")
                if key not in groups and len(groups) >= MAX_GROUPS:
                    continue
                group = groups.setdefault(key, {"texts": 0, "bytes": 0, "characters": 0, "lossless": 0, **dict.fromkeys(names, 0)})
                if group["bytes"] < BYTES_PER_GROUP:
                    _add(group, text[:BYTES_PER_GROUP], tokenizers)
    rows = []
    for language in sorted({k[0] for k in groups}):
        sources = {source: group for (tag, source), group in sorted(groups.items()) if tag == language}
        rows.append(_row(language, None, [*sources.values()], names))
        if len(sources) > 1:
            rows += [_row(language, source, [group], names) for source, group in sources.items()]
    return [row for row in rows if row is not None]


def _add(group: dict[str, int], text: str, tokenizers: Mapping[str, Tokenizer]) -> None:
    group["texts"] += 1
    group["bytes"] += len(text.encode())
    group["characters"] += len(text)
    for number, (name, tokenizer) in enumerate(tokenizers.items()):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        group[name] += len(ids)
        if number == 0:
            group["lossless"] += tokenizer.decode(ids, skip_special_tokens=False) == text


def _row(language: str, source: str | None, groups: list[dict[str, int]], names: list[str]) -> dict[str, Any] | None:
    total = {key: sum(group[key] for group in groups) for key in groups[0]}
    if not all(total[name] for name in names):
        return None
    first = total[names[0]]
    return {
        "language": language,
        "source": source,
        "bytes": total["bytes"],
        "bytes_per_token": round(total["bytes"] / first, 3),
        "tokens_per_character": round(first / total["characters"], 3),
        "lossless": round(total["lossless"] / total["texts"], 3),
        "against": {name: round(total[name] / first, 3) for name in names[1:]},
    }
