"""Faults of decoding are mended, and honest text that looks like one is left alone."""

from __future__ import annotations

import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llmpipe.clean.normalize import normalize
from llmpipe.clean.repair import repair
from tests.material import chinese, english

SENTENCES = [
    "It’s a “café” — naïve, isn’t it… € 5",
    "这是一段中文，带有“引号”和标点。",
    "繁體中文也要保持原樣！",
    "これは日本語の文章です。",
    "한국어 문장입니다.",
    "Příliš žluťoučký kůň úpěl ďábelské ódy",
    "Съешь ещё этих мягких французских булок",
    "Ça été très élevé à Noël, où ça?",
    "Größe, Äpfel, Öl und Übung",
    "Emoji 😀 and 🚀 too",
]


def misread(text: str, encoding: str) -> str:
    """Read UTF-8 as browsers do: what Windows-1252 leaves open is taken as Latin-1."""
    out = []
    for byte in text.encode():
        try:
            out.append(bytes([byte]).decode(encoding))
        except UnicodeDecodeError:
            out.append(chr(byte))
    return "".join(out)


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1"])
@pytest.mark.parametrize("sentence", SENTENCES)
def test_utf8_read_as_windows_1252_or_latin_1_once_or_twice_is_turned_back(sentence: str, encoding: str):
    once = misread(sentence, encoding)
    assert repair(once) == sentence
    assert repair(misread(once, encoding)) == sentence
    assert normalize(f"before it\n{once}\nafter it") == normalize(f"before it\n{sentence}\nafter it")


HONEST = [
    *SENTENCES,
    "MENÜ“ und „GRÜN“, «FORÊT», «Â», «NÃO», “LÃ”, PÂ»",
    "à «l’été», où» et là… « Ça »",
    "São Paulo, Ã é uma letra; Ñ¡olé! Ñ¿qué?",
    "Đặng Thị, NGUYỄN, Việt Nam – ‘Ơ’",
    "naïve “Ï” façade, ÀÉÎÕÜ àéîõü ß",
    "° ± × ÷ § © ® ½ Â° ¼",
    "Úžasný Úšklebek Ïž Ëš",
    "İstanbul’da Şişli’ye – “Ğ”",
]


@pytest.mark.parametrize("text", HONEST)
def test_honest_text_is_left_alone(text: str):
    expected = text.replace("Â°", "°")  # the one pair here that nobody writes
    assert repair(text) == expected and repair(f"{english(1)} {text} {chinese(1)}") == f"{english(1)} {expected} {chinese(1)}"


def test_one_doubtful_pair_needs_company():
    assert repair("la FORÊ» est") == "la FORÊ» est"
    assert repair("garÃ§on") == "garçon"
    assert repair("CAF\xc3\xab.") == "CAF\xc3\xab." and repair("CAF\xc3\xab. Tr\xc3\xa8s na\xc3\xafve") == "CAFë. Très naïve"


def test_controls_ligatures_and_terminals():
    assert normalize("\x93quoted\x94 and it\x92s \x80 5") == "“quoted” and it’s € 5"
    assert normalize("\x85 alone is a newline\x85yes") == "alone is a newline\nyes" or normalize("a\x85b") == "a\nb"
    assert normalize("eﬃcient ﬁles ﬂow") == "efficient files flow"
    assert normalize("\x1b[1mbold\x1b[0m N\x08NA\x08AM\x08ME\x08E _\x08u") == "bold NAME u"
    assert normalize("\ud83d\ude00 \ud83d alone") == "😀 \ufffd alone"
    assert normalize("a\u200bb\ufeffc 中\u200b文") == "abc 中文"


def test_full_width_ascii_becomes_ascii_where_nothing_else_is_east_asian():
    assert normalize("Ｐｙｔｈｏｎ　３．１２ is out（ｎｅｗ） now") == "Python 3.12 is out(new) now"
    kept = "在２０２４年，Ｐｙｔｈｏｎ（编程语言）发布了！"
    assert normalize(kept) == kept
    assert normalize("ＡＢＣ中文\nＡＢＣ only") == "ＡＢＣ中文\nABC only"
    assert normalize("真的吗？！") == "真的吗？！"


ALPHABET = "aé \n\r\t\x08\x1b[m\x80\x85\x93\u200b\u200d\ufeff\u0301Âãâ€™œ\x9dÃ©¤¸\xad–‡Ａ１　！中。ﬁ\u1100\u1161İ\U0001f600ðŸ˜€\xa0Ð¿"


@settings(max_examples=600, deadline=None)
@given(st.text(alphabet=st.one_of(st.sampled_from(ALPHABET), st.characters(exclude_categories=())), max_size=40))
@example("\xc3\x83\xc2\xa9")
@example("\xc3\x83\u200b\xc2\xa9")
@example("Ã\x08\x83Â©\ud83d\x1b[m\ude00")
def test_normalising_twice_changes_nothing_and_leaves_valid_unicode(text: str):
    once = normalize(text)
    assert normalize(once) == once
    once.encode()
    assert not any(c in once for c in "\x00\x1b\x7f\r\u2028\ufeff")


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(SENTENCES), min_size=1, max_size=4), st.sampled_from(["cp1252", "latin-1"]))
def test_what_was_read_wrong_reads_right_again(sentences: list[str], encoding: str):
    text = "\n".join(sentences)
    assert repair(misread(text, encoding)) == text


def test_clean_text_costs_next_to_nothing():
    text = "\n".join(english(i) + chinese(i) + " déjà vu" for i in range(400))
    start = time.process_time()
    assert normalize(text) == text
    per_mb = (time.process_time() - start) / (len(text.encode()) / 1e6)
    assert per_mb < 0.5, per_mb
    hostile = "Ã\x83" * 40_000 + "Â" * 40_000 + "\x1b]" * 40_000 + "a\x08" * 20_000
    start = time.process_time()
    normalize(hostile)
    assert time.process_time() - start < 5
