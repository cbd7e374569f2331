"""Rules of the frontier: what is committed survives, what isn't is still to do, part files can be made again."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from llmpipe.crawl.frontier import Frontier, NewUrl, url_key
from llmpipe.errors import InputError

ROW = {"url": "http://a.example/", "text": "河 river", "fetched_at": 1_700_000_000.25, "meta": {"status": "200"}}


def add(frontier: Frontier, *paths: str, depth: int = 1, host: str = "a.example") -> list[int]:
    return [i for i, *_ in frontier.add_urls([NewUrl(f"http://{host}{p}", depth, "link") for p in paths], round_number=1)]


def test_a_url_is_taken_up_once_whatever_its_spelling(tmp_path: Path) -> None:
    frontier = Frontier(tmp_path / "f.db")
    assert len(add(frontier, "/a", "/b", "/%61", "/a?utm_source=x")) == 2
    assert add(frontier, "/a") == []
    assert frontier.has("http://a.example/a?gclid=1")
    assert not frontier.has("http://a.example/c")


def test_what_was_not_committed_is_still_to_do(tmp_path: Path) -> None:
    frontier = Frontier(tmp_path / "f.db")
    ids = add(frontier, "/a", "/b")
    frontier.commit()
    frontier.finish(ids[0], page=1)
    frontier.spool("page", ids[0], {"id": "0", **ROW})
    frontier.count("pages")
    frontier.close()
    again = Frontier(tmp_path / "f.db")
    assert [e.url for e in again.take(1, 10, skip=(), max_depth=9)] == ["http://a.example/a", "http://a.example/b"]
    assert (again.counts(), again.spooled_rows) == ({}, 0)


def test_takes_shallow_urls_first_and_skips_what_is_in_flight(tmp_path: Path) -> None:
    frontier = Frontier(tmp_path / "f.db")
    add(frontier, "/deep", depth=3)
    first, second = add(frontier, "/x", "/y", depth=1)
    assert [e.depth for e in frontier.take(1, 10, skip=(), max_depth=9)] == [1, 1, 3]
    assert [e.id for e in frontier.take(1, 10, skip={first}, max_depth=1)] == [second]
    assert frontier.shallowest() == 1


def test_a_waiting_url_wakes_in_its_time(tmp_path: Path) -> None:
    frontier = Frontier(tmp_path / "f.db")
    (url_id,) = add(frontier, "/a")
    frontier.wait(url_id, 100.0)
    assert (frontier.ready_hosts((), 10, 9), frontier.next_wake(), frontier.pending()) == ([], 100.0, 1)
    assert (frontier.wake(99.0), frontier.wake(101.0)) == (0, 1)
    assert frontier.entry(url_id).tries == 1
    assert frontier.ready_hosts((), 10, 9) == [1]


def test_hosts_with_work_are_found_among_many(tmp_path: Path) -> None:
    frontier = Frontier(tmp_path / "f.db")
    for n in range(20):
        add(frontier, "/a", "/b", host=f"h{n}.example", depth=n % 2)
    assert len(frontier.ready_hosts((), 100, 9)) == 20
    assert len(frontier.ready_hosts((), 100, 0)) == 10
    assert frontier.ready_hosts({1, 2}, 2, 9) == [3, 4]


@pytest.mark.parametrize("cut", ["before the file", "after the file"])
def test_a_part_that_a_kill_cut_short_is_written_again_under_its_name(tmp_path: Path, cut: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from llmpipe.data import docs as module

    frontier = Frontier(tmp_path / "state" / "f.db")
    for url_id in add(frontier, "/a", "/b", "/c"):
        key = frontier.entry(url_id).doc_id
        frontier.spool("page" if url_id < 3 else "drop", url_id, {"id": key, **ROW} if url_id < 3 else {"id": key, "url": "u", "stage": "crawl", "rule": "http_404"})
        frontier.finish(url_id)

    def killed(path: Path, table: object) -> object:
        if cut == "after the file":
            write(path, table)
        raise KeyboardInterrupt

    write = module.write_parquet
    with monkeypatch.context() as patch:
        patch.setattr(module, "write_parquet", killed)
        with pytest.raises(KeyboardInterrupt):
            frontier.seal(tmp_path)
    frontier.close()
    again = Frontier(tmp_path / "state" / "f.db")
    again.finish_seal(tmp_path)
    again.seal(tmp_path)
    assert dict(again.files()) == {"part-00000-000000.parquet": 2, "dropped/part-00000-000000.parquet": 1}
    table = pq.read_table(tmp_path / "part-00000-000000.parquet")
    assert sorted(table["id"].to_pylist()) == sorted(url_key(f"http://a.example/{p}").hex() for p in "ab")
    assert table["text"].to_pylist() == ["河 river"] * 2
    assert table["fetched_at"][0].as_py().microsecond == 250_000
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dropped", "part-00000-000000.parquet", "state"]


def test_a_file_that_is_no_frontier_is_an_error_with_a_way_out(tmp_path: Path) -> None:
    path = tmp_path / "f.db"
    path.write_bytes(b"not a database" * 100)
    with pytest.raises(InputError, match=r"f\.db: not a frontier"):
        Frontier(path)
