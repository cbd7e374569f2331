"""The crawl's memory: every URL's state, what robots.txt said, and the pages that no part file holds yet, in SQLite.

    frontier = Frontier(output / "state" / "frontier.db")
    frontier.add_urls([NewUrl(url, depth=0, source="seed")]); frontier.take(host_id, 100, skip=loaded)
    frontier.finish(url_id, page=row) ; frontier.commit()

A page's row and its URL's new state are written in the same transaction, so a kill at any instant loses only fetches
that were not committed: their URLs are still to do. Part files are written from the spool (`seal`) under a fixed name,
so one that a kill left unfinished is written again. One writer, one thread.

Reads and writes `state/frontier.db` (WAL, synchronous=NORMAL), part files, `dropped/`.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from llmpipe.crawl.urls import canonical, host_name
from llmpipe.data.ids import doc_id
from llmpipe.errors import InputError

SCHEMA_VERSION = 2
READY, WAITING, DONE = 0, 1, 2
"""States of a URL: to be fetched, to be fetched after `next_at`, no more in this round."""

Source = Literal["seed", "link", "sitemap", "feed", "redirect", "guess"]
SEAL_ROWS = 2_000
SEAL_BYTES = 64 << 20
EARLY = 0.1
MAX_INTERVAL_S = 90 * 86_400.0
MIN_LASTMOD_SEEN, MIN_LASTMOD_RIGHT = 20, 0.8
"""A sitemap's lastmod makes pages due once it was right so often in so many revisits."""
MAX_KNOWN = 200_000
"""URLs remembered in memory, so that a link on every page of a site costs one query and not thousands."""

_SCHEMA = """
CREATE TABLE meta(name TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE hosts(id INTEGER PRIMARY KEY, name TEXT UNIQUE NOT NULL, next_at REAL NOT NULL DEFAULT 0, penalty_s REAL NOT NULL DEFAULT 0,
  round INTEGER NOT NULL DEFAULT 0, round_pages INTEGER NOT NULL DEFAULT 0, lastmod_seen INTEGER NOT NULL DEFAULT 0, lastmod_right INTEGER NOT NULL DEFAULT 0);
CREATE TABLE robots(origin TEXT PRIMARY KEY, status INTEGER NOT NULL, body BLOB, fetched_at REAL NOT NULL, tries INTEGER NOT NULL, etag TEXT,
  last_modified TEXT) WITHOUT ROWID;
CREATE TABLE templates(key INTEGER PRIMARY KEY, n INTEGER NOT NULL, text_hash TEXT, same INTEGER NOT NULL DEFAULT 0, closed INTEGER NOT NULL DEFAULT 0);
CREATE TABLE urls(
  id INTEGER PRIMARY KEY, key BLOB UNIQUE NOT NULL, url TEXT NOT NULL, host INTEGER NOT NULL, state INTEGER NOT NULL, kind TEXT NOT NULL,
  source TEXT NOT NULL, depth INTEGER NOT NULL, hops INTEGER NOT NULL, via TEXT, tries INTEGER NOT NULL DEFAULT 0, next_at REAL NOT NULL DEFAULT 0,
  first_round INTEGER NOT NULL, rule TEXT, page INTEGER NOT NULL DEFAULT 0, misses INTEGER NOT NULL DEFAULT 0,
  etag TEXT, last_modified TEXT, body_hash BLOB, text_hash TEXT, interval_s REAL, fetched_at REAL, lastmod REAL);
CREATE INDEX urls_ready ON urls(host, depth, id) WHERE state = 0;
CREATE INDEX urls_waiting ON urls(next_at) WHERE state = 1;
CREATE INDEX urls_due ON urls(next_at) WHERE state = 2 AND next_at > 0;
CREATE TABLE spool(id INTEGER PRIMARY KEY, kind TEXT NOT NULL, url INTEGER NOT NULL, row TEXT NOT NULL, seal INTEGER);
CREATE INDEX spool_seal ON spool(seal) WHERE seal IS NOT NULL;
CREATE TABLE files(name TEXT PRIMARY KEY, generation INTEGER NOT NULL, seal INTEGER NOT NULL, rows INTEGER NOT NULL, bytes INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE counts(generation INTEGER, name TEXT, n INTEGER NOT NULL, PRIMARY KEY(generation, name)) WITHOUT ROWID;
"""
_POLICIES = """CREATE TABLE IF NOT EXISTS policies(origin TEXT NOT NULL, kind TEXT NOT NULL, status INTEGER NOT NULL, body BLOB, fetched_at REAL NOT NULL,
  etag TEXT, last_modified TEXT, PRIMARY KEY(origin, kind)) WITHOUT ROWID"""
"""ai.txt and tdmrep.json of each origin."""


@dataclass(frozen=True, slots=True)
class NewUrl:
    url: str
    depth: int
    source: Source
    kind: str = "page"
    hops: int = 0
    via: str | None = None
    """Space-separated URLs that redirected here."""
    lastmod: float | None = None
    """When a sitemap says that it last changed (Unix time)."""


@dataclass(slots=True)
class Entry:
    """A URL on its way through the crawl."""

    id: int
    key: bytes
    url: str
    host: int
    kind: str
    source: str
    depth: int
    hops: int
    via: str | None
    tries: int
    page: int
    """1 when an earlier generation holds a page of this URL."""
    misses: int
    etag: str | None
    last_modified: str | None
    body_hash: bytes | None
    text_hash: str | None
    interval_s: float | None
    fetched_at: float | None
    lastmod: float | None
    rule: str | None
    """Why the last visit gave no page."""

    @property
    def doc_id(self) -> str:
        return self.key.hex()


_ENTRY = "id, key, url, host, kind, source, depth, hops, via, tries, page, misses, etag, last_modified, body_hash, text_hash, interval_s, fetched_at, lastmod, rule"


@dataclass(frozen=True, slots=True)
class RobotsRecord:
    status: int
    """HTTP status; 0: unreachable."""
    body: bytes
    fetched_at: float
    tries: int = 0
    etag: str | None = None
    last_modified: str | None = None


@dataclass(frozen=True, slots=True)
class HostRecord:
    name: str
    next_at: float
    """Before it nothing is fetched."""
    penalty_s: float
    round_pages: int
    """Pages that the visit round has of it."""


def url_key(url: str, kind: str = "page") -> bytes:
    """The 128 bits that identify a page: those of its document's id."""
    return bytes.fromhex(doc_id(canonical(url) if kind == "page" else f"{kind} {canonical(url)}"))


class Frontier:
    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.db = sqlite3.connect(path, isolation_level=None, timeout=30)
        try:
            self._open()
        except sqlite3.DatabaseError as error:
            self.db.close()
            if isinstance(error, sqlite3.OperationalError):
                raise
            raise InputError(f"{path}: not a frontier of llmpipe crawl ({error})", hint="restore it from a copy, or crawl anew with --force") from None
        self.generation = 0
        self._known: set[str] = set()
        self._counted: Counter[str] = Counter()
        self._hosts: dict[str, int] = {}
        self.spooled_rows, self.spooled_bytes = self.db.execute("SELECT count(*), coalesce(sum(length(row)), 0) FROM spool WHERE seal IS NULL").fetchone()

    def _open(self) -> None:
        self.db.execute("PRAGMA journal_mode=WAL")
        self.db.execute("PRAGMA synchronous=NORMAL")  # a kill loses nothing committed; only a power cut may lose the last moments
        self.db.execute("PRAGMA cache_size=-65536")
        self.db.execute("PRAGMA temp_store=MEMORY")
        version = self.db.execute("PRAGMA user_version").fetchone()[0]
        if version == 0:
            self.db.execute("BEGIN IMMEDIATE")
            for statement in _SCHEMA.split(";\n"):
                if statement.strip():
                    self.db.execute(statement)
            self.db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
            self.db.execute("COMMIT")
        elif version != SCHEMA_VERSION:
            raise InputError(f"{self.path}: frontier of version {version}, this llmpipe reads {SCHEMA_VERSION}", hint="crawl anew with --force")
        self.db.execute(_POLICIES)

    # --- transactions -------------------------------------------------------------------------------------------

    def _write(self, sql: str, values: Iterable[Any] = ()) -> sqlite3.Cursor:
        if not self.db.in_transaction:
            self.db.execute("BEGIN IMMEDIATE")
        return self.db.execute(sql, values if isinstance(values, dict) else tuple(values))

    @property
    def dirty(self) -> bool:
        return self.db.in_transaction

    def commit(self) -> None:
        for name, n in self._counted.items():
            self._write("INSERT INTO counts VALUES(?, ?, ?) ON CONFLICT DO UPDATE SET n = n + excluded.n", (self.generation, name, n))
        self._counted.clear()
        if self.db.in_transaction:
            self.db.execute("COMMIT")

    def close(self) -> None:
        """Forget what is not committed and close."""
        if self.db.in_transaction:
            self.db.execute("ROLLBACK")
        self.db.close()

    # --- small facts ----------------------------------------------------------------------------------------------

    def get(self, name: str, default: Any = None) -> Any:
        row = self.db.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return default if row is None else row[0]

    def set(self, name: str, value: Any) -> None:
        self._write("INSERT INTO meta VALUES(?, ?) ON CONFLICT(name) DO UPDATE SET value = excluded.value", (name, value))

    def count(self, name: str, n: int = 1) -> None:
        """Add to a count of this generation; written with the transaction that is open."""
        self._counted[name] += n

    def counts(self) -> dict[str, int]:
        """Return what is committed."""
        return dict(self.db.execute("SELECT name, n FROM counts WHERE generation = ? ORDER BY name", (self.generation,)))

    def host_id(self, name: str) -> int:
        if (found := self._hosts.get(name)) is None:
            row = self.db.execute("SELECT id FROM hosts WHERE name = ?", (name,)).fetchone()
            found = row[0] if row else self._write("INSERT INTO hosts(name) VALUES(?)", (name,)).lastrowid
            if len(self._hosts) > 100_000:
                self._hosts.clear()
            self._hosts[name] = found
        return found

    def host(self, host_id: int, *, round_number: int) -> HostRecord:
        name, next_at, penalty_s, last_round, pages = self.db.execute("SELECT name, next_at, penalty_s, round, round_pages FROM hosts WHERE id = ?", (host_id,)).fetchone()
        return HostRecord(name, next_at, penalty_s, pages if last_round == round_number else 0)

    def count_page(self, host_id: int, *, round_number: int) -> None:
        """Count a page of a host in this round."""
        self._write("UPDATE hosts SET round_pages = CASE round WHEN ? THEN round_pages + 1 ELSE 1 END, round = ? WHERE id = ?", (round_number, round_number, host_id))

    def save_host(self, host_id: int, next_at: float, penalty_s: float) -> None:
        self._write("UPDATE hosts SET next_at = ?, penalty_s = ? WHERE id = ?", (next_at, penalty_s, host_id))

    def robots(self, origin: str) -> RobotsRecord | None:
        row = self.db.execute("SELECT status, body, fetched_at, tries, etag, last_modified FROM robots WHERE origin = ?", (origin,)).fetchone()
        return RobotsRecord(row[0], row[1] or b"", *row[2:]) if row else None

    def save_robots(self, origin: str, record: RobotsRecord) -> None:
        values = (origin, record.status, record.body, record.fetched_at, record.tries, record.etag, record.last_modified)
        self._write("INSERT OR REPLACE INTO robots VALUES(?, ?, ?, ?, ?, ?, ?)", values)

    def policy(self, origin: str, kind: str) -> RobotsRecord | None:
        """What an origin's ai.txt or tdmrep.json was."""
        row = self.db.execute("SELECT status, body, fetched_at, etag, last_modified FROM policies WHERE origin = ? AND kind = ?", (origin, kind)).fetchone()
        return RobotsRecord(row[0], row[1] or b"", row[2], etag=row[3], last_modified=row[4]) if row else None

    def save_policy(self, origin: str, kind: str, record: RobotsRecord) -> None:
        values = (origin, kind, record.status, record.body, record.fetched_at, record.etag, record.last_modified)
        self._write("INSERT OR REPLACE INTO policies VALUES(?, ?, ?, ?, ?, ?, ?)", values)

    # --- URLs ----------------------------------------------------------------------------------------------------

    def add_urls(self, urls: Iterable[NewUrl], *, round_number: int) -> list[tuple[int, int, NewUrl]]:
        """Add what isn't known yet; return (id, host, url) of the new ones."""
        added = []
        for new in urls:
            key, host = url_key(new.url, new.kind), self.host_id(host_name(new.url))
            cursor = self._write(
                "INSERT OR IGNORE INTO urls(key, url, host, state, kind, source, depth, hops, via, first_round, lastmod) VALUES(?, ?, ?, 0, ?, ?, ?, ?, ?, ?, ?)",
                (key, new.url, host, new.kind, new.source, new.depth, new.hops, new.via, round_number, new.lastmod),
            )
            if cursor.rowcount == 1:
                added.append((cursor.lastrowid, host, new))
            elif new.source != "link":  # links come level by level; a redirect or a sitemap may find a page nearer than its first link
                self._write("UPDATE urls SET depth = ? WHERE key = ? AND depth > ? AND state < 2", (new.depth, key, new.depth))
        return added

    def note_lastmod(self, url: str, lastmod: float) -> int | None:
        """Keep what a sitemap says of a known page; return its host if the page is to be visited at once for it."""
        row = self.db.execute(
            "SELECT u.id, u.host, u.page AND u.state = 2 AND u.fetched_at < ? AND h.lastmod_seen >= ? AND h.lastmod_right >= ? * h.lastmod_seen, u.lastmod"
            " FROM urls u JOIN hosts h ON h.id = u.host WHERE u.key = ?",
            (lastmod, MIN_LASTMOD_SEEN, MIN_LASTMOD_RIGHT, url_key(url)),
        ).fetchone()
        if row is None:
            return None
        url_id, host, due, known = row
        if lastmod != known or due:
            self._write(f"UPDATE urls SET lastmod = ?{', state = 0' if due else ''} WHERE id = ?", (lastmod, url_id))
        return host if due else None

    def judge_lastmod(self, entry: Entry, *, changed: bool) -> None:
        """After a revisit, count whether the sitemap's lastmod had told rightly if the page changed. Old verdicts fade."""
        if entry.lastmod is None or entry.fetched_at is None:
            return
        right = (entry.lastmod > entry.fetched_at) == changed
        share = f"(CASE WHEN lastmod_seen >= {4 * MIN_LASTMOD_SEEN} THEN 2 ELSE 1 END)"
        self._write(f"UPDATE hosts SET lastmod_right = lastmod_right / {share} + ?, lastmod_seen = lastmod_seen / {share} + 1 WHERE id = ?", (int(right), entry.host))

    # --- templates: URLs that differ in numbers and values alone ---------------------------------------------------

    def count_template(self, key: int) -> tuple[int, bool]:
        """Count another URL of a template; return how many there are, and whether it is closed."""
        self._write("INSERT INTO templates(key, n) VALUES(?, 1) ON CONFLICT(key) DO UPDATE SET n = n + 1", (key,))
        n, closed = self.db.execute("SELECT n, closed FROM templates WHERE key = ?", (key,)).fetchone()
        return n, bool(closed)

    def note_text(self, key: int, text_hash: str, *, limit: int) -> bool:
        """Take in the text of a template's page; return whether `limit` pages of mostly one text close the template now.

        Boyer and Moore's majority vote (1981): one text and one number, however many pages.
        """
        row = self.db.execute("SELECT text_hash, same, closed FROM templates WHERE key = ?", (key,)).fetchone()
        if row is None or row[2]:
            return False
        known, same, _ = row
        if known == text_hash:
            same += 1
        elif same <= 1:
            known, same = text_hash, 1
        else:
            same -= 1
        self._write("UPDATE templates SET text_hash = ?, same = ?, closed = ? WHERE key = ?", (known, same, int(same >= limit), key))
        return same >= limit

    def closed_templates(self) -> set[int]:
        return {key for (key,) in self.db.execute("SELECT key FROM templates WHERE closed = 1")}

    def remember(self, link: str) -> None:
        """Note that a link was dealt with."""
        if len(self._known) >= MAX_KNOWN:
            self._known.clear()
        self._known.add(link)

    def knows(self, link: str) -> bool:
        """Whether a link was dealt with lately, judged by memory alone."""
        return link in self._known

    def roots(self) -> list[str]:
        """The URLs that the scope is told by: seeds, and where they redirected within their domain."""
        return json.loads(self.get("roots", "[]"))

    def add_roots(self, urls: Iterable[str]) -> None:
        known = self.roots()
        if (roots := list(dict.fromkeys([*known, *urls]))) != known:
            self.set("roots", json.dumps(roots))

    def has(self, url: str) -> bool:
        return self.db.execute("SELECT 1 FROM urls WHERE key = ?", (url_key(url),)).fetchone() is not None

    def entry(self, url_id: int) -> Entry:
        return Entry(*self.db.execute(f"SELECT {_ENTRY} FROM urls WHERE id = ?", (url_id,)).fetchone())

    def ready_hosts(self, skip: Iterable[int], limit: int, max_depth: int) -> list[int]:
        """Hosts with URLs to fetch, no deeper than `max_depth`, that are not in `skip`."""
        found, last, skipped = [], -1, set(skip)
        while len(found) < limit:  # a loose scan: one step in the index per host, however many URLs each has
            row = self.db.execute("SELECT host FROM urls WHERE state = 0 AND host > ? ORDER BY host LIMIT 1", (last,)).fetchone()
            if row is None:
                break
            last = row[0]
            if last not in skipped and self.take(last, 1, skip=(), max_depth=max_depth):
                found.append(last)
        return found

    def take(self, host_id: int, limit: int, *, skip: Iterable[int], max_depth: int) -> list[Entry]:
        """Return URLs of a host to fetch, shallow ones first. They stay `READY`, so a kill needs no clean-up."""
        skipped = set(skip)
        rows = self.db.execute(
            f"SELECT {_ENTRY} FROM urls WHERE state = 0 AND host = ? AND depth <= ? ORDER BY depth, id LIMIT ?", (host_id, max_depth, limit + len(skipped))
        )
        return [Entry(*row) for row in rows if row[0] not in skipped][:limit]

    def wake(self, now: float) -> int:
        """Make what waited long enough ready."""
        if self.db.execute("SELECT 1 FROM urls WHERE state = 1 AND next_at <= ? LIMIT 1", (now,)).fetchone() is None:
            return 0
        return self._write("UPDATE urls SET state = 0 WHERE state = 1 AND next_at <= ?", (now,)).rowcount

    def next_wake(self) -> float | None:
        return self.db.execute("SELECT min(next_at) FROM urls WHERE state = 1").fetchone()[0]

    def shallowest(self) -> int | None:
        """The least depth that still has something to fetch."""
        found = [self.db.execute(f"SELECT min(depth) FROM urls WHERE state = {s}").fetchone()[0] for s in (READY, WAITING)]
        return min((d for d in found if d is not None), default=None)

    def pending(self) -> int:
        return sum(self.db.execute(f"SELECT count(*) FROM urls WHERE state = {s}").fetchone()[0] for s in (READY, WAITING))

    def wait(self, url_id: int, next_at: float) -> None:
        """Put a URL off after a failure that may pass."""
        self._write("UPDATE urls SET state = 1, tries = tries + 1, next_at = ? WHERE id = ?", (next_at, url_id))

    def finish(self, url_id: int, rule: str | None = None, *, next_at: float = 0, **columns: Any) -> None:
        """End a URL's visit in this round; `rule` says why there is no page."""
        names = ["state", "rule", "tries", "next_at", *columns]
        sets = ", ".join(f"{name} = ?" for name in names)
        self._write(f"UPDATE urls SET {sets} WHERE id = ?", (DONE, rule, 0, next_at, *columns.values(), url_id))

    # --- the spool and its part files --------------------------------------------------------------------------------

    def spool(self, kind: Literal["page", "drop"], url_id: int, row: Mapping[str, Any]) -> None:
        text = json.dumps(row, ensure_ascii=False).encode("utf-8", "replace").decode("utf-8")
        self._write("INSERT INTO spool(kind, url, row) VALUES(?, ?, ?)", (kind, url_id, text))
        self.spooled_rows += 1
        self.spooled_bytes += len(text)

    @property
    def full(self) -> bool:
        return self.spooled_rows >= SEAL_ROWS or self.spooled_bytes >= SEAL_BYTES

    def seal(self, output: Path) -> None:
        """Move the spool into part files. Safe to cut at any point and to call again."""
        self.commit()
        pending = self.db.execute("SELECT seal FROM spool WHERE seal IS NOT NULL LIMIT 1").fetchone()
        if pending is None and self.spooled_rows:
            number = self.db.execute("SELECT coalesce(max(seal) + 1, 0) FROM files WHERE generation = ?", (self.generation,)).fetchone()[0]
            self._write("UPDATE spool SET seal = ?", (number,))
            self.commit()
            pending = (number,)
        if pending is not None:
            self._write_parts(output, pending[0])
            self.spooled_rows = self.spooled_bytes = 0

    def finish_seal(self, output: Path) -> None:
        """Write again the parts that a kill cut short."""
        pending = self.db.execute("SELECT seal FROM spool WHERE seal IS NOT NULL LIMIT 1").fetchone()
        if pending is not None:
            self._write_parts(output, pending[0])

    def _write_parts(self, output: Path, number: int) -> None:
        stem = f"part-{self.generation:05d}-{number:06d}"
        from llmpipe.data.docs import docs_table, dropped_table, write_parquet

        for kind, folder, table in (("page", "", docs_table), ("drop", "dropped/", dropped_table)):
            rows = [_row(text) for (text,) in self.db.execute("SELECT row FROM spool WHERE seal = ? AND kind = ? ORDER BY url", (number, kind))]
            if rows:
                name = f"{folder}{stem}.parquet"
                shard = write_parquet(output / name, table(rows))
                self._write("INSERT OR REPLACE INTO files VALUES(?, ?, ?, ?, ?)", (name, self.generation, number, len(rows), shard.bytes))
        self._write("DELETE FROM spool WHERE seal = ?", (number,))
        self.commit()

    def save_file(self, name: str, rows: int, size: int) -> None:
        """Note a file that grows, and how much of it is committed."""
        self._write("INSERT OR REPLACE INTO files VALUES(?, ?, -1, ?, ?)", (name, self.generation, rows, size))

    def growing_files(self) -> list[tuple[str, int, int]]:
        """(name, rows, committed bytes) of this generation's files that grow, in order."""
        return self.db.execute("SELECT name, rows, bytes FROM files WHERE generation = ? AND seal = -1 ORDER BY name", (self.generation,)).fetchall()

    def files(self) -> Iterator[tuple[str, int]]:
        """Name and rows of each part file of this generation."""
        yield from self.db.execute("SELECT name, rows FROM files WHERE generation = ? ORDER BY name", (self.generation,))

    # --- rounds -------------------------------------------------------------------------------------------------------

    def forget_round(self, number: int, output: Path) -> None:
        """Undo a round in which nothing could be fetched, so that the same command tries again."""
        names = [name for name, _ in self.files()]
        for sql in (
            "DELETE FROM spool WHERE url IN (SELECT id FROM urls WHERE first_round = :round)",
            "DELETE FROM urls WHERE first_round = :round",
            "DELETE FROM counts WHERE generation = :generation",
            "DELETE FROM files WHERE generation = :generation",
            "DELETE FROM robots WHERE status NOT BETWEEN 200 AND 299",
            "DELETE FROM policies WHERE status = 0",
            "UPDATE hosts SET next_at = 0, penalty_s = 0",
            "DELETE FROM meta WHERE name = 'roots' AND :round = 1",
        ):
            self._write(sql, {"round": number, "generation": self.generation})
        self._known.clear()
        self.commit()
        for name in names:
            (output / name).unlink(missing_ok=True)

    def due(self, now: float, *, everything: bool) -> int:
        """How many finished pages are due for another visit."""
        return self.db.execute(f"SELECT count(*) FROM urls WHERE {_due(everything)}", {"now": now}).fetchone()[0]

    def forget_unreachable(self) -> None:
        """Try again, in a new round, every robots.txt, ai.txt and tdmrep.json that could not be read in the last."""
        self._write("DELETE FROM robots WHERE status = 0")
        self._write("DELETE FROM policies WHERE status = 0")

    def start_revisit(self, now: float, *, everything: bool) -> int:
        return self._write(f"UPDATE urls SET state = 0 WHERE {_due(everything)}", {"now": now}).rowcount


def _due(everything: bool) -> str:
    """What a revisit takes up. A tenth of the interval early counts as due: a daily cron job must not find pages that fall due in a minute."""
    if everything:
        return "state = 2 AND rule IS NOT 'trap'"
    return f"state = 2 AND next_at > 0 AND next_at <= :now + {EARLY * MAX_INTERVAL_S} AND next_at - {EARLY} * coalesce(interval_s, 0) <= :now"


def _row(text: str) -> dict[str, Any]:
    row = json.loads(text)
    if row.get("fetched_at") is not None:
        row["fetched_at"] = int(row["fetched_at"] * 1_000_000)
    return row
