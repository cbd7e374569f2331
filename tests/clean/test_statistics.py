"""Rule values against numbers computed by hand, in English and Chinese."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from llmpipe.clean.statistics import Stats
from llmpipe.text.block import Block, Rolling, group_equal, hash_spans


def stats(text: str, language: str = "en") -> Stats:
    return Stats(Block([text]), [language])


def tokens(text: str) -> list[str]:
    block = Block([text])
    code_points = block.code_points.tolist()
    return ["".join(map(chr, code_points[s:e])) for s, e in zip(block.token_starts, block.token_ends, strict=True)]


def test_tokens_are_words_characters_of_unspaced_scripts_and_punctuation():
    assert tokens("Don't stop!!! It's 3.14, e.g. os.path; end.Next") == ["Don't", "stop", "!", "!", "!", "It's", "3.14", ",", "e.g", ".", "os.path", ";", "end", ".", "Next"]
    assert tokens("中文，测试2024年。Hello世界") == ["中", "文", "，", "测", "试", "2024", "年", "。", "Hello", "世", "界"]
    assert tokens("한국어 문장 कहानी cafe\u0301 😀😀") == ["한국어", "문장", "कहानी", "cafe\u0301", "😀", "😀"]
    assert tokens("ls -l /proc; open(2) x=1 and/or UTF-8 a::b 1,000 well-known 2+2 f(x)->y ... --- 中（2）") == [
        "ls", "-l", "/proc", ";", "open(2", ")", "x=1", "and", "/", "or", "UTF-8", "a::b", "1,000", "well", "-", "known", "2", "+", "2", "f(x)->y", "...", "---", "中", "（", "2", "）",
    ]  # fmt: skip
    assert tokens("ไทย") == ["ไ", "ท", "ย"]
    assert tokens("") == [] and tokens(" \n ") == []


def test_word_values_by_hand():
    s = stats("The cat #1 sat... on the mat, twice.")
    # tokens: The cat # 1 sat ... on the mat , twice .   -> 12, of them 8 words
    assert s.num_words[0] == 8 and s.num_tokens[0] == 12
    assert s.mean_word_length[0] == pytest.approx((3 + 3 + 1 + 3 + 2 + 3 + 3 + 5) / 8)
    assert s.alpha_words[0] == pytest.approx(7 / 12)
    assert s.hash_ratio[0] == pytest.approx(1 / 12) and s.ellipsis_ratio[0] == pytest.approx(1 / 12)
    assert s.stop_words(["the", "be", "on"])[0] == 2


def test_chinese_words_are_estimated_from_characters():
    s = stats("我们在这里读书，天气很好。", "zh")
    assert s.num_words[0] == pytest.approx(11 / 1.6)
    assert s.num_tokens[0] == pytest.approx(11 / 1.6 + 2)
    assert s.mean_word_length[0] == pytest.approx(1.6)
    assert s.stop_words(["在", "的", "很"])[0] == 2


def test_line_values_by_hand():
    text = "- one item\n• two items\n\nA full line ends here.\nA full line ends here.\ncut off…"
    s = stats(text)
    assert s.bullet_lines("•-")[0] == pytest.approx(2 / 6)  # the blank line counts here
    assert s.ellipsis_lines[0] == pytest.approx(1 / 6)
    assert s.punctuated_lines[0] == pytest.approx(2 / 5)  # … ends no sentence in FineWeb's list
    assert s.short_lines(11)[0] == pytest.approx(3 / 5)
    assert s.dup_line_frac[0] == pytest.approx(1 / 5)
    assert s.dup_line_char_frac[0] == pytest.approx(22 / len(text))
    assert s.dup_line_chars[0] == pytest.approx(22 / (len(text) - 5))
    zh = stats("第一行。\n第一行。\n没有标点", "zh")
    assert zh.punctuated_lines[0] == pytest.approx(2 / 3) and zh.dup_line_frac[0] == pytest.approx(1 / 3)


def test_paragraphs_are_divided_by_blank_lines():
    s = stats("one\ntwo\n\nthree\n\none\ntwo")
    assert s.dup_para_frac[0] == pytest.approx(1 / 3)
    assert s.dup_para_char_frac[0] == pytest.approx(7 / 23)


def test_sentences_end_at_a_stop_before_space_and_at_the_end_of_a_line():
    assert stats('One. Two! "Three?" Four v1.2 still\nFive').num_sentences[0] == 5
    assert stats("第一句。第二句！第三句", "zh").num_sentences[0] == 3


def slow_duplicates(words: list[str], n: int) -> int:
    """The published walk: after a repeat, jump over it."""
    seen, chars, i = set(), 0, 0
    while i < len(words) - n + 1:
        gram = tuple(words[i : i + n])
        if gram in seen:
            chars += sum(map(len, gram))
            i += n
        else:
            seen.add(gram)
            i += 1
    return chars


def slow_top(words: list[str], n: int) -> int:
    grams = Counter(" ".join(words[i : i + n]) for i in range(len(words) - n + 1))
    gram, count = grams.most_common(1)[0]
    return len(gram) * count if count > 1 else 0


@pytest.mark.parametrize("seed", range(6))
def test_repeated_n_grams_equal_the_slow_walk(seed: int):
    rng = np.random.default_rng(seed)
    words = [f"w{i}" for i in rng.integers(0, 3 + 4 * seed, 300)]
    texts = [" ".join(words[:k]) for k in (3, 40, 300)] + ["", "alone"]
    s = Stats(Block(texts), ["en"] * len(texts))
    for i, text in enumerate(texts):
        w = text.split()
        for n in (2, 3, 4):
            assert s.top_gram(n)[i] * max(len(text), 1) == pytest.approx(slow_top(w, n) if len(w) >= n else 0), (i, n)
        for n in range(5, 11):
            assert s.dup_gram(n)[i] * max(len(text), 1) == pytest.approx(slow_duplicates(w, n)), (i, n)


def test_chinese_n_grams_span_as_many_characters_as_n_words_have():
    unit = "天地玄黄宇宙洪荒日月盈昃"
    s = stats(unit * 3, "zh")  # 12 different characters, three times
    assert s.dup_gram(5)[0] == pytest.approx(24 / 36)  # 8 characters, then jumps: two repeats of 8, one of 8
    assert s.top_gram(2)[0] == pytest.approx(12 / 36)  # 3 characters and the space between two words, three times


def test_values_do_not_depend_on_the_other_documents_of_a_block():
    texts = ["The river runs. The river runs. Again and again #1.", "中文的句子，在这里重复。中文的句子，在这里重复。", "", "x" * 50, "a.\n\nb.\na."]
    languages = ["en", "zh", "und", "en", "en"]
    together = Stats(Block(texts), languages)
    for i, (text, language) in enumerate(zip(texts, languages, strict=True)):
        alone = stats(text, language)
        for name in ("num_words", "alpha_words", "dup_line_frac", "dup_para_char_frac", "punctuated_lines", "num_sentences", "ellipsis_ratio", "newline_ratio"):
            assert getattr(alone, name)[0] == pytest.approx(getattr(together, name)[i]), (name, i)
        assert alone.dup_gram(5)[0] == pytest.approx(together.dup_gram(5)[i])


def test_hashes_do_not_depend_on_position_even_beyond_a_million_code_points():
    short, long = Block(["omega 中文 tail"]), Block([("filler text 填充。" * 90_000) + " omega 中文 tail"])
    assert len(long.code_points) > 1_000_000
    assert (short.raw_token_hashes == long.raw_token_hashes[-4:]).all()


def test_a_word_longer_than_a_stride_has_one_hash():
    word = "".join(chr(97 + i % 26) for i in range(200_000))
    block = Block([f"{word} {word} {word}x"])
    first, second, third = block.raw_token_hashes
    assert first == second != third


def test_hash_spans_and_groups_of_nothing():
    assert len(hash_spans(np.empty(0, np.uint64), np.empty(0, np.int64))) == 0
    order, first = group_equal(np.empty(0, np.uint64))
    assert len(order) == len(first) == 0
    assert len(Rolling(np.arange(3, dtype=np.uint64)).advance(5)) == 0
