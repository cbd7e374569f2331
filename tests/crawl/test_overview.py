"""Rules of what a person sees of a crawl from outside: the plan before it, the hosts during and after it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from llmpipe.crawl.stage import Config, plan
from llmpipe.inspection import describe_output
from llmpipe.journal import Journal
from llmpipe.stage import STAGES, Options, Request, run_stage
from tests.crawl.server import answer, page, redirect, serve
from tests.crawl.test_crawl_stage import crawl

ROBOTS = answer(body="User-agent: *\nDisallow: /no\nCrawl-delay: 0.01\nSitemap: /map.xml\n", content_type="text/plain")
ROUTES = {"/robots.txt": ROBOTS, "/": page("Home 首页", links=["/a", "/no/x", "/moved", "/dead"]), "/a": page("A 甲"), "/moved": redirect("/a")}


def test_a_dry_run_shows_what_robots_says_of_each_seed_and_fetches_nothing_else(tmp_path: Path, llmpipe: Callable) -> None:
    with serve(ROUTES) as site, serve({"/robots.txt": answer(503)}) as broken:
        done = llmpipe("crawl", site.url("/文"), site.url("/no/x"), broken.url(), "--output", str(tmp_path / "out"), "--set", "allow_private=true", "--dry-run", "--json")
        assert done.returncode == 0, done.stderr
        seeds = json.loads(done.stdout)["seeds"]
        assert set(site.hits) == {"/robots.txt"} and site.hits["/robots.txt"] == 1
    assert [(s["allowed"], s["because"].partition(" (")[0]) for s in seeds] == [
        (True, "no rule of robots.txt speaks of it"), (False, "Disallow: /no"), (False, "robots.txt cannot be read"),
    ]  # fmt: skip
    assert (seeds[0]["sitemaps"], seeds[0]["crawl_delay_s"]) == ([site.url("/map.xml")], 0.01)
    assert not (tmp_path / "out").exists()


def test_inspect_shows_hosts_outcomes_and_robots(tmp_path: Path) -> None:
    with serve(ROUTES) as site:
        crawl(tmp_path, site.url())
    found = describe_output(tmp_path)
    assert found["outcomes"] == {"page": 2, "http_404": 2, "redirect": 1, "robots": 1}  # the sitemap is missing too
    (host,) = found["hosts"]
    assert (host["pages"], host["queue"], host["dropped"], host["dropped_by"]["robots"]) == (2, 0, 4, 1)
    assert host["robots"][f"http://127.0.0.1:{site.port}"] | {"hours_old": 0} == {
        "status": 200, "hours_old": 0, "allows": "/", "rules": 1, "crawl_delay_s": 0.01, "sitemaps": [site.url("/map.xml")],
    }  # fmt: skip
    assert found["frontier"] == {"hosts": 1, "urls": 6, "queue": 0, "pages": 2, "due": 0}


def test_an_unfinished_crawl_can_be_inspected(tmp_path: Path) -> None:
    with serve(ROUTES) as site:
        crawl(tmp_path, site.url())
    recipe = json.loads((tmp_path / "manifest.json").read_text("utf-8"))["recipe"]
    (tmp_path / "manifest.json").unlink()
    with_header = Journal(tmp_path, {"fingerprint": "x", "recipe": recipe})
    with_header.close()
    assert (found := describe_output(tmp_path))["state"] == "unfinished" and found["frontier"]["pages"] == 2


def test_a_plan_of_a_crawl_that_has_run_tells_of_its_frontier_and_writes_nothing(tmp_path: Path) -> None:
    with serve(ROUTES) as site:
        crawl(tmp_path, site.url())
        before = sorted(str(p) for p in tmp_path.rglob("*"))
        config = Config(allow_private=True)
        found = run_stage(STAGES["crawl"], config, Request(output=tmp_path, seeds=(site.url(),)), Options(dry_run=True)).plan
    assert found is not None and found["frontier"]["pages"] == 2
    assert sorted(str(p) for p in tmp_path.rglob("*")) == before
    assert plan.__doc__
