"""RefinedWeb's corrections of lines, with what does the same work in Chinese: take out what belongs to the page, not to the text.

    LineCorrections().rewrite(stats)   ->   {number of the document: its text without such lines}

A line goes when more than half of it is capitals, when it is a number, a counter (`3 likes`, `12万次播放`) or a single word.
From short lines goes the part that a page puts there: `Sign-in …`, `… Read more...`, `items in cart`, 登录, 阅读全文, 展开全文.
A page that loses more than 5 % of its words this way is an interface with some text in it, and is dropped.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from llmpipe.clean.statistics import Stats
from llmpipe.text.characters import DIGIT, UPPER

_COUNTED = "likes?|shares?|comments?|retweets?|reposts?|quotes?|bookmarks?|upvotes?|downvotes?|downloads?|views?|followers?|replies|reply"
_COUNTED_ZH = "点赞|點贊|赞|讚|评论|評論|转发|轉發|分享|收藏|阅读|閱讀|浏览|瀏覽|播放|观看|觀看|下载|下載|关注|關注|粉丝|粉絲|回复|回覆|讨论|討論|喜欢|喜歡"
_COUNTER = re.compile(
    rf"\W*\d[\d,.]*\s*[kmb]?\s+(?:{_COUNTED})\W*|\W*\d[\d,.]*\s*[万亿萬億千kw]?\+?\s*(?:次|人|条|條|个|個|篇|位)?\s*(?:{_COUNTED_ZH})(?:量|数|數)?\W*|\W*(?:{_COUNTED_ZH})(?:量|数|數|次数|次數)?\s*[:：(（]?\s*\d[\d,.]*\s*[万亿萬億千kw]?\+?\s*(?:次|人|条|條|个|個)?\W*",
    re.IGNORECASE,
)
_PREFIX = re.compile(r"(?:sign[- ]in|登录|登錄|登入)(?:\b|(?=[\s/|｜注]))[\s/|｜]*(?:注册|註冊)?\s*", re.IGNORECASE)
_SUFFIX = re.compile(r"\s*(?:read more|阅读更多|閱讀更多|查看更多|阅读全文|閱讀全文|查看全文|展开全文|展開全文|更多)\s*(?:\.\.\.|…+|>+|»|→)+$|\s*(?:阅读全文|閱讀全文|查看全文|展开全文|展開全文)$", re.IGNORECASE)
_ANYWHERE = re.compile(r"\s*items in cart\s*|购物车(?:中|里)?有\s*\d+\s*件商品|購物車(?:中|裡)?有\s*\d+\s*件商品", re.IGNORECASE)
_SUSPECT = re.compile(r"sign[- ]in|登[录錄入]|read more|更多|全文|items in cart|[购購]物[车車]", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class LineCorrections:
    """The parameters of the corrections and the line work; see `LineFilter` for the check."""

    max_uppercase: float | None = 0.5
    """Drop lines with a larger share of capitals."""
    max_digits: float | None = 0.999999
    """Drop lines with a larger share of digits."""
    counters: bool = True
    """Drop lines that count likes, views, 点赞, 阅读 …"""
    min_words_per_line: float | None = 2
    substrings: bool = True
    """Take `Read more...`, `Sign-in`, `items in cart`, 登录, 展开全文 … out of short lines."""
    short_line_words: float = 10
    """What is a short line, for `counters` and `substrings`."""
    max_removed_words: float | None = 0.05
    """Drop the page when a larger share of its words was in what was taken out."""

    def removed_words(self, stats: Stats) -> np.ndarray:
        """(D,) share of the words that `rewrite` takes out."""
        kept, edited = self._lines(stats)
        lost = np.where(kept, 0.0, stats.line_words)
        for line, (_, words) in edited.items():
            lost[line] += words
        docs = stats.line_spans[2]
        return stats.block.per_doc(docs, lost) / np.maximum(stats.block.per_doc(docs, stats.line_words), 1e-9)

    def rewrite(self, stats: Stats) -> dict[int, str]:
        """Return the new texts of the documents that change, by number. Blank lines and indentation of the rest stay."""
        kept, edited = self._lines(stats)
        docs = stats.line_spans[2]
        touched = set(docs[~kept].tolist()) | {int(docs[line]) for line in edited}
        out = {}
        for doc in sorted(touched):
            lines = stats.block.texts[doc].split("\n")
            first = int(np.searchsorted(stats.block.line_docs, doc))
            own = slice(*np.searchsorted(docs, (doc, doc + 1)))
            for place, keep, line in zip((stats.solid_lines[own] - first).tolist(), kept[own].tolist(), range(own.start, own.stop), strict=True):
                if not keep:
                    lines[place] = None
                elif line in edited:
                    lines[place] = edited[line][0]
            out[doc] = re.sub("\n{4,}", "\n\n\n", "\n".join(line for line in lines if line is not None)).strip("\n").rstrip()
        return out

    def _lines(self, stats: Stats) -> tuple[np.ndarray, dict[int, tuple[str, float]]]:
        """(lines that are not blank,) bool: kept; and the lines that lose a part: their new text and the words that went."""
        cached = stats.cache.get(self)
        if cached is None:
            cached = stats.cache[self] = self._look_at_lines(stats)
        return cached

    def _look_at_lines(self, stats: Stats) -> tuple[np.ndarray, dict[int, tuple[str, float]]]:
        starts, ends, docs = stats.line_spans
        kept, words = np.ones(len(starts), bool), stats.line_words
        edited: dict[int, tuple[str, float]] = {}
        if self.max_uppercase is not None:
            kept &= stats.line_share(UPPER) <= self.max_uppercase
        digits = stats.line_share(DIGIT)
        if self.max_digits is not None:
            kept &= digits <= self.max_digits
        if self.min_words_per_line is not None:
            kept &= words >= self.min_words_per_line
        short = words <= self.short_line_words
        if self.counters:
            for line in np.flatnonzero(short & (digits > 0) & (ends - starts <= 60)).tolist():
                if kept[line] and _COUNTER.fullmatch(stats.block.text_of(int(starts[line]), int(ends[line]))):
                    kept[line] = False
        if self.substrings:
            at = [m.start() for m in _SUSPECT.finditer("\n".join(stats.block.texts))]
            for line in np.unique(np.searchsorted(starts, at, side="right") - 1).tolist():
                if not (short[line] and kept[line]):
                    continue
                text = stats.block.text_of(int(starts[line]), int(ends[line]))
                prefix = _PREFIX.match(text)
                new = _SUFFIX.sub("", _ANYWHERE.sub("", text[prefix.end() :] if prefix else text))
                if new != text and not new.strip():
                    kept[line] = False
                elif new != text:
                    share = 1 - len(new) / len(text) if stats.unspaced[docs[line]] else 1 - len(new.split()) / len(text.split())
                    edited[line] = (new, float(words[line] * share))
        return kept, edited
