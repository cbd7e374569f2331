"""Lines that many documents share, and passages that occurred before: cut as brute force says, and nothing else."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from llmpipe.dedup.lines import count_lines
from llmpipe.dedup.runs import merged, write_run
from llmpipe.dedup.substrings import windows_of
from llmpipe.dedup.write import without
from tests.dedup.test_dedup_stage import live, rows_of, table
from tests.inprocess import run
from tests.material import CHINESE, ENGLISH, chinese, english, write_docs_dir


def test_lines_of_many_documents_are_cut_and_the_first_keeps_them(make_docs, tmp_path: Path):
    menu, note, rare = "Home | About us | Contact", "版权所有，未经许可不得转载本站内容", "seen in two pages only"
    texts = {f"p{i}": f"{menu.upper() if i % 2 else menu}\n\n{english(i)}\n{chinese(i)}\n{note}\n-----\n{rare if i < 2 else english(90 + i, 1)}" for i in range(6)}
    make_docs(tmp_path / "docs", rows_of(texts))
    done = run("dedup", tmp_path / "docs", tmp_path / "out", "lines.min_docs=5")
    out = live(tmp_path / "out")
    assert out[rows_of(texts)[0]["id"]] == texts["p0"]  # the first keeps all
    for i in range(1, 6):
        text = out[rows_of(texts)[i]["id"]]
        assert menu.lower() not in text.lower() and note not in text and text.startswith(english(i)) and "-----" in text
    assert rare in out[rows_of(texts)[1]["id"]] and done.counts.extra["cut_lines"] == 10
    cut = table(tmp_path / "out" / "cut")
    assert {c["rule"] for c in cut} == {"line"} and all(texts[f"p{i}"][c["start"] : c["end"]] == c["snippet"] for c in cut for i in range(6) if c["id"] == rows_of(texts)[i]["id"])
    # counts of a generation are frozen, and the next one adds to them: nobody keeps the line any more
    make_docs(tmp_path / "docs", rows_of({"late": f"{menu}\n{rare}\n{english(70)}", "later": f"{rare}\n{english(71)}"}))
    run("dedup", tmp_path / "docs", tmp_path / "out", "lines.min_docs=5")
    assert live(tmp_path / "out")[rows_of({"late": ""})[0]["id"]] == f"{rare}\n{english(70)}"


def test_paragraphs_hosts_and_what_is_left(make_docs, tmp_path: Path):
    para = "This site uses cookies.\n本站使用 Cookie 技术，请知悉。"
    texts = {f"p{i}": f"{english(i)}\n\n{para}\n\n{chinese(i)}" for i in range(4)} | {"only": para}
    make_docs(tmp_path / "docs", rows_of(texts))
    done = run("dedup", tmp_path / "docs", tmp_path / "out", "lines={unit: paragraph, min_docs: 3, keep: none, scope: host}")
    assert list(live(tmp_path / "out").values()) == [f"{english(i)}\n\n{chinese(i)}" for i in range(4)]
    assert done.counts.dropped == {"short_after_cuts": 1} and done.counts.kept == 4
    other = [{**row, "url": f"http://host{i}.example/"} for i, row in enumerate(rows_of(texts))]
    write_docs_dir(tmp_path / "hosts", other)
    run("dedup", tmp_path / "hosts", tmp_path / "out2", "lines={unit: paragraph, min_docs: 3, scope: host}")
    assert set(live(tmp_path / "out2").values()) == set(texts.values())  # each host has it once


@pytest.mark.parametrize("partition_bytes", [64, 1 << 20])
def test_counts_by_ranges_of_hashes_equal_counts_in_memory(partition_bytes: int, tmp_path: Path):
    rng = np.random.default_rng(0)
    names = rng.integers(0, 2**64, 40, dtype=np.uint64)
    docs = [set(rng.choice(names, 12).tolist()) for _ in range(30)]
    paths = []
    for k in range(3):
        pairs = [(h, row) for row in range(k * 10, k * 10 + 10) for h in docs[row]]
        paths.append(tmp_path / f"{k}.npy")
        write_run(paths[-1], np.array(pairs, np.uint64).T)
    got = [(c, x) for c, x in count_lines(paths, [], min_docs=9, partition_bytes=partition_bytes)]
    counts = {int(h): int(n) for c, _ in got for h, n in c.T}
    assert counts == {h: sum(h in d for d in docs) for h in set().union(*docs)}
    cuts = {int(h): int(r) - 1 for _, x in got for h, r in x.T}
    assert cuts == {h: next(r for r, d in enumerate(docs) if h in d) for h, n in counts.items() if n >= 9}
    assert len(list(merged(paths, partition_bytes=64))) > 10


def brute_force(texts: list[str], words: int) -> list[str]:
    """Cut, token by token, every window that occurred before: `words` words or twice as many characters."""
    seen: set[tuple[int, ...]] = set()
    out = []
    for text in texts:
        (_, w), *_ = windows_of([text], words)
        t, cut = w.tokens, set()
        for i in range(len(t.docs)):
            weight, j = 0, i
            while j < len(t.docs) and weight < 2 * words:
                weight, j = weight + int(t.weights[j]), j + 1
            if weight < 2 * words or not t.weights[i]:
                continue
            key = tuple(t.hashes[i:j].tolist())
            if key in seen:
                cut |= set(range(int(t.starts[i]), int(t.ends[j - 1])))
            seen.add(key)
        out.append("".join(c for k, c in enumerate(text) if k not in cut))
    return out


def passages(seed: int, make) -> list[str]:
    """Documents that share stretches with earlier ones, and with themselves."""
    rng = random.Random(seed)
    vocabulary, join = (ENGLISH, " ") if make is english else (CHINESE, "")
    pool = [join.join(rng.choices(vocabulary, k=rng.randint(5, 60))) for _ in range(12)]
    return [join.join(rng.choice(pool) if rng.random() < 0.6 else join.join(rng.choices(vocabulary, k=20)) + rng.choice(".,。!") for _ in range(12)) for _ in range(14)]


def solid(text: str) -> str:
    return "".join(text.split())


def test_passages_are_cut_exactly_as_brute_force_says_in_both_languages(make_docs, tmp_path: Path):
    for make, words in ((english, 20), (chinese, 20), (english, 50)):
        texts = passages(words, make)
        name = f"{make.__name__}{words}"
        make_docs(tmp_path / name, rows_of({f"{i:02}": t for i, t in enumerate(texts)}))
        done = run("dedup", tmp_path / name, tmp_path / f"out-{name}", "near=null", f"substrings.min_tokens={words}", "substrings.min_left=0")
        expected = brute_force(texts, words)
        got = live(tmp_path / f"out-{name}")
        assert [solid(got[r["id"]]) for r in rows_of({f"{i:02}": "" for i in range(len(texts))})] == [solid(t) for t in expected]
        assert done.counts.extra.get("cut_substrings", 0) > 0
        cut = table(tmp_path / f"out-{name}" / "cut")
        assert all(c["partner_id"] in got for c in cut)


def test_later_generations_cut_what_stands_in_older_ones(make_docs, tmp_path: Path):
    shared = {"en": english(5, 8), "zh": chinese(5, 12)}
    make_docs(tmp_path / "docs", rows_of({k: english(1) + "\n" + v + "\n" + chinese(1 + len(k)) for k, v in shared.items()}))
    run("dedup", tmp_path / "docs", tmp_path / "out", "substrings={}")
    make_docs(tmp_path / "docs", rows_of({f"{k}-new": english(8) + "\n" + v + "\n" + chinese(8) for k, v in shared.items()}))
    run("dedup", tmp_path / "docs", tmp_path / "out", "substrings={}")
    out = live(tmp_path / "out")
    for k, v in shared.items():
        assert v in out[rows_of({k: ""})[0]["id"]] and v not in out[rows_of({f"{k}-new": ""})[0]["id"]]
    assert {c["partner_id"] for c in table(tmp_path / "out" / "cut")} <= set(out)


def test_cuts_leave_no_holes_in_words_and_no_heaps_of_blank_lines():
    assert without("a\nb\nc", [(2, 3, "line", -1)]) == "a\nc"
    assert without("你好\n\n目录\n\n世界", [(4, 6, "line", -1)]) == "你好\n\n世界"
    assert without("menu\n  code", [(0, 4, "line", -1)]) == "  code"
    assert without("a b c", [(2, 3, "substring", -1), (2, 5, "substring", 1)]) == "a "
