"""Pages come out readable whatever their bytes and whatever their server says of them."""

from __future__ import annotations

import pytest

from llmpipe.crawl.decode import decode

ZH = "这是一个关于计算机科学的页面，其中介绍了操作系统、网络和数据库的基本概念。用户可以在这里找到他们想要的资料。"
HANT = "這是一個關於電腦科學的網頁，其中介紹了作業系統、網路和資料庫的基本概念。使用者可以在這裡找到他們想要的資料。"
JA = "これはコンピュータ科学に関するページです。オペレーティングシステムやネットワークの基本的な概念を紹介しています。"
KO = "이것은 컴퓨터 과학에 관한 페이지입니다. 운영 체제와 네트워크의 기본 개념을 소개하고 있습니다. 사용자는 여기서 자료를 찾을 수 있다."
RU = "Это страница о компьютерных науках. Здесь описаны основные понятия операционных систем и сетей."
FR = "Voici une page sur l’informatique : les systèmes d’exploitation, les réseaux et les bases de données. Été à Nîmes, où l’on goûte la crème."
PL = "To jest strona o informatyce. Zażółć gęślą jaźń. Użytkownik może tu znaleźć materiały, których szuka, oraz książki."
EL = "Αυτή είναι μια σελίδα για την επιστήμη των υπολογιστών και τα λειτουργικά συστήματα."
SAMPLES = [
    (ZH, "gb18030"), (HANT, "big5"), (HANT, "gbk"), (JA, "shift_jis"), (JA, "euc_jp"), (JA, "iso2022_jp"), (KO, "euc_kr"), (ZH, "utf-8"), (FR, "utf-8"),
    (RU, "cp1251"), (RU, "koi8_r"), (RU, "iso8859_5"), (EL, "cp1253"), (FR, "cp1252"), (PL, "cp1250"), (ZH, "utf-16-le"), (FR, "utf-16-be"),
]  # fmt: skip


def page(text: str, encoding: str) -> bytes:
    return f"<html><head><title>x</title></head><body class='a'><p>{text}</p>\n</body></html>".encode(encoding)


@pytest.mark.parametrize(("text", "encoding"), SAMPLES)
def test_undeclared_and_labelled_latin_by_default(text, encoding):
    assert text in decode(page(text, encoding)).text
    if (text, encoding) != (PL, "cp1250"):  # a Latin page under a Latin label is what it says
        assert text in decode(page(text, encoding), "text/html; charset=ISO-8859-1").text


@pytest.mark.parametrize(("text", "encoding"), [s for s in SAMPLES if not s[1].startswith(("utf-16", "iso2022"))])
def test_one_bad_byte_or_a_cut_changes_nothing_else(text, encoding):
    body = page("<br>\n".join([text] * 30), encoding)
    middle = body.index(b"<br>\n", len(body) // 2)
    broken = decode(body[:middle] + b"\xff" + body[middle:])
    assert broken.text.count(text) >= 29
    for missing in range(1, 6):
        end = body.rindex(text.encode(encoding)) + len(text.encode(encoding)) - missing
        cut = decode(body[:end], truncated=True)
        assert cut.text.count(text) == 29
        assert cut.replacement_ratio == 0.0


@pytest.mark.parametrize("label", ["gb2312", "iso-8859-1", "big5", "windows-1251", "nonsense"])
def test_valid_utf8_beats_a_contradicting_label(label):
    for text in (ZH, FR):
        found = decode(page(text, "utf-8"), f"text/html; charset={label}")
        assert (text in found.text, found.encoding, found.source) == (True, "utf-8", "utf-8")


def test_labels_mean_what_browsers_take_them_for():
    rare = "𠮷野家和镕、€"  # beyond GB 2312: GB18030 has them
    assert rare in decode(page(rare + ZH, "gb18030"), "text/html; charset=GB2312").text
    assert "“quoted”" in decode(page("“quoted” text", "cp1252"), 'text/html; charset="latin1"').text
    for meta in ('<meta charset="gbk">', "<meta http-equiv=Content-Type content='text/html; charset=gb2312'>", "<?xml version='1.0' encoding='gbk'?>"):
        found = decode((" " * 10 + meta).encode().lstrip() + b" " * 3000 + "一二".encode("gbk"))
        assert (found.text[-2:], found.source) == ("一二", "meta")
    commented = decode(b'<!-- <meta charset="big5"> --><meta charset="gbk">' + "短文".encode("gbk"))
    assert commented.text.endswith("短文")


def test_http_comes_before_the_page_and_a_mark_before_both():
    body = b'<meta charset="big5">' + "短文".encode("gbk")
    assert decode(body, "text/html; charset=gbk").text.endswith("短文")
    for encoding in ("utf-8-sig", "utf-16", "utf-32"):
        found = decode("字节顺序 mark".encode(encoding), "text/html; charset=gbk")
        assert (found.text, found.source) == ("字节顺序 mark", "bom")


def test_a_wrong_double_byte_label_is_seen_through():
    assert JA in decode(page(JA * 3, "euc_jp"), "text/html; charset=gb2312").text
    assert HANT in decode(page(HANT * 3, "big5"), "text/html; charset=gb2312").text
    assert KO in decode(page(KO * 3, "euc_kr"), "text/html; charset=shift_jis").text


def test_any_bytes_decode_to_something():
    for body in (b"", b"\xff", b"\x80" * 1000, bytes(range(256)) * 40, b"a\0b\0", b"\x1b$B\x1b", "中".encode()[:2]):
        for kind in (None, "text/html; charset=utf-16", "text/html; charset=zlib", "text/plain; charset=gbk"):
            found = decode(body, kind)
            assert 0 <= found.replacement_ratio <= 1
            found.text.encode("utf-8")


@pytest.mark.parametrize(("text", "encoding"), [(ZH, "gb18030"), (HANT, "big5"), (JA, "shift_jis"), (JA, "euc_jp"), (KO, "euc_kr"), (RU, "cp1251"), (RU.upper(), "koi8_r"), (RU.upper(), "cp1251")])
def test_a_utf8_label_on_other_bytes_is_seen_through(text, encoding):
    for kind in ("text/html; charset=utf-8", 'text/html;charset="UTF8"', None):
        found = decode(b'<meta charset="utf8">' + page(text, encoding), kind)
        assert (text in found.text, found.source) == (True, "detected")


def test_a_short_text_with_one_bad_byte_stays_utf8():
    for text in ("Les souris sont autodétectées à l’amorçage.", "例子 显示当前", "коротко", "짧은 글 예"):
        good = text.encode("utf-8")
        for at in range(len(good) + 1):
            for bad in (b"\xff", b"\x80", b"\xc0", b"\xe4"):
                found = decode(b"<p>" + good[:at] + bad + good[at:] + b"</p>")
                kept = sum(c in found.text for c in text)
                assert kept >= len(text) - 2, (at, bad, found)


def test_a_table_drawn_with_lines_is_still_chinese():
    row = "│ 命令 │ 说明 │\n├──────┼──────┤\n│ ls   │ 列出目录 │\n"
    assert row in decode(page(row * 3, "gbk")).text


def test_latin_pages_are_told_apart_by_their_language():
    for text, encoding in [
        ("Après la sélection, l’été où l’élève préfère goûter la crème brûlée à Nîmes.", "cp1252"), ("Größe und Übersicht: schöne Straßen, „müde“ Füße.", "cp1252"),
        ("¿Dónde está el niño? Mañana vendrá con su corazón.", "cp1252"), ("Příliš žluťoučký kůň úpěl ďábelské ódy.", "cp1250"), ("Árvíztűrő tükörfúrógép, őszi hűvös.", "cp1250"),
        ("Şu köşe yaz köşesi, ığdır'ın güneşi çok sıcak.", "cp1254"), ("Įlinkdama fechtuotojo špaga sublykčiojusi pragręžė apvalų arbūzą.", "cp1257"),
    ]:  # fmt: skip
        assert text in decode(page(text, encoding)).text


def test_where_a_page_names_its_charset():
    body = "短文".encode("gbk")
    late = b"<html><head><script>" + b"x" * 6_000 + b'</script><meta charset="gbk"></head>' + body
    xhtml = b'<?xml version="1.0" encoding="utf-8"?><html><head><meta http-equiv="Content-Type" content="text/html; charset=gbk"/></head>' + body
    for data in (late, xhtml, b"<META CHARSET=GBK>" + body, b"<meta name=x content=y charset = 'gbk' >" + body):
        assert decode(data).text.endswith("短文")
    seven = decode(b"<meta charset=utf-7>+ADw-script+AD4- caf\xe9", "text/html; charset=utf-7")
    assert "+ADw-script" in seven.text and seven.text.endswith("café")  # no browser reads UTF-7: what looks like a tag in it is text
    assert decode(b'<meta charset="utf-16">' + "短文，河水流过。".encode()).text.endswith("短文，河水流过。")
