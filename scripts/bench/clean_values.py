"""Compare the rules' values with datatrove's on the same texts, with our tokens in both and with its own tokenizer (spaCy, jieba).

    VENV/bin/python scripts/bench/clean_values.py MANUALS [--language en] [--docs 200]

Run it with the Python of an environment that has datatrove (see clean.py) and numpy, from the root of the repository with
PYTHONPATH=. ; it needs nothing else of llmpipe's. Prints, for each value: the largest difference with equal tokens, the median
difference with datatrove's own tokens, and on how many documents the published threshold decides differently then.
"""

from __future__ import annotations

import argparse
import importlib.metadata  # noqa: F401  # datatrove uses it without importing it
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.filters import C4QualityFilter
from datatrove.pipeline.filters.gopher_quality_filter import STOP_WORDS
from datatrove.pipeline.filters.gopher_repetition_filter import find_all_duplicate, find_duplicates, find_top_duplicate, get_n_grams
from datatrove.utils.text import PUNCTUATION_SET, TERMINAL_PUNCTUATION, split_into_words

from llmpipe.clean.c4 import C4
from llmpipe.clean.normalize import normalize
from llmpipe.clean.presets import PRESETS
from llmpipe.clean.rules import C4Filter, Check
from llmpipe.clean.statistics import Stats
from llmpipe.text.block import Block

CODES = {"en": "eng", "zh": "zho_Hani"}


def tokens_of(block: Block) -> list[str]:
    return [block.text_of(int(s), int(e)) for s, e in zip(block.token_starts, block.token_ends, strict=True)]


def reference(text: str, words: list[str], stop_words: tuple[str, ...]) -> dict[str, float]:
    """The values that datatrove's filters compare, by our names."""
    out: dict[str, float] = {}
    solid = [w for w in words if any(c not in PUNCTUATION_SET for c in w)]
    lines = text.splitlines()
    count = max(len(words), 1)
    out["num_words"] = len(solid)
    out["mean_word_length"] = float(np.mean([len(w) for w in solid])) if solid else 0.0
    out["hash_ratio"] = text.count("#") / count
    out["ellipsis_ratio"] = (text.count("...") + text.count("…")) / count
    out["bullet_lines"] = sum(line.lstrip()[:1] in ("•", "-") for line in lines) / max(len(lines), 1)
    out["ellipsis_lines"] = sum(line.rstrip().endswith(("...", "…")) for line in lines) / max(len(lines), 1)
    out["alpha_words"] = sum(any(c.isalpha() for c in w) for w in words) / count
    out["stop_words"] = len(set(stop_words) & set(words))
    paragraphs = list(_split(text.strip(), blank=True))
    again, chars = find_duplicates(paragraphs)
    out["dup_para_frac"], out["dup_para_char_frac"] = again / len(paragraphs), chars / len(text)
    nonempty = _split(text, blank=False)
    again, chars = find_duplicates(nonempty)
    out["dup_line_frac"], out["dup_line_char_frac"] = again / len(nonempty), chars / len(text)
    for n in (2, 3, 4):
        grams = get_n_grams(words, n)
        out[f"top_{n}_gram"] = find_top_duplicate(grams) / len(text) if grams else 0.0
    for n in range(5, 11):
        out[f"dup_{n}_gram"] = find_all_duplicate(words, n) / len(text)
    full = [line for line in text.split("\n") if line.strip()]
    out["punctuated_lines"] = sum(line.endswith(tuple(TERMINAL_PUNCTUATION)) for line in full) / len(full)
    out["short_lines"] = sum(len(line) <= 30 for line in full) / len(full)
    out["dup_line_chars"] = find_duplicates(full)[1] / len(text.replace("\n", ""))
    out["newline_ratio"] = text.count("\n") / count
    return out


def _split(text: str, *, blank: bool) -> list[str]:
    import re

    return re.split(r"\n{2,}" if blank else r"\n+", text)


def ours(texts: list[str], language: str) -> dict[str, Check]:
    """Our checks over all texts, by statistic."""
    stats = Stats(Block(texts), [language] * len(texts))
    out = {}
    for rule in PRESETS["fineweb"]()[language]:
        if not isinstance(rule, C4Filter):
            out.update((check.statistic, check) for check in rule(stats))
    if language == "zh":  # what FineWeb-2 turns off for Chinese, compared all the same
        for rule in PRESETS["fineweb"]()["en"]:
            if not isinstance(rule, C4Filter):
                out.update((check.statistic, check) for check in rule(stats) if check.statistic not in out)
    return out


def compare_c4(texts: list[str]) -> None:
    """Texts and verdicts of C4's line rules."""
    for terminal in (True, False):
        settings = C4Filter(terminal_punctuation=terminal)
        theirs = C4QualityFilter(filter_no_terminal_punct=terminal, min_num_sentences=-1)
        by_sentences = C4QualityFilter(filter_no_terminal_punct=terminal)
        same_text = same_verdict = banned = 0
        for text in texts:
            stats = Stats(Block([text]), ["en"])
            bans = [check for check in settings(stats) if check.statistic != "c4_sentences"]
            dropped = any(check.failed[0] for check in bans)
            new = C4.rewrite(settings, stats).get(0, text)
            document = Document(text=text, id="x")
            kept = theirs.filter(document) is True
            same_text += kept == (not dropped) and (not kept or " ".join(document.text.split()) == " ".join(new.split()))
            banned += dropped
            whole = by_sentences.filter(Document(text=text, id="x")) is True
            same_verdict += whole == (not any(check.failed[0] for check in settings(stats)))
        print(f"c4 terminal_punctuation={terminal}: same ban and same lines on {same_text} of {len(texts)} ({banned} banned); same verdict with sentences on {same_verdict}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manuals", type=Path)
    parser.add_argument("--language", choices=sorted(CODES), default="en")
    parser.add_argument("--docs", type=int, default=200)
    arguments = parser.parse_args()
    paths = sorted(p for p in arguments.manuals.rglob("*") if p.suffix in (".txt", ".md", ".rst", ".pod"))
    random.Random(0).shuffle(paths)
    texts = [t for t in (normalize(p.read_text("utf-8", "replace")) for p in paths[: arguments.docs]) if len(t) > 200]
    checks = ours(texts, arguments.language)
    from llmpipe.clean.rules import CHINESE_STOP_WORDS

    stop_words = tuple(STOP_WORDS) if arguments.language == "en" else CHINESE_STOP_WORDS
    tokenizers: dict[str, Callable[[str], list[str]]] = {"ours": lambda t: tokens_of(Block([t])), "theirs": lambda t: split_into_words(t, CODES[arguments.language])}
    values = {name: [reference(t, tokenize(t), stop_words) for t in texts] for name, tokenize in tokenizers.items()}
    print(f"{len(texts)} documents, {sum(map(len, texts)):,} characters")
    print(f"{'value':20} {'equal tokens: differ':>20} {'largest':>9}   {'own tokens: median':>18} {'other verdict':>14}")
    for statistic, check in checks.items():
        same = np.array([v[statistic] for v in values["ours"]])
        other = np.array([v[statistic] for v in values["theirs"]])
        gap = np.abs(same - check.values)
        failing = {"min": np.less, "max": np.greater}.get(check.rule.split(".")[1][:3], np.greater)
        verdicts = (failing(other, check.threshold) != check.failed).sum()
        print(f"{statistic:20} {(gap > 1e-6).sum():>20} {gap.max():>9.4f}   {np.median(np.abs(other - check.values)):>18.4f} {verdicts:>14}")
    if arguments.language == "en":
        compare_c4(texts)


if __name__ == "__main__":
    main()
