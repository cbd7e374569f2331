"""Personal data and secrets are found, and what only looks like them is left alone."""

from __future__ import annotations

import itertools
import random
import time

import pytest

from llmpipe.clean.judge import Recipe, judge
from llmpipe.clean.pii import KINDS, PLACEHOLDERS, find, redact, valid_id_number
from llmpipe.clean.pii_numbers import valid_card_number
from llmpipe.clean.stage import PII_KINDS, Config
from tests.clean.pii_examples import NEGATIVE, POSITIVE, UNION, VISA
from tests.material import chinese, english


@pytest.mark.parametrize(("text", "expected"), POSITIVE)
def test_finds(text: str, expected: str):
    assert redact(text)[0] == expected


@pytest.mark.parametrize("text", NEGATIVE)
def test_leaves(text: str):
    assert redact(text) == (text, {})


def test_every_kind_is_found_in_both_languages_and_redacted_text_holds_no_more():
    found = {"zh": set(), "en": set()}
    for text, expected in POSITIVE:
        counts = redact(text)[1]
        found["zh" if any("\u4e00" <= c <= "\u9fff" for c in text) else "en"] |= set(counts)
        assert find(expected) == [], expected
        assert all(PLACEHOLDERS[kind] in expected for kind in counts)
    assert found["zh"] == found["en"] == set(KINDS) == set(PII_KINDS)


def test_finds_the_same_in_the_middle_of_prose_in_either_language():
    for text, expected in POSITIVE:
        for make in (english, chinese):
            around = make(1, 2) + "\n{}\n" + make(2, 2)
            assert redact(around.format(text.replace("{", "{{").replace("}", "}}")))[0] == around.format(expected.replace("{", "{{").replace("}", "}}"))


def test_counts_by_kind_in_both_languages():
    text, counts = redact("a@b.org 和 c@d.cn，手机 13912345678, host 93.184.216.34")
    assert text == "<EMAIL> 和 <EMAIL>，手机 <PHONE>, host <IP>"
    assert counts == {"email": 2, "phone": 1, "ip": 1}


def test_chosen_kinds_alone_are_redacted_or_drop():
    texts = [english(1) + " Write to a@b.org.", chinese(1) + "电话13812345678。"]
    kept = judge(texts, Recipe.of(Config(presets=[], pii_kinds=["phone"])))
    assert "a@b.org" in kept.texts[0] and "<PHONE>" in kept.texts[1] and kept.counts["pii.phone"] == 1 and "pii.email" not in kept.counts
    dropped = judge(texts, Recipe.of(Config(presets=[], pii="drop", pii_kinds=["email"])))
    assert [r.rule if r else None for r in dropped.reasons] == ["pii.email", None]


def test_check_digits():
    assert valid_id_number("11010519491231002X") and valid_id_number("11010519491231002x")
    assert not valid_id_number("110105194912310020") and not valid_id_number("11010519491331002X")
    for card in (VISA, UNION):
        assert valid_card_number(card) and not valid_card_number(card[:-1] + str((int(card[-1]) + 1) % 10))
        swapped = card[:6] + card[7] + card[6] + card[8:]
        assert swapped == card or not valid_card_number(swapped)


HOSTILE = ["0123456789", "@", "a@", "a@b.", "a.", "1.2.", "1 ", "+1 ", "(1) ", "2001:", "://a:b", "-----BEGIN PRIVATE KEY-----", "eyJa.", "sk-a1", "password='", "api_key=", "微信", "QQ ", "[at]", "62", "a" * 9 + "@", "x@y.zz "]


@pytest.mark.parametrize("unit", HOSTILE)
def test_takes_time_in_proportion_to_hostile_text(unit: str):
    def seconds(size: int) -> float:
        text = unit * (size // len(unit))
        best = float("inf")
        for _ in range(2):
            began = time.process_time()
            find(text)
            best = min(best, time.process_time() - began)
        return best

    small, large = seconds(50_000), seconds(400_000)
    assert large < 24 * small + 0.05, (small, large)  # 8 times the text; quadratic would be 64 times the time


def test_never_fails_and_spans_do_not_overlap():
    rng = random.Random(0)
    alphabet = [*list("0123456789@.:+-()/ \nabkes_=\"'XQ"), "微信", "电话", "QQ", "sk-", "key=", "://", "[at]"]
    for _ in range(2000):
        spans = find("".join(rng.choices(alphabet, k=60)))
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans)) and all(s < e for s, e, _ in spans)
