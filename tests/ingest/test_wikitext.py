"""Wikitext becomes prose: what stands in sentences stays, what stands around them goes, in linear time."""

from __future__ import annotations

import time

import pytest

from llmpipe.ingest.variants import Conversion
from llmpipe.ingest.wikitext import Wiki, plain_text


def plain(text: str, **options: str) -> str:
    return plain_text(text, Wiki(), **options)[0]


@pytest.mark.parametrize(
    ("wikitext", "expected"),
    [
        ("'''北京'''是[[中国|中华人民共和国]]的[[首都]]。<ref>来源{{cite web|url=x}}</ref><ref name=a />", "北京是中华人民共和国的首都。"),
        ("The '''[[Mercury (planet)|]]''' of {{lang|la|Mercurius}}, {{convert|10|km|mi}} off<!-- hidden -->.", "The Mercury of Mercurius, 10 km off."),
        ("{{Infobox\n|name=x\n|map=[[File:a.jpg|{{b|c}}]]\n|}}\n正文。[[File:b.jpg|thumb|说明 [[链接]] 与 [http://x y]]]", "正文。"),
        ("北京（{{未知}}；{{lang-en|Peking}}，{{x}}）很大（，{{y}}）。", "北京（Peking）很大。"),
        ("== 历史 ==\n=== 空 ===\n<gallery>\na.jpg|甲\n</gallery>\n== 地理 ==\n* 山\n*# 水 [http://x.example 链接]\n: ''缩进''\n== 参考文献 ==\n{{reflist}}", "地理\n\n- 山\n- 水 链接\n缩进"),
        ("质能 <math>E = mc^2</math>，<code>a[0] = {{x}}</code>，<nowiki>[[原样]]</nowiki>。", "质能 $E = mc^2$，a[0] = {{x}}，[[原样]]。"),
        ('{| class="wikitable"\n|+ 表\n! 甲 !! A\n|-\n| style="x" | 1 || [[二|2]]\n|}\n后文', "表\n甲 | A\n1 | 2\n\n后文"),
        ("[[Category:城市]][[en:Beijing]][[:Category:城市]] [[file:a.png]]__NOTOC__&lt;3&nbsp;x", "Category:城市 <3 x"),
        ("a [[未闭合\n第二行 {{x}} y {{unclosed", "a 未闭合\n第二行  y unclosed"),
        ("{{#if:x|是|否}}{{formatnum:1234}}{{PAGENAME}}-{{lang|en|x}}-", "是1234-x-"),
    ],
)
def test_prose_stays_and_markup_goes(wikitext, expected):
    assert plain(wikitext) == expected


def test_variants_resolve_to_the_one_wanted():
    text = "{{NoteTA|1=zh-hans:内存;zh-hant:記憶體|T=zh-cn:鼠标;zh-tw:滑鼠}}-{zh-hans:计算机;zh-hant:電腦}-的記憶體，-{A|zh-cn:信息;zh-tw:資訊}-即資訊，-{H|zh-cn:软件;zh-tw:軟體}-軟體、-{軟體}-、-{zh-hk:的士;zh-cn:出租车;zh-tw:計程車}-；English -{A}-."
    assert plain_text(text, Wiki(), variant="zh-hans", title="滑鼠") == ("计算机的内存，信息即信息，软件、軟體、出租车；English A.", "鼠标")
    assert plain_text(text, Wiki(), variant="zh-tw", title="滑鼠") == ("電腦的記憶體，資訊即資訊，軟體、軟體、計程車；English A.", "滑鼠")
    assert plain("-{T|zh-cn:甲;zh-tw:乙}-文-{zh;zh-hans|原;文}--{D|zh-cn:丙}-") == "文原;文丙"
    one_way = Conversion("zh-cn")
    one_way.add_rule("巨集=>zh-cn:宏;")
    assert one_way.apply("巨集 macro") == "宏 macro"


@pytest.mark.parametrize("piece", ["{{", "[[", "<ref>", "<!--", "\n{|", "-{", "[http://", "[[a|{{b|-{", "}}", "'", "=", " ", "(", "<math>"])
def test_hostile_nesting_takes_linear_time(piece):
    text = "文 " + piece * (200_000 // len(piece)) + "x end"
    start = time.process_time()
    plain(text)
    assert time.process_time() - start < 2.0
