"""Each preset keeps prose and drops what it was published to drop, in English and in Chinese."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from llmpipe.clean.judge import Recipe, Verdict, judge
from llmpipe.clean.presets import PRESETS
from llmpipe.clean.rules import C4Filter, FineWebQuality, GopherQuality, GopherRepetition, check
from llmpipe.clean.stage import Config
from llmpipe.config import load
from tests.material import chinese, english


@dataclass(frozen=True, slots=True, kw_only=True)
class NoVowels:
    """A filter from outside llmpipe."""

    max_e: float | None = 3

    def __call__(self, stats):
        counts = np.array([text.count("e") for text in stats.block.texts], float)
        yield from check(self, "max_e", "letter_e", counts, ">")


def verdict(texts: list[str], **config: object) -> Verdict:
    return judge(texts, Recipe.of(Config(pii="off", **config)))


def reasons(texts: list[str], **config: object) -> list[str | None]:
    return [r.rule if r else None for r in verdict(texts, **config).reasons]


def paragraphs(make, count: int = 4) -> str:
    return "\n".join(make(i, 6) for i in range(count))


PROSE_EN, PROSE_ZH = (paragraphs(english), paragraphs(chinese))
LISTING = "\n".join(f"{make(i, 1)[:18]}" for i in range(60) for make in (english,))


def test_published_thresholds():
    en, zh = PRESETS["fineweb"]()["en"], PRESETS["fineweb2-zh"]()["zh"]
    assert en[:2] == [GopherRepetition(), GopherQuality()] and en[3] == FineWebQuality()
    assert isinstance(en[2], C4Filter) and not en[2].terminal_punctuation and en[2].min_sentences == 5
    assert (GopherQuality().min_words, GopherQuality().max_words, GopherQuality().min_alpha_words) == (50, 100_000, 0.8)
    assert [getattr(GopherRepetition(), f"dup_{n}_gram") for n in range(5, 11)] == [0.15, 0.14, 0.13, 0.12, 0.11, 0.10]
    repetition, quality, lines = zh
    assert [getattr(repetition, f"dup_{n}_gram") for n in range(5, 11)] == [0.198, 0.182, 0.167, 0.154, 0.140, 0.127]
    assert (repetition.dup_line_frac, repetition.dup_para_frac, quality.min_alpha_words) == (0.287, None, 0.735)
    assert (lines.min_punctuated_lines, lines.max_newline_ratio, lines.max_dup_line_chars, lines.max_short_lines) == (0.106, 0.178, 0.1, None)


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_every_preset_keeps_prose_in_both_languages(preset: str):
    assert reasons([PROSE_EN, PROSE_ZH], presets=[preset]) == [None, None]


def test_gopher_drops_short_repetitive_and_symbolic_text():
    bad = [english(1, 2), (english(1, 2) + "\n") * 12, " ".join(["# the 1 and 2 have"] * 30) + english(3, 3), chinese(1, 2), (chinese(1, 2) + "\n") * 12]
    got = reasons(bad, presets=["gopher"])
    assert got[0] == got[3] == "gopher_quality.min_words"
    assert got[1] == got[4] == "gopher_repetition.dup_line_frac"
    assert got[2].startswith("gopher_repetition")


def test_c4_drops_lines_and_pages_in_english_and_leaves_chinese_alone():
    page = PROSE_EN + "\nPlease enable JavaScript to read this page.\nWe use cookies for your comfort here.\nHome\nno full stop at the end of it\nTrailing off into dots...\nAs said before.[12][edit]"
    got = verdict([page, PROSE_EN + "\nHere is function() { return 1; } as a line.", PROSE_EN + "\nLorem ipsum dolor sit amet.", english(1, 2), PROSE_ZH + "\n首页"], presets=["c4"])
    assert [r.rule if r else None for r in got.reasons] == [None, "c4.curly_bracket", "c4.lorem_ipsum", "c4.min_sentences", None]
    assert got.texts[0] == PROSE_EN + "\nAs said before."
    assert got.texts[4].endswith("首页")


def test_c4_on_request_knows_chinese_punctuation():
    got = verdict([PROSE_ZH + "\n首页\n这一行没有句号而且很长很长很长\n“这一行有引号的句子。”"], presets=[], filters=["c4"])
    assert got.reasons == [None] and got.texts[0] == PROSE_ZH + "\n“这一行有引号的句子。”"


def test_fineweb_drops_lists_of_short_lines():
    menu_en = "\n".join(english(i, 1).rstrip(".") for i in range(40))
    got = verdict([menu_en, "\n".join(f"菜单{chinese(i, 1)[:12]}" for i in range(40))], presets=["fineweb"])
    assert got.failed["fineweb_quality.min_punctuated_lines"].tolist() == [True, True]
    assert all(got.reasons)


def test_fineweb2_zh_judges_chinese_only():
    short = [english(1, 2), chinese(1, 2)]
    assert reasons(short, presets=["fineweb2-zh"]) == [None, "gopher_quality.min_words"]


def test_filters_override_add_and_remove():
    short = [english(1, 2), chinese(1, 2)]
    assert reasons(short, presets=["gopher"], filters=[{"gopher_quality": {"min_words": "5"}}]) == [None, None]
    assert reasons(short, presets=["gopher"], filters=[{"gopher_quality": {"min_words": "5", "languages": ["zh"]}}]) == ["gopher_quality.min_words", None]
    assert reasons(short, presets=["gopher"], filters=[{"gopher_quality": "off"}]) == [None, None]
    assert reasons(short, presets=[], filters=[{"length": {"min_chars": "1000"}}]) == ["length.min_chars"] * 2
    assert reasons(short, presets=[], filters=["tests.clean.test_presets:NoVowels"]) == ["tests.clean.test_presets:NoVowels.max_e", None]


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        (["gopher_qualty"], "did you mean gopher_quality?"),
        ([{"gopher_quality": {"min_word": "3"}}], "did you mean min_words?"),
        ([{"gopher_quality": {"min_words": "many"}}], "expected a number"),
        (["no_such.module:Filter"], "cannot be imported"),
        (["llmpipe.clean.presets:fineweb"], "is not a dataclass"),
        (["xyzzy"], "known: c4, c4_paragraphs, encoding"),
    ],
)
def test_wrong_names_and_values_are_explained(filters: list, message: str):
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        Config(filters=filters)
    with pytest.raises(ValueError, match="known: c4, c4-paper, dclm, fineweb, fineweb2-zh, gopher"):
        Config(presets=["xyzzy"])


def test_a_documents_verdict_does_not_depend_on_its_neighbours():
    texts = [PROSE_EN, PROSE_ZH, "", english(1, 2), chinese(2, 3), LISTING, "дом " * 80, "日本語の文章です。" * 9, "😀"] * 3
    whole = verdict(texts)
    for i, text in enumerate(texts[:9]):
        alone = verdict([text])
        assert (alone.texts[0], alone.reasons[0], alone.languages[0]) == (whole.texts[i], whole.reasons[i], whole.languages[i])
        assert {k: v[0] for k, v in alone.values.items() if v[0] == v[0]} == {k: v[i] for k, v in whole.values.items() if v[i] == v[i]}


@pytest.mark.parametrize("path", sorted(Path(__file__).parents[2].glob("configs/clean/*.yaml")), ids=lambda p: p.stem)
def test_shipped_configs_load_and_keep_prose(path: Path):
    config = load(Config, stage="clean", file=path)
    assert [r.rule if r else None for r in judge([PROSE_EN, PROSE_ZH], Recipe.of(config)).reasons] == [None, None]


def test_reference_documentation_passes_its_own_config_and_not_the_web_preset():
    page = "class Widget(object)\n |  Widget(name, *, size=None) -> widget\n |\n |  Methods defined here:\n |\n" + "\n".join(
        f" |  set_{w}(self, value, /)\n |      Return self.{w} after setting it to the value that was given." for w in ("name", "size", "color", "parent", "layout", "font", "style")
    )
    config = load(Config, stage="clean", file=Path(__file__).parents[2] / "configs/clean/reference_docs.yaml")
    assert judge([page], Recipe.of(config)).reasons == [None]
    assert reasons([page]) != [None]
