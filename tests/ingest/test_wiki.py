"""Dumps of MediaWiki give their articles, once each, however the bz2 is cut; hostile XML is counted, never raised."""

from __future__ import annotations

import bz2

from llmpipe.data.ids import doc_id
from llmpipe.ingest import units
from tests.ingest.mixed import HEAD, article, docs, dropped, ingest, multistream, texts
from tests.material import chinese, english

PAGES = [article(f"条目 {n}", chinese(n) if n % 2 else english(n), number=n) for n in range(1, 12)]


def test_articles_without_redirects_and_other_namespaces(tmp_path):
    pages = [
        article("C++ 語言", "'''-{zh-hans:C++语言;zh-hant:C++語言}-''' is a [[language]].", number=5),
        article("旧名", "#REDIRECT [[C++]]", number=6, extra='<redirect title="C++" />'),
        article("Talk:C++", "讨论", ns=1, number=7),
    ]
    (tmp_path / "zhwiki-pages-articles.xml.bz2").write_bytes(multistream(pages))
    (tmp_path / "zhwiki-plain.xml").write_text(HEAD + "".join(pages) + "</mediawiki>", encoding="utf-8")
    for name in ("zhwiki-pages-articles.xml.bz2", "zhwiki-plain.xml"):
        out = tmp_path / f"docs-{name}"
        ingest(out, tmp_path / name)
        (row,) = docs(out)
        url = "https://zh.wikipedia.org/wiki/C++_%E8%AA%9E%E8%A8%80"
        assert (row["text"], row["title"], row["url"], row["language"], row["date"]) == ("C++语言 is a language.", "C++ 語言", url, "zh", "2026-01-02")
        assert row["id"] == doc_id("https://zh.wikipedia.org/wiki/C++_%E8%AA%9E%E8%A8%80") and "creativecommons" in row["license"]
        assert {m["key"]: m["value"] for m in row["meta"]}["page_id"] == "5"
        assert dropped(out) == [("namespace", f"{name}:7"), ("redirect", f"{name}:6")]
    ingest(tmp_path / "hant", tmp_path / "zhwiki-plain.xml", variant="zh-tw")
    assert texts(tmp_path / "hant") == ["C++語言 is a language."]


def test_units_of_a_multistream_dump_share_its_pages(tmp_path, monkeypatch):
    whole = (HEAD + "".join(PAGES) + "</mediawiki>").encode()
    cuts = [whole[n : n + 700] for n in range(0, len(whole), 700)]  # as pbzip2 cuts: anywhere
    for name, data in {"multi": multistream(PAGES), "pbzip2": b"".join(map(bz2.compress, cuts)), "single": bz2.compress(whole)}.items():
        path = tmp_path / f"{name}.xml.bz2"
        path.write_bytes(data)
        for unit_bytes in (1 << 25, 1_500, 400):
            monkeypatch.setattr(units, "UNIT_BYTES", unit_bytes)
            out = tmp_path / f"{name}-{unit_bytes}"
            outcome = ingest(out, path)
            assert texts(out) == sorted(chinese(n) if n % 2 else english(n) for n in range(1, 12)), out.name
            assert outcome.counts.dropped == {} and {r["url"] is not None for r in docs(out)} == {True}


def test_hostile_and_cut_dumps_are_counted(tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    laughs = '<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>'
    (source / "laughs.xml").write_text(f"{laughs}<mediawiki><page><title>x</title><ns>0</ns><text>&b;</text></page></mediawiki>", encoding="utf-8")
    data = bz2.compress((HEAD + "".join(PAGES) + "</mediawiki>").encode())
    (source / "cut.xml.bz2").write_bytes(data[: len(data) * 2 // 3])
    (source / "half.xml").write_text(HEAD + PAGES[0] + PAGES[1][:90], encoding="utf-8")
    (source / "feed.xml").write_text("<rss><channel/></rss>", encoding="utf-8")
    (source / "empty.xml").write_bytes(b"")
    (source / "long.xml").write_text(HEAD + article("长", "字" * 300_000) + PAGES[2] + "</mediawiki>", encoding="utf-8")
    (source / "tag.xml").write_bytes(b"<mediawiki><!--" + b"x" * 9_000_000)
    ingest(tmp_path / "docs", source, max_record_bytes=100_000)
    assert {chinese(1), chinese(3)} <= set(texts(tmp_path / "docs"))
    rules = sorted((rule, place.partition(":")[0]) for rule, place in dropped(tmp_path / "docs"))
    assert rules == [("broken_file", "cut.xml.bz2"), ("broken_file", "half.xml"), ("broken_file", "laughs.xml"), ("broken_file", "tag.xml"), ("no_text", "empty.xml"), ("too_long", "long.xml"), ("unknown_format", "feed.xml")]
