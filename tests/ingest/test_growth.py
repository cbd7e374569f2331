"""Every format keeps the ledger: unchanged files are not read, changed ones superseded, deleted ones gone; kills change nothing."""

from __future__ import annotations

import os
import time

import pytest

from llmpipe.data import seen
from tests.ingest.mixed import article, docs, docx, epub, ingest, mixed_folder, multistream, paragraph, pdf
from tests.killing import digests, kill_until_done
from tests.material import chinese


def test_the_same_bytes_for_any_workers_and_after_kills(tmp_path):
    source = mixed_folder(tmp_path / "in")
    ingest(tmp_path / "one", source, workers=1)
    (tmp_path / "one" / "state" / "seen.json").unlink()
    hits = kill_until_done(["ingest", source, "--output", tmp_path / "killed", "--workers", 2], tmp_path / "killed", kills=3)
    (tmp_path / "killed" / "state" / "seen.json").unlink()
    assert hits >= 2
    assert digests(tmp_path / "killed") == digests(tmp_path / "one")
    assert len(docs(tmp_path / "one")) == 40 + 2 + 2 + 8 + 2 + 6 + 1 + 1 + 1 + 1 + 1


def test_every_format_supersedes_and_buries(tmp_path):
    source, out = mixed_folder(tmp_path / "in"), tmp_path / "docs"
    ingest(out, source)
    before = {r["source"]: r["id"] for r in docs(out)}
    assert ingest(out, source).state == "fresh"
    pages = [article(f"条目{n}", f"'''{chinese(130 + n)}'''" if n != 3 else "改过 changed", number=n) for n in (1, 2, 3, 9)]
    (source / "f-pages-articles-multistream.xml.bz2").write_bytes(multistream(pages))
    (source / "g.epub").write_bytes(epub(["新版 new edition"]))
    (source / "h.docx").write_bytes(docx(paragraph("改 changed")))
    (source / "i.pdf").unlink()
    (source / "j.wacz").unlink()
    (source / "l.pdf").write_bytes(pdf(["Another page."]))
    outcome = ingest(out, source)
    assert outcome.state == "behind" and outcome.counts.extra == {"gone": 5, "unchanged": 2}
    after = {r["source"]: r for r in docs(out)}
    assert after["g.epub"]["text"] == "第0章\n新版 new edition" and after["g.epub"]["id"] == before["g.epub"] and after["g.epub"]["op"] == "changed"
    assert "i.pdf" not in after and "j.wacz" not in after and after["l.pdf"]["op"] == "new"
    assert sorted(r["text"] for r in docs(out) if r["source"].startswith("f-")) == sorted([chinese(131), chinese(132), "改过 changed", chinese(139)])


def test_files_at_rest_are_not_hashed_again(tmp_path, monkeypatch):
    source, out = tmp_path / "in", tmp_path / "docs"
    source.mkdir()
    for n in range(3):
        (source / f"{n}.txt").write_text(chinese(n), encoding="utf-8")
    monkeypatch.setattr(seen, "AT_REST_NS", 0)  # the files are a moment old
    time.sleep(0.05)
    ingest(out, source)
    hashed = []
    monkeypatch.setattr(seen, "sha256_file", lambda path, real=seen.sha256_file: hashed.append(path.name) or real(path))
    assert ingest(out, source).state == "fresh" and hashed == []
    stat = (source / "1.txt").stat()
    (source / "1.txt").write_text(chinese(7)[: len(chinese(1))].ljust(len(chinese(1)), "字"), encoding="utf-8")
    os.utime(source / "1.txt", ns=(stat.st_atime_ns, stat.st_mtime_ns))  # size and mtime as before: ctime tells
    assert (source / "1.txt").stat().st_size == stat.st_size
    assert ingest(out, source).state == "behind" and hashed == ["1.txt"]
    (out / "state" / "seen.json").write_text('{"x": [1', encoding="utf-8")
    assert ingest(out, source).state == "fresh" and sorted(hashed) == ["0.txt", "1.txt", "1.txt", "2.txt"]


@pytest.mark.parametrize("age_s", [0.0, 1.5])
def test_a_digest_taken_of_a_file_still_warm_is_not_trusted(tmp_path, age_s):
    path = tmp_path / "a.txt"
    path.write_text("一", encoding="utf-8")
    kept = seen.Seen(tmp_path)
    kept.save([(path, "wrong")], since=time.time() + age_s)
    assert seen.Seen(tmp_path).shard(path, "a.txt").sha256 != "wrong"
