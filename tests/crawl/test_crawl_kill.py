"""A kill at any instant loses nothing and doubles nothing: the same documents, each once, as from a crawl left alone."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path

from llmpipe.crawl.scheduler import COMMIT_PAGES, MAX_EXTRACTING
from llmpipe.data.docs import read_docs
from llmpipe.data.manifest import find_manifest, verify_manifest
from tests.crawl.server import Answer, Site, answer, page, redirect, serve

PAGES, KILLS = 2_000, 30
THREADS = 4
IN_FLIGHT = 2 * THREADS + MAX_EXTRACTING + COMMIT_PAGES
"""What a kill may cost again: fetches under way, pages that wait for extraction, pages that no transaction holds yet."""


def site_of(count: int) -> dict[str, Answer]:
    """A seeded graph of pages in two languages, with dead links and redirects, all reachable from the first."""
    rng = random.Random(7)
    routes: dict[str, Answer] = {"/robots.txt": answer(body="User-agent: *\nDisallow: /private\n", content_type="text/plain")}
    for n in range(count):
        links = [f"/p{rng.randrange(count)}" for _ in range(6)] + [f"/p{n + 1}", f"/p{n + 9}", f"/moved{n % 10}", f"/dead{n % 7}", "/private/x"]
        routes[f"/p{n}"] = page(f"Page {n} 第{n}页", links=links)
    for n in range(10):
        routes[f"/moved{n}"] = redirect(f"/p{n * 3}")
    return routes


class Gate:
    """Lets `left` answers through and holds the others back."""

    def __init__(self) -> None:
        self.left = 0

    def before(self, send: Answer) -> Answer:
        def gated(handler: BaseHTTPRequestHandler) -> None:
            while self.left <= 0:
                time.sleep(0.01)
            self.left -= 1
            send(handler)

        return gated


def start(site: Site, output: Path, *settings: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "llmpipe", "crawl", site.url("/p0"), "--output", str(output), "--workers", "1", "-q"]
    for setting in ("allow_private=true", "delay_s=0", f"num_threads={THREADS}", "refresh=none", *settings):
        command += ["--set", setting]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def documents(output: Path) -> dict[str, str]:
    found = [row for batch in read_docs(output, columns=["url", "text"]) for row in batch.to_pylist()]
    by_path = {row["url"].rpartition("/")[2]: row["text"] for row in found}
    assert len(by_path) == len(found), "a page stands twice"
    return by_path


def assert_clean(output: Path) -> None:
    """No file but those that the manifest lists, and they are whole."""
    manifest = find_manifest(output)
    assert manifest is not None and verify_manifest(output, manifest) == []
    listed = {s.name for s in manifest.shards} | {"manifest.json", ".lock", "state/frontier.db"}
    there = {str(p.relative_to(output)) for p in output.rglob("*") if p.is_file()}
    assert there == listed


def test_sigkill_at_random_instants_loses_and_doubles_nothing(tmp_path: Path) -> None:
    with serve(site_of(PAGES)) as site:
        alone = start(site, tmp_path / "alone")
        assert alone.wait(120) == 0, alone.stderr.read().decode()
    expected = documents(tmp_path / "alone")
    assert len(expected) == PAGES

    rng, output, gate = random.Random(11), tmp_path / "killed", Gate()
    with serve({path: gate.before(send) for path, send in site_of(PAGES).items()}) as site:
        for _ in range(KILLS):
            gate.left = rng.randint(5, 60)  # so that no attempt gets to the end, however fast the machine
            process = start(site, output)
            while process.poll() is None and gate.left > 0:
                time.sleep(0.002)
            time.sleep(rng.random() * 0.7)  # sometimes before and sometimes after what was fetched is committed
            process.kill()
            assert process.wait() == -signal.SIGKILL
        gate.left = 1_000_000
        last = start(site, output)
        assert last.wait(120) == 0, last.stderr.read().decode()
        assert max(site.hits.values()) <= 1 + KILLS
        again = sum(n for path, n in site.hits.items() if path.startswith("/p")) - PAGES
        assert 0 < again <= KILLS * IN_FLIGHT
    assert documents(output) == expected
    assert_clean(output)
    killed, alone_counts = find_manifest(output).counts(), find_manifest(tmp_path / "alone").counts()
    assert (killed["kept"], killed["dropped"]) == (alone_counts["kept"], alone_counts["dropped"])


def test_sigterm_and_ctrl_c_end_quickly_and_the_same_command_goes_on(tmp_path: Path) -> None:
    with serve(site_of(150)) as site:
        for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
            before, process = site.hits.total(), start(site, tmp_path)
            while process.poll() is None and site.hits.total() < before + 20:
                time.sleep(0.002)
            began = time.monotonic()
            os.kill(process.pid, number)
            assert process.wait(10) == code, process.stderr.read().decode()
            assert time.monotonic() - began < 5
        last = start(site, tmp_path)
        assert last.wait(120) == 0, last.stderr.read().decode()
    assert len(documents(tmp_path)) == 150
    assert_clean(tmp_path)


def test_max_pages_survives_kills(tmp_path: Path) -> None:
    with serve(site_of(150)) as site:
        process = start(site, tmp_path, "max_pages=90")
        while process.poll() is None and site.hits.total() < 80:
            time.sleep(0.002)
        process.kill()
        process.wait()
        assert start(site, tmp_path, "max_pages=90").wait(120) == 0
    assert len(documents(tmp_path)) == 90
