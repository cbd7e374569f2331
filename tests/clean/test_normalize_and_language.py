"""One form for every text, and its language."""

from __future__ import annotations

import random

from llmpipe.clean.language import identify, profile
from llmpipe.clean.normalize import normalize
from llmpipe.text.block import Block
from tests.material import chinese, english


def test_normalises_newlines_controls_and_marks_and_keeps_what_carries_meaning():
    assert normalize("a\r\nb\rc\u2028d\x0ce") == "a\nb\nc\nd\ne"
    assert normalize("\ufeffe\u0301\u200b\x00x\u00a0y\u00ad") == "\u00e9x y"
    assert normalize("繁體與简体，全角！１２３　空格") == "繁體與简体，全角！１２３　空格"
    assert normalize("👩\u200d💻 می\u200cخواهم a\u200db") == "👩\u200d💻 می\u200cخواهم ab"
    assert normalize("  indent\ttab  \n\n\n\n\nend \n") == "  indent\ttab\n\n\nend"
    assert normalize("\u1112\u1161\u11ab") == "한"


def test_normalising_twice_changes_nothing():
    rng = random.Random(0)
    alphabet = "a \n\r\t\u200b\u200d\ufeff\u0301é\u00a0\u3000\x0c\ud800中👩\u2028\u1100\u1161\U000e0041"
    for _ in range(3000):
        once = normalize("".join(rng.choice(alphabet) for _ in range(rng.randrange(12))))
        assert normalize(once) == once


LANGUAGES = {
    "en": english(1),
    "zh": chinese(1),
    "ja": "これは日本語の文章です。天気がよいので、散歩に行きました。",
    "ko": "이것은 한국어 문장입니다. 날씨가 좋아서 산책을 갔습니다.",
    "de": "Dies ist ein deutscher Satz, und er wird hier geprüft, weil die Sprache erkannt werden soll. Das Wetter ist heute schön.",
    "fr": "Ceci est une phrase française, et elle est vérifiée ici parce que la langue doit être reconnue. Il fait beau aujourd'hui.",
    "ru": "Это русское предложение, и оно проверяется здесь, потому что язык должен быть распознан. Сегодня хорошая погода.",
    "th": "นี่คือประโยคภาษาไทย อากาศดีมากวันนี้",
    "el": "Αυτή είναι μια ελληνική πρόταση και ο καιρός είναι καλός σήμερα.",
    "und": "12345 !!! --- 67890",
}


def test_identifies_languages_whatever_stands_beside_them():
    codes, scores = identify(Block(list(LANGUAGES.values())))
    assert dict(zip(LANGUAGES, codes, strict=True)) == {k: k for k in LANGUAGES}
    assert all(0.3 < s <= 1 for s in scores[:-1]) and scores[-1] == 0


def test_a_chinese_page_full_of_english_names_is_chinese_and_a_name_in_chinese_leaves_english():
    mixed = "使用 Python 的 NumPy 和 PyTorch 库可以在 GPU 上训练模型，详见 API 文档说明。"
    names = english(2) + " 北京 " + english(3)
    assert identify(Block([mixed, names]))[0] == ["zh", "en"]


def test_profiles():
    assert [profile(c) for c in ("en", "zh", "ja", "th", "de", "und")] == ["en", "zh", "characters", "characters", "words", "words"]


def test_short_text_code_and_tables_become_no_exotic_language():
    code = "for (int i = 0; i < n; ++i) {\n    buf[i] = htonl(x->y[i]);\n}\nreturn kmalloc(sz, GFP_KERNEL);\n" * 5
    table = "id,qty,sku\n1,20,AX-11\n2,35,BX-12\n3,7,CX-13\n" * 10
    short = ["OK", "Login | Register", "John Smith", "GET /index.html HTTP/1.1", "iPhone 15 Pro Max", "1.2.3.4", "x = 1"]
    codes, scores = identify(Block([code, table, *short]))
    assert set(codes) <= {"en", "und"} and codes[2:] == ["und"] * len(short) and not scores[2:].any()
    assert identify(Block(["北京", "東京タワーへ行く", "서울"]))[0] == ["zh", "ja", "ko"]


def test_english_is_known_by_its_words_and_other_languages_are_not_taken_for_it():
    from llmpipe.clean.language import _english

    manual = "The option is used by the program when it has been called with a file that was not found. " * 3
    mixed = LANGUAGES["de"] * 3 + manual[:90]
    known = _english(Block([manual, mixed, LANGUAGES["fr"] * 4, "def the(x): return x\n" * 9])) > 0
    assert known.tolist() == [True, False, False, False]
