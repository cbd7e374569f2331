"""Small files of every format, Chinese and English, and what the tests of ingest share."""

from __future__ import annotations

import bz2
import io
import json
import zipfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import pyarrow as pa
import pyarrow.parquet as pq

from llmpipe.crawl.warc import WarcWriter
from llmpipe.data.docs import read_docs
from llmpipe.ingest.stage import Config
from llmpipe.stage import STAGES, Options, Outcome, Request, run_stage
from tests.material import chinese, english


def ingest(output: Path, *inputs: Any, workers: int = 1, **config: Any) -> Outcome:
    return run_stage(STAGES["ingest"], Config(**config), Request(inputs=inputs, output=output), Options(workers=workers))


def docs(output: Path) -> list[dict[str, Any]]:
    return [row for batch in read_docs(output) for row in batch.to_pylist()]


def texts(output: Path) -> list[str]:
    return sorted(row["text"] for row in docs(output))


def dropped(output: Path) -> list[tuple[str, str]]:
    return sorted((row["rule"], row["url"]) for path in (output / "dropped").glob("*.parquet") for row in pq.read_table(path).to_pylist())


def article(title: str, text: str, *, ns: int = 0, number: int = 1, extra: str = "") -> str:
    return (
        f"<page><title>{escape(title)}</title><ns>{ns}</ns><id>{number}</id>{extra}<revision><id>9{number}</id><timestamp>2026-01-02T03:04:05Z</timestamp>"
        f'<contributor><username>x</username><id>7</id></contributor><model>wikitext</model><text xml:space="preserve">{escape(text)}</text></revision></page>\n'
    )


HEAD = (
    '<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" xml:lang="zh">\n<siteinfo><sitename>维基百科</sitename><base>https://zh.wikipedia.org/wiki/Wikipedia:首页</base>'
    '<namespaces><namespace key="0" /><namespace key="6">文件</namespace><namespace key="14">分类</namespace></namespaces></siteinfo>\n'
)


def multistream(pages: list[str], *, per_stream: int = 2) -> bytes:
    """A dump as Wikipedia makes it: a stream of bz2 for the head, one for every few pages, one for the end."""
    chunks = ["".join(pages[n : n + per_stream]) for n in range(0, len(pages), per_stream)]
    return b"".join(bz2.compress(part.encode()) for part in [HEAD, *chunks, "</mediawiki>"])


def epub(chapters: list[str], *, title: str = "书名", spine: str | None = None, more: dict[str, bytes] | None = None) -> bytes:
    items = "".join(f'<item id="c{n}" href="text/c%20{n}.xhtml" media-type="application/xhtml+xml"/>' for n in range(len(chapters)))
    spine = spine or "".join(f'<itemref idref="c{n}"/>' for n in range(len(chapters)))
    opf = (
        '<?xml version="1.0"?><package xmlns="http://www.idpf.org/2007/opf"><metadata xmlns:dc="http://purl.org/dc/elements/1.1/">'
        f"<dc:title>{title}</dc:title><dc:creator>鲁迅</dc:creator><dc:language>zh-CN</dc:language></metadata><manifest>{items}"
        f'<item id="nav" properties="nav" href="nav.xhtml" media-type="application/xhtml+xml"/></manifest><spine><itemref idref="nav"/>{spine}</spine></package>'
    )
    files = {
        "mimetype": b"application/epub+zip",
        "META-INF/container.xml": b'<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles><rootfile full-path="OEBPS/book.opf"/></rootfiles></container>',
        "OEBPS/book.opf": opf.encode(),
        "OEBPS/nav.xhtml": b"<html><body><nav>contents</nav></body></html>",
        **{f"OEBPS/text/c {n}.xhtml": f'<?xml version="1.0" encoding="utf-8"?><html xmlns="http://www.w3.org/1999/xhtml"><body><h1>第{n}章</h1><p>{c}&nbsp;</p></body></html>'.encode() for n, c in enumerate(chapters)},
        **(more or {}),
    }
    return zipped(files)


def docx(body: str, **more: bytes) -> bytes:
    space = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
    core = b'<cp:coreProperties xmlns:cp="c" xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:title>\xe6\xa0\x87\xe9\xa2\x98</dc:title><dc:creator>A. Author</dc:creator></cp:coreProperties>'
    return zipped({"[Content_Types].xml": b"<Types/>", "word/document.xml": f"<w:document {space}><w:body>{body}</w:body></w:document>".encode(), "docProps/core.xml": core, **more})


def paragraph(text: str, properties: str = "") -> str:
    return f"<w:p><w:pPr>{properties}</w:pPr><w:r><w:t>{text}</w:t></w:r></w:p>"


def pdf(lines: list[str]) -> bytes:
    """A PDF of one page; with no lines one that holds no text."""
    from pypdf import PdfWriter
    from pypdf.generic import DecodedStreamObject, DictionaryObject, NameObject

    writer = PdfWriter()
    page = writer.add_blank_page(300, 300)
    font = DictionaryObject({NameObject(k): NameObject(v) for k, v in (("/Type", "/Font"), ("/Subtype", "/Type1"), ("/BaseFont", "/Helvetica"))})
    page[NameObject("/Resources")] = DictionaryObject({NameObject("/Font"): DictionaryObject({NameObject("/F"): font})})
    content = DecodedStreamObject()
    content.set_data(("BT /F 9 Tf 10 280 Td 12 TL " + " ".join(f"({line}) Tj T*" for line in lines) + " ET").encode())
    page[NameObject("/Contents")] = content
    writer.add_metadata({"/Title": "Paper", "/Author": "A. Author"})
    out = io.BytesIO()
    writer.write(out)
    return out.getvalue()


def zipped(files: dict[str, bytes], *, compress: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compress) as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name), data, compress)
    return out.getvalue()


def warc_bytes(folder: Path, pages: list[tuple[str, str]]) -> bytes:
    path = folder / "tmp.warc.gz"
    with WarcWriter(path) as writer:
        for url, text in pages:
            writer.write(url, 200, {"Content-Type": "text/html; charset=utf-8"}, f"<html><body><article><p>{text}</p></article></body></html>".encode(), datetime(2026, 1, 2, tzinfo=UTC))
    data = path.read_bytes()
    path.unlink()
    return data


def mixed_folder(folder: Path) -> Path:
    """A folder with a few documents of each format."""
    folder.mkdir()
    rows = [{"text": f"{n} {chinese(n) if n % 2 else english(n)}"} for n in range(40)]
    (folder / "a.jsonl").write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")
    (folder / "b.json").write_text(json.dumps([{"text": chinese(100)}, {"text": english(101)}], ensure_ascii=False, indent=1), encoding="utf-8")
    (folder / "c.csv").write_text(f'text,n\n"{chinese(102)}",1\n"{english(103)}\n2",2\n', encoding="utf-8")
    pq.write_table(pa.table({"text": [chinese(n) for n in range(110, 118)]}), folder / "d.parquet", row_group_size=3)
    with pa.ipc.new_file(folder / "e.arrow", pa.schema([("text", pa.string())])) as writer:
        writer.write_batch(pa.record_batch({"text": [english(120), chinese(121)]}))
    pages = [article(f"条目{n}", f"'''{chinese(130 + n)}'''", number=n) for n in range(1, 7)]
    (folder / "f-pages-articles-multistream.xml.bz2").write_bytes(multistream(pages))
    (folder / "g.epub").write_bytes(epub([chinese(140), english(141)]))
    (folder / "h.docx").write_bytes(docx(paragraph(chinese(150))))
    (folder / "i.pdf").write_bytes(pdf(["The text of a page."]))
    (folder / "j.wacz").write_bytes(zipped({"archive/data.warc.gz": warc_bytes(folder, [("http://x.example/zh", chinese(160))])}, compress=zipfile.ZIP_STORED))
    (folder / "k.txt").write_bytes(chinese(170).encode("gb18030"))
    return folder
