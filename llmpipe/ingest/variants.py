"""Resolve the markup for Chinese variants: -{zh-hans:计算机;zh-hant:電腦}- and the rules that a page sets for itself.

    conversion = Conversion("zh-hans")
    conversion.markup("zh-hans:计算机;zh-hant:電腦")      # 计算机
    conversion.markup("A|zh-cn:信息;zh-tw:資訊")          # 信息, and 資訊 elsewhere on the page becomes 信息 (`apply`)

Flags: A shows and sets a rule, H sets one in silence, T sets the title, - takes a rule back, R and none protect text,
D and N name. What a rule does not name stays as written: whole characters are not converted.
"""

from __future__ import annotations

import re
from typing import Literal

Variant = Literal["zh-hans", "zh-hant", "zh-cn", "zh-sg", "zh-my", "zh-tw", "zh-hk", "zh-mo"]
_FALLBACK = {
    "zh-hans": ("zh-hans", "zh-cn", "zh-sg", "zh-my", "zh"),
    "zh-cn": ("zh-cn", "zh-hans", "zh-sg", "zh-my", "zh"),
    "zh-sg": ("zh-sg", "zh-my", "zh-hans", "zh-cn", "zh"),
    "zh-my": ("zh-my", "zh-sg", "zh-hans", "zh-cn", "zh"),
    "zh-hant": ("zh-hant", "zh-tw", "zh-hk", "zh-mo", "zh"),
    "zh-tw": ("zh-tw", "zh-hant", "zh-hk", "zh-mo", "zh"),
    "zh-hk": ("zh-hk", "zh-mo", "zh-hant", "zh-tw", "zh"),
    "zh-mo": ("zh-mo", "zh-hk", "zh-hant", "zh-tw", "zh"),
}
_CODES = {*_FALLBACK, "zh"}
_ITEM = re.compile(r"\s*(?:([^;]*?)=>\s*)?(zh(?:-[a-z]{2,4})?)\s*:(.*)", re.S)
_FLAGS = re.compile(r"[\sA-Z;+\-]*$|[\sa-z;-]*$")
MAX_RULES = 300
MAX_ITEM_CHARS = 2_000


class Conversion:
    """The variant wanted and the rules of one page."""

    def __init__(self, variant: str) -> None:
        self._order = _FALLBACK[variant]
        self._rules: dict[str, str] = {}
        self.title: str | None = None

    def markup(self, inner: str) -> str:
        """Resolve what stands between `-{` and `}-`."""
        head, bar, rest = inner.partition("|")
        if not bar or not _FLAGS.match(head):
            return self.chosen(inner) or inner.strip()
        flags = {f.strip() for f in head.split(";")}
        if flags & _CODES or "R" in flags:  # -{zh;zh-hans|raw}-
            return rest.strip()
        chosen = self.chosen(rest)
        if "T" in flags:
            self.title = chosen or rest.strip()
        if "-" in flags:
            for text in _items(rest):
                self._rules.pop(text[2], None)
            return ""
        if flags & {"A", "H", "+"}:
            self.add_rule(rest)
        return (chosen or rest.strip()) if not flags & {"T", "H", "+"} or "A" in flags else ""

    def chosen(self, text: str) -> str | None:
        """The text for the variant wanted, None where there are no variants."""
        found = {code: value for _, code, value in reversed(_items(text))}
        if not found:
            return None
        return next((found[code] for code in self._order if code in found), next(iter(found.values())))

    def add_rule(self, text: str) -> None:
        """Let every other variant in `text` become the one wanted, wherever it stands on the page."""
        target = next((code for code in self._order for _, c, _ in _items(text) if c == code), None)
        if target is None or len(self._rules) > MAX_RULES:
            return
        wanted = self.chosen(text) or ""
        for source, code, value in _items(text):
            if source and code in self._order:  # one way: what is written => how this variant shows it
                self._rules[source] = value
            elif value != wanted and value:
                self._rules[value] = wanted

    def apply(self, text: str) -> str:
        """Apply the page's rules, the longest first."""
        rules = {k: v for k, v in self._rules.items() if k and k != v}
        if not rules:
            return text
        pattern = re.compile("|".join(re.escape(k) for k in sorted(rules, key=len, reverse=True)))
        return pattern.sub(lambda m: rules[m[0]], text)


def _items(text: str) -> list[tuple[str, str, str]]:
    """Cut `zh-hans:a;zh-hant:b` into (source of a one-way rule, code, text); a semicolon within a text divides nothing."""
    out: list[tuple[str, str, str]] = []
    for piece in text.split(";"):
        match = _ITEM.fullmatch(piece) if len(piece) <= MAX_ITEM_CHARS else None
        if match is not None and match[2] in _CODES:
            out.append(((match[1] or "").strip(), match[2], match[3].strip()))
        elif out and piece.strip():
            source, code, value = out[-1]
            out[-1] = (source, code, f"{value};{piece}".strip())
    return out
