"""EPUB, DOCX and PDF become documents; what is broken, locked, empty or a bomb is counted, and nothing leaves the folder."""

from __future__ import annotations

import importlib.util
import time
import zipfile
from pathlib import Path

import pytest

from llmpipe.errors import UsageError
from llmpipe.ingest import parsers, sandbox
from tests.ingest.mixed import docs, docx, dropped, epub, ingest, paragraph, pdf, texts, warc_bytes, zipped
from tests.material import chinese, english


def test_books_become_documents(tmp_path):
    source, zh, en = tmp_path / "in", chinese(1), english(2)
    source.mkdir()
    (source / "a.epub").write_bytes(epub([zh, en], spine='<itemref idref="c1"/><itemref idref="c0"/>'))
    rows = "".join("<w:tr>" + "".join(f"<w:tc>{paragraph(c)}</w:tc>" for c in row) + "</w:tr>" for row in (("甲", "A"), ("乙", "B")))
    deleted = "<w:p><w:del><w:r><w:delText>gone</w:delText></w:r></w:del><w:ins><w:r><w:t>留下</w:t></w:r></w:ins></w:p>"
    notes = f'<w:footnotes xmlns:w="w"><w:footnote>{paragraph("脚注")}</w:footnote></w:footnotes>'.encode()
    body = paragraph("第一节", '<w:pStyle w:val="Heading1"/>') + paragraph(zh) + paragraph("item", "<w:numPr/>") + f"<w:tbl>{rows}</w:tbl>" + deleted
    (source / "b.docx").write_bytes(docx(body, **{"word/footnotes.xml": notes}))
    (source / "c.pdf").write_bytes(pdf(["This is a long line that the margin of the page has bro-", "ken, and it goes on here until the sentence has its end.", "Short."]))
    ingest(tmp_path / "docs", source)
    found = {r["source"]: r for r in docs(tmp_path / "docs")}
    assert found["a.epub"]["text"] == f"第1章\n{en}\n\n第0章\n{zh}"
    assert [found["a.epub"][k] for k in ("title", "author", "language")] == ["书名", "鲁迅", "zh-CN"]
    assert found["b.docx"]["text"] == f"第一节\n\n{zh}\n- item\n甲 | A\n乙 | B\n留下\n脚注" and found["b.docx"]["title"] == "标题"
    assert found["c.pdf"]["text"] == "This is a long line that the margin of the page has broken, and it goes on here until the sentence has its end.\nShort."
    assert [found["c.pdf"][k] for k in ("title", "author")] == ["Paper", "A. Author"]
    ingest(tmp_path / "chapters", source / "a.epub", split_books=True)
    assert texts(tmp_path / "chapters") == sorted([f"第1章\n{en}", f"第0章\n{zh}"])


def test_lines_of_a_page_are_joined_as_their_language_wants():
    assert parsers.reflow("这一行到了页边就断开了还没有\n说完。\n短行\n1.2 目录 . . . . . . . . 13\n") == "这一行到了页边就断开了还没有说完。\n短行\n1.2 目录 … 13"
    assert parsers.reflow("a long line without an end\nof its sentence") == "a long line without an end of its sentence"


def test_hostile_books_are_counted(tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    laughs = b'<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;">]><container><rootfiles><rootfile full-path="&b;"/></rootfiles></container>'
    (source / "bomb.epub").write_bytes(epub(["x"], more={"OEBPS/text/c 0.xhtml": b"<p>" + b"0" * 3_000_000}))
    (source / "cut.epub").write_bytes(epub([chinese(1)])[:-40])
    (source / "drm.epub").write_bytes(epub(["x"], more={"META-INF/encryption.xml": b'<e><CipherReference URI="OEBPS/text/c%200.xhtml"/></e>'}))
    (source / "empty.epub").write_bytes(epub([""], more={"OEBPS/text/c 0.xhtml": b"<html><body/></html>"}))
    (source / "laughs.epub").write_bytes(epub(["x"], more={"META-INF/container.xml": laughs}))
    (source / "slip.epub").write_bytes(epub([english(3)], more={"../../evil.xhtml": b"evil", "/etc/evil": b"evil"}))
    (source / "text.docx").write_bytes(b"not a zip")
    (source / "deep.docx").write_bytes(docx("<w:p>" * 5_000 + "</w:p>" * 5_000))
    (source / "scan.pdf").write_bytes(pdf([]))
    (source / "cut.pdf").write_bytes(pdf(["text"])[:200])
    outcome = ingest(tmp_path / "docs", source, max_record_bytes=1_000_000)
    assert texts(tmp_path / "docs") == [f"第0章\n{english(3)}"]
    assert sorted(dropped(tmp_path / "docs")) == sorted(
        [("too_long", "bomb.epub"), ("encrypted", "drm.epub"), ("no_text", "empty.epub"), ("no_text", "scan.pdf"), *(("broken_file", n) for n in ("cut.epub", "laughs.epub", "text.docx", "deep.docx", "cut.pdf"))]
    )
    assert outcome.counts.read == outcome.counts.kept + sum(outcome.counts.dropped.values())
    assert not list(tmp_path.rglob("*evil*"))


def test_a_book_that_hangs_or_crashes_costs_only_itself(tmp_path, monkeypatch):
    code = "import time, os, sys; from llmpipe.ingest import parsers; parsers.PARSERS.update(hang=lambda body, limit: time.sleep(60), crash=lambda body, limit: os.abort(), good=lambda body, limit: {'parts': [body.decode()]});"
    popen = sandbox.subprocess.Popen

    def patched(command, **options):
        return popen([command[0], *command[1:3], command[3].replace("from llmpipe.ingest.sandbox", f"{code} from llmpipe.ingest.sandbox"), *command[4:]], **options)

    monkeypatch.setattr(sandbox.subprocess, "Popen", patched)
    with sandbox.Sandbox(timeout_s=0.5) as box:
        start = time.monotonic()
        assert [box.call(name, "好 good".encode(), limit=9) for name in ("hang", "good", "crash", "good")] == [{"error": "timeout"}, {"parts": ["好 good"]}, {"error": "crash"}, {"parts": ["好 good"]}]
        assert time.monotonic() - start < 30


def test_pdf_without_its_library_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "a.pdf").write_bytes(b"%PDF-1.5")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="pypdf") as error:
        ingest(tmp_path / "docs", tmp_path / "a.pdf")
    assert "pip install 'llmpipe[pdf]'" in error.value.hint


def test_archives_in_wacz_are_read_in_place(tmp_path, monkeypatch):
    from llmpipe.ingest import units

    monkeypatch.setattr(units, "UNIT_BYTES", 700)
    pages = [(f"http://x.example/{n}", chinese(n) if n % 2 else english(n)) for n in range(8)]
    data = warc_bytes(tmp_path, pages)
    source = tmp_path / "in"
    source.mkdir()
    (source / "stored.wacz").write_bytes(zipped({"datapackage.json": b"{}", "archive/a.warc.gz": data, "../archive/evil.warc.gz": b"x"}, compress=zipfile.ZIP_STORED))
    ingest(tmp_path / "docs", source)
    assert texts(tmp_path / "docs") == sorted(text for _, text in pages)
    deflated = tmp_path / "deflated.wacz"
    deflated.write_bytes(zipped({"archive/a.warc.gz": data}))
    ingest(tmp_path / "docs2", deflated)
    assert texts(tmp_path / "docs2") == sorted(text for _, text in pages)
    (source / "none.wacz").write_bytes(zipped({"readme": b""}))
    (source / "cut.wacz").write_bytes(deflated.read_bytes()[:-30])
    (source / "bomb.wacz").write_bytes(zipped({"archive/b.warc": b"WARC/1.0\r\n" + b"\0" * 5_000_000}))
    (source / "c.warc.gz").write_bytes(b"neither")
    wet = "WARC/1.0\r\nWARC-Type: conversion\r\nWARC-Target-URI: http://w.example/\r\nWARC-Date: 2026-01-02T00:00:00Z\r\nContent-Type: text/plain\r\nContent-Length: 12\r\n\r\n网页文字\r\n\r\n"
    (source / "d.warc.wet").write_bytes(wet.encode())
    ingest(tmp_path / "docs", source)
    assert "网页文字" in texts(tmp_path / "docs")
    assert sorted((rule, Path(place.partition(":")[0]).parts[0]) for rule, place in dropped(tmp_path / "docs")) == [("broken_file", "c.warc.gz"), ("broken_file", "cut.wacz"), ("broken_file", "none.wacz"), ("broken_record", "bomb.wacz")]
