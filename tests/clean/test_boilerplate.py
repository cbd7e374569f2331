"""Lines that stand on many pages of one site go; the same line elsewhere stays."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from llmpipe.clean import boilerplate
from llmpipe.clean.boilerplate import Boilerplate, Frozen, count_lines, domain_of, merge
from llmpipe.data.docs import read_docs, write_parquet
from llmpipe.data.ids import doc_id
from tests.inprocess import run
from tests.killing import digests, kill_until_done
from tests.material import chinese, english, write_docs_dir

FOOTER = {"en.example": "All rights reserved by the river company.", "zh.example": "版权所有：河流公司，未经许可不得转载。"}


def pages(count: int, *, start: int = 0, footer: bool = True) -> list[dict]:
    rows = []
    for i in range(start, start + count):
        host, text = ("en.example", english(i, 3)) if i % 2 else ("zh.example", chinese(i, 3))
        url = f"http://www.{host}/{i}"
        rows.append({"id": doc_id(url), "url": url, "text": f"  {text}\n\n{FOOTER[host]}" if footer else text, "source": "t"})
    return rows


def texts_of(folder: Path) -> dict[str, str]:
    return {r["url"]: r["text"] for batch in read_docs(folder) for r in batch.to_pylist()}


def test_a_line_on_many_pages_of_its_domain_goes_in_both_languages_and_stays_elsewhere(tmp_path: Path):
    rows = pages(40)
    for i in range(30):  # the Chinese footer quoted on another site, once a page, but on few of its many pages
        url = f"http://other.example/{i}"
        rows.append({"id": doc_id(url), "url": url, "text": english(1000 + i, 3) + ("\n" + FOOTER["zh.example"] if i < 3 else ""), "source": "t"})
    out = tmp_path / "out"
    outcome = run("clean", write_docs_dir(tmp_path / "docs", rows, shards=3), out, "presets=[]", "boilerplate={min_docs: 5, min_share: 0.5}")
    got = texts_of(out)
    assert len(got) == 70 and not any(f in t for u, t in got.items() for f in FOOTER.values() if "other" not in u)
    assert sum(FOOTER["zh.example"] in t for t in got.values()) == 3
    assert outcome.counts.extra["boilerplate_lines"] == 40 and outcome.manifest.info["boilerplate"]["lines"] == 2
    few = run("clean", tmp_path / "docs", tmp_path / "few", "presets=[]", "boilerplate={min_docs: 21}")
    assert "boilerplate_lines" not in few.counts.extra


def test_later_documents_are_judged_by_all_so_far_and_earlier_ones_stay(tmp_path: Path):
    given = write_docs_dir(tmp_path / "docs", pages(6))
    settings = ("presets=[]", "boilerplate={min_docs: 5}")
    run("clean", given, tmp_path / "out", *settings)
    first = texts_of(tmp_path / "out")
    assert all(any(f in t for f in FOOTER.values()) for t in first.values())  # 3 of each: not yet
    write_docs_dir(given, pages(6, start=6))
    run("clean", given, tmp_path / "out", *settings)
    both = texts_of(tmp_path / "out")
    assert {u: t for u, t in both.items() if u in first} == first
    assert not any(f in t for u, t in both.items() if u not in first for f in FOOTER.values())


def test_a_changed_page_is_not_counted_twice(tmp_path: Path):
    given = write_docs_dir(tmp_path / "docs", pages(6))
    settings = ("presets=[]", "boilerplate={min_docs: 4}")
    run("clean", given, tmp_path / "out", *settings)
    write_docs_dir(given, [{**r, "op": "changed", "text": r["text"] + " changed"} for r in pages(6)])
    run("clean", given, tmp_path / "out", *settings)
    assert all("changed" in t and any(f in t for f in FOOTER.values()) for t in texts_of(tmp_path / "out").values())


def test_same_bytes_for_1_2_and_7_workers_and_after_kills(tmp_path: Path):
    given = write_docs_dir(tmp_path / "docs", pages(160), shards=8)
    results = []
    for workers, kills in ((1, 0), (2, 0), (7, 0), (1, 5)):
        out = tmp_path / f"{workers}-{kills}"
        command = ["clean", "--input", given, "--output", out, "--workers", workers, "--set", "boilerplate={min_docs: 5}"]
        assert kill_until_done(command, out, kills=kills) == kills
        results.append(digests(out))
    assert results[0] == results[1] == results[2] == results[3]
    assert any(name.startswith("index/boilerplate-") for name in results[0])


@pytest.mark.parametrize("rows", [7, 100, 10**6])
def test_merging_in_ranges_gives_the_same_as_at_once(rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rng = random.Random(5)
    vocabulary = [english(i, 1) for i in range(30)] + [chinese(i, 1) for i in range(30)]
    documents = [("\n".join(rng.choices(vocabulary, k=8)), rng.choice(["a.example", "b.example"])) for _ in range(90)]
    paths = []
    for n in range(3):
        table = count_lines([t for t, _ in documents[n::3]], [d for _, d in documents[n::3]], max_chars=300)
        write_parquet(tmp_path / f"{n}.parquet", table)
        paths.append(tmp_path / f"{n}.parquet")
    monkeypatch.setattr(boilerplate, "MERGE_ROWS", rows)
    found = merge(paths, Boilerplate(min_docs=6, min_share=0.1))
    expected = 0
    for domain in ("a.example", "b.example"):
        own = [set(t.split("\n")) for t, d in documents if d == domain]
        expected += sum(sum(line in lines for lines in own) >= max(6, 0.1 * len(own)) for line in vocabulary)
    keys = found.column("key").to_numpy()
    assert found.num_rows == expected > 5 and (keys[1:] > keys[:-1]).all()
    removed, lost = Frozen(keys, max_chars=300).remove(*map(list, zip(*documents, strict=True)))
    assert sum(lost) > 0 and all(len(removed.get(i, t).split("\n")) == 8 - lost[i] or removed.get(i) == "" for i, (t, _) in enumerate(documents))


def test_domains_and_settings():
    assert domain_of("https://www.Example.org:8080/a", None) == "example.org" and domain_of(None, "books") == "source books"
    assert domain_of("https://a.example.org/", "x") == "a.example.org"
    with pytest.raises(ValueError, match="at least 2"):
        Boilerplate(min_docs=1)
