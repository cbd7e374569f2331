"""Bad words: whole words where there are spaces, characters where there are none, and phrases that excuse them; a hook for a model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from llmpipe.clean.judge import Recipe, judge
from llmpipe.clean.language import identify
from llmpipe.clean.stage import Config
from llmpipe.clean.statistics import Stats
from llmpipe.clean.toxicity import Toxicity
from llmpipe.clean.words import BadWords, Matcher, count_words
from llmpipe.config import load
from llmpipe.errors import UsageError
from llmpipe.text.block import Block
from tests.material import chinese, english


def hits(texts: list[str], matcher: Matcher) -> list[float]:
    block = Block(texts)
    return count_words(Stats(block, identify(block)[0]), matcher)[0].tolist()


def reasons(texts: list[str], **settings: object) -> list[str | None]:
    return [r.rule if r else None for r in judge(texts, Recipe.of(Config(presets=[], **settings))).reasons]


def test_whole_words_and_phrases_in_english_any_characters_in_chinese():
    matcher = Matcher.of(["ass", "hot girls", "ünfein", "赌博", "色情"])
    assert hits(["An ASS, a class of grass; pass.", "Hot  girls\nare hot. Girls!", "UNFEIN Ünfein"], matcher) == [1, 1 + 1, 1]
    assert hits(["他去赌博网站赌博。", "赌 博", "色，情", "博赌情色"], matcher) == [2, 1, 1, 0]
    assert hits(["", "hot", "赌"], matcher) == [0, 0, 0] and hits(["a", "hot", "girls"], matcher) == [0, 0, 0]


def test_phrases_that_excuse_a_word_in_both_languages():
    matcher = Matcher.of(["性交", "tits"], ["个性交", "great tits"])
    assert hits(["个性交流与性交", "Great tits and tits."], matcher) == [1, 1]


def test_share_and_count_drop_and_prose_stays():
    bad_en, bad_zh = english(1) + " porn sex video" * 3, chinese(1) + "黄片色情" * 5
    assert reasons([english(1), bad_en, chinese(1), bad_zh], bad_words=BadWords()) == [None, "bad_words.max_share", None, "bad_words.max_share"]
    assert reasons([english(1) + " porn", chinese(1) + "色情"], bad_words=BadWords(max_share=None, max_count=0)) == ["bad_words.max_count"] * 2
    values = judge([bad_zh], Recipe.of(Config(presets=[], bad_words=BadWords()))).values
    assert values["bad_word_share"][0] == pytest.approx(20 / (len([c for c in bad_zh if c > "\u4e00"])), rel=0.01)


def test_own_lists_with_comments_and_excuses(tmp_path: Path):
    (tmp_path / "list.txt").write_text("# mine\nriver\n小镇\n!安静的小镇\n", encoding="utf-8")
    config = load(Config, stage="clean", sets=["presets=[]", f"bad_words.files=['{tmp_path}/list.txt']", "bad_words.builtin=false", "bad_words.max_share=null", "bad_words.max_count=0"], environ={})
    got = judge(["The river runs on.", "Rivers run on, porn.", "小镇很安静。", "安静的小镇。"], Recipe.of(config)).reasons
    assert [r.rule if r else None for r in got] == ["bad_words.max_count", None, "bad_words.max_count", None]


def test_the_verdict_does_not_depend_on_the_cut_into_blocks():
    texts = [english(1) + " porn", chinese(2) + "色情网上赌场", "free", "spins", "色", "情", ""] * 3
    recipe = Recipe.of(Config(presets=[], bad_words=BadWords(max_count=0), pii="off"))
    together = judge(texts, recipe)
    for i, text in enumerate(texts):
        alone = judge([text], recipe)
        assert alone.reasons[0] == together.reasons[i]


# --- the hook ------------------------------------------------------------------------------------------------------


def rude(texts: list[str]) -> list[float]:
    """The example of the documentation: a function of texts."""
    return [0.9 if "stupid" in text or "笨蛋" in text else 0.1 for text in texts]


class Shouting:
    """The other form: made once, and given the block with its code points."""

    takes_block = True

    def __call__(self, block: Block) -> np.ndarray:
        marks = np.flatnonzero((block.code_points == ord("!")) | (block.code_points == ord("！")))
        return block.per_doc(np.searchsorted(block.doc_ends, marks, side="right")) / 10


def wrong(texts: list[str]) -> list[float]:
    return [0.0]


def test_a_model_from_outside_scores_texts_or_blocks():
    texts = [english(1), english(2) + " You are stupid!", chinese(3), chinese(4) + "你是笨蛋！！！！！！"]
    assert reasons(texts, toxicity=Toxicity(scorer="tests.clean.test_words:rude")) == [None, "toxicity.threshold"] * 2
    assert reasons(texts, toxicity=Toxicity(scorer="tests.clean.test_words:Shouting")) == [None, None, None, "toxicity.threshold"]


def test_a_hook_that_is_none_is_an_error_that_says_so():
    for name, words in (("nowhere:x", "cannot be imported"), ("tests.clean.test_words:ROOT", "cannot be imported"), ("words", "package.module:Name"), ("tests.clean.test_words:__doc__", "not callable")):
        with pytest.raises(UsageError, match=words):
            load(Config, stage="clean", sets=[f"toxicity.scorer={name}"], environ={})
    with pytest.raises(UsageError, match="shape .1,. for 2 texts"):
        reasons([english(1), english(2)], toxicity=Toxicity(scorer="tests.clean.test_words:wrong"))
