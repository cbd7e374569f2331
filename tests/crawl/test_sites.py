"""The documentation of the standard library, as a site: whole, the same in every run, and silent about this machine."""

from __future__ import annotations

import getpass
import os
import re
import socket
import sys
from pathlib import Path

import pytest
import requests

from llmpipe.crawl.extract import extract
from llmpipe.crawl.sites import module_names, serve_pydoc

PAGES = ["/", "/json.html", "/os.html", "/sys.html", "/cgi.html", "/tempfile.html", "/asyncio.html", "/xml.etree.ElementTree.html", "/topics/SEQUENCES.html", "/keywords/if.html"]


@pytest.fixture(scope="module")
def base():
    with serve_pydoc() as site:
        assert site.seeds == ["http://pydoc.invalid/"]
        yield f"http://{site.resolve['pydoc.invalid']}"


def get(base: str, path: str) -> requests.Response:
    return requests.get(base + path, timeout=60)


def test_only_standard_modules_without_side_effects():
    names = module_names()
    assert {"json.decoder", "xml.etree.ElementTree", "asyncio.events", "builtins", "collections.abc"} <= set(names)
    tops = {name.partition(".")[0] for name in names}
    assert tops <= sys.stdlib_module_names
    assert not {"antigravity", "this", "idlelib", "test", "turtledemo", "lib2to3"} & tops
    assert not [n for n in names if re.search(r"(^|\.)(_|tests?$|tests?\.)", n)]


def test_serves_a_crawlable_site(base):
    robots, sitemap = get(base, "/robots.txt").text, get(base, "/sitemap.xml").text
    assert "Sitemap: http://pydoc.invalid/sitemap.xml" in robots
    listed = re.findall("<loc>http://pydoc.invalid(.*?)</loc>", sitemap)
    assert len(listed) > 350 and {"/", "/json.html", "/topics/SEQUENCES.html"} <= set(listed)
    index = extract(get(base, "/").content, "http://pydoc.invalid/", "text/html")
    assert {link.url.removeprefix("http://pydoc.invalid") for link in index.links} == set(listed) - {"/"}
    response = get(base, "/json.html")
    assert response.headers["Content-Type"] == "text/html; charset=utf-8"
    assert requests.get(base + "/json.html", headers={"If-None-Match": response.headers["ETag"]}, timeout=60).status_code == 304
    assert requests.head(base + "/json.html", timeout=60).headers["Content-Length"] == str(len(response.content))
    assert [get(base, p).status_code for p in ("/nothing.html", "/../etc/passwd", "/antigravity.html")] == [404] * 3


def test_links_lead_to_pages_that_exist(base):
    listed = set(re.findall("<loc>(.*?)</loc>", get(base, "/sitemap.xml").text))
    for path in PAGES:
        page = extract(get(base, path).content, f"http://pydoc.invalid{path}", "text/html")
        assert not [link.url for link in page.links if link.url.startswith("http://pydoc.invalid") and link.url not in listed]


def test_documentation_keeps_its_text(base):
    page = extract(get(base, "/json.html").content, "http://pydoc.invalid/json.html", "text/html")
    assert "Serialize ``obj`` to a JSON formatted ``str``." in page.text.split("\n")
    assert "JSON (JavaScript Object Notation) <https://json.org> is a subset of" in page.text
    assert page.title == "Python: json"
    assert "Sequence Types" in get(base, "/topics/SEQUENCES.html").text or len(get(base, "/topics/SEQUENCES.html").text) > 1000


def test_nothing_of_this_machine_and_the_same_bytes_again(base):
    first = {path: get(base, path).content for path in PAGES}
    with serve_pydoc() as site:
        other = f"http://{site.resolve['pydoc.invalid']}"
        assert {path: get(other, path).content for path in reversed(PAGES)} == first
    secrets = {sys.executable, sys.base_prefix if sys.base_prefix != "/usr" else sys.executable, str(Path(__file__).parents[2]), os.path.expanduser("~")}
    secrets |= {os.environ[name] for name in ("HOME", "PATH", "PWD", "LS_COLORS") if len(os.environ.get(name, "")) > 1}
    secrets |= {f" {name}" for name in (socket.gethostname(), getpass.getuser()) if len(name) > 4}
    for path, body in first.items():
        text = body.decode()
        assert not [s for s in secrets if s in text], path
        assert not re.search(r"0x7f[0-9a-f]{6,}|href=\"file:", text), path
        assert "PYTHONHASHSEED" not in text, path
    assert "argv</strong> = [" not in first["/sys.html"].decode()
