"""Rules on lines: RefinedWeb's corrections, C4's two variants, mC4's long lines, in English and Chinese."""

from __future__ import annotations

import pytest

from llmpipe.clean.judge import Recipe, judge
from llmpipe.clean.line_corrections import LineCorrections
from llmpipe.clean.stage import Config
from llmpipe.clean.statistics import Stats
from llmpipe.text.block import Block
from tests.material import chinese, english

EN, ZH = "\n".join(english(i, 5) for i in range(6)), "\n".join(chinese(i, 5) for i in range(6))


def corrected(text: str, language: str) -> str:
    return LineCorrections().rewrite(Stats(Block([text]), [language])).get(0, text)


def verdict(text: str, *presets: str, filters: tuple = ()):
    got = judge([text], Recipe.of(Config(pii="off", presets=list(presets), filters=list(filters))))
    return got.texts[0], got.reasons[0].rule if got.reasons[0] else None


@pytest.mark.parametrize(
    ("text", "language", "lines"),
    [
        (EN, "en", ["CLICK HERE TO SUBSCRIBE NOW", "3 likes", "1,204 followers", "12.5K views", "Home", "20240102", "  42", "READ THE TERMS"]),
        (ZH, "zh", ["3 次点赞", "阅读 1024", "评论(12)", "1.2万次播放", "12 条评论", "首页", "20240102", "CLICK HERE NOW"]),
    ],
)
def test_lines_of_interfaces_go(text: str, language: str, lines: list[str]):
    for line in lines:
        assert corrected(f"{text}\n{line}\n{text}", language) == f"{text}\n{text}", line


@pytest.mark.parametrize(
    ("language", "before", "after"),
    [
        ("en", "The river rises in spring Read more...", "The river rises in spring"),
        ("en", "Sign-in to see the whole page", "to see the whole page"),
        ("en", "You have 3 items in cart today", "You have 3today"),
        ("zh", "春天河水上涨，小镇安静。阅读全文", "春天河水上涨，小镇安静。"),
        ("zh", "登录 / 注册 查看小镇的天气和河水", "查看小镇的天气和河水"),
        ("zh", "春天河水上涨，小镇安静 更多>>", "春天河水上涨，小镇安静"),
    ],
)
def test_short_lines_lose_what_the_page_puts_there(language: str, before: str, after: str):
    text = EN if language == "en" else ZH
    assert corrected(f"{text}\n{before}", language) == f"{text}\n{after}"


@pytest.mark.parametrize("text", ["The 3 likes that he counted were of friends, and 20 people replied.", "登录系统之后，可以阅读更多的文章，也可以查看评论和点赞的数量以及全文。", "A long line about sign-in pages and how to read more of them in one evening... and so on", "他有 3 个朋友喜欢读书，12 条河流经过小镇。", "NASA and ESA launch"])
def test_honest_lines_stay(text: str):
    language = "en" if text.isascii() else "zh"
    assert corrected(text, language) == text


def test_a_page_that_loses_more_than_a_twentieth_of_its_words_is_dropped():
    menu_en, menu_zh = "\n".join(["MENU AND PRODUCTS", "HOME PAGE", "3 likes"] * 12), "\n".join(["阅读 1024", "12 条评论", "首页"] * 20)
    for text, menu in ((EN, menu_en), (ZH, menu_zh)):
        assert verdict(f"{text}\n{menu}", filters=("lines",))[1] == "lines.max_removed_words"
        assert verdict(f"{text}\n{menu[:20]}", filters=("lines",)) == (text, None)
        assert verdict(f"{text}\n{menu}", filters=({"lines": {"max_removed_words": None}},)) == (text, None)


def test_c4_in_both_published_variants():
    four_words = "There are four words."
    short = f"{english(1, 2)}\n{english(2, 2)}\n{four_words}"
    assert verdict(f"{EN}\n{four_words}", "c4")[0].endswith(four_words) and not verdict(f"{EN}\n{four_words}", "c4-paper")[0].endswith(four_words)
    assert verdict(f"{english(1, 4)}", "c4")[1] == "c4.min_sentences" and verdict(f"{english(1, 4)}", "c4-paper")[1] is None
    assert verdict(short, "c4")[1] is None
    assert verdict(f"{ZH}\n四个字。\n没有句号的一行文字在这里，而且很长很长", filters=({"c4": {"min_words_per_line": 3}},))[0] == ZH


@pytest.mark.parametrize("end", "。！？；…」』”）")
def test_c4_knows_the_ends_of_chinese_lines(end: str):
    line = f"这一行文字有一个结尾，读起来很清楚{end}"
    assert verdict(f"{ZH}\n{line}", filters=("c4",))[0].endswith(line)
    assert not verdict(f"{ZH}\n{line[:-1]}", filters=("c4",))[0].endswith(line[:-1])


def test_a_line_that_is_gone_bans_no_page():
    assert verdict(f"{EN}\nfunction() {{ x = 1; }}", "c4")[1] is None
    assert verdict(f"{EN}\nHere is a line with {{ braces }} in it.", "c4")[1] == "c4.curly_bracket"
    assert verdict(f"{ZH}\n这里有一个 {{ 花括号 }}，在正文里。", filters=("c4",))[1] == "c4.curly_bracket"


def test_mc4_wants_three_long_lines():
    long_en, long_zh = "\n".join(english(i, 8) for i in range(3)), "\n".join(chinese(i, 8) for i in range(3))
    for text in (long_en, long_zh):
        assert verdict(text, "mc4")[1] is None
        assert verdict("\n".join(text.split("\n")[:2] + ["short"] * 9), "mc4")[1] == "c4_paragraphs.min_chars"


def test_stop_words_and_bullets_as_dclm_has_them():
    stars = "\n".join(f"* {english(i, 1)}" for i in range(20))
    assert verdict(stars, "dclm")[1] == "gopher_quality.max_bullet_lines" and verdict(stars, "gopher")[1] != "gopher_quality.max_bullet_lines"
    once = "That river runs past towns where people read old books; that is all there was " * 4
    assert verdict(once.replace("that", "the").replace("That", "The"), "dclm", filters=({"gopher_repetition": "off"}, {"lines": "off"}))[1] is None
