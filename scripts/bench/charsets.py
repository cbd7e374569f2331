"""How often decode() reads undeclared bytes right: real text, encoded anew in a charset, cut to sizes a page may have.

    python scripts/bench/charsets.py gb18030=/usr/share/man/zh_CN big5=/usr/share/man/zh_TW cp932=/usr/share/man/ja

Each CHARSET=FOLDER names a folder of UTF-8 texts (plain or .gz; Debian: manpages-zh, manpages-ja, manpages-ru,
installation-guide-amd64). `utf-8` puts one bad byte into each snippet. Prints the share read right at each size.
"""

from __future__ import annotations

import gzip
import random
import re
import sys
from html import unescape
from pathlib import Path

from llmpipe.crawl.decode import decode

SIZES = (200, 500, 2_000, 5_000)
SNIPPETS = 200
MIN_HIGH = 0.05
"""Share of bytes above 0x7F: less is next to no text in the language."""


def texts(folder: Path) -> list[str]:
    found = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and not p.is_symlink()):
        data = path.read_bytes()
        try:
            text = (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode("utf-8")
        except (UnicodeDecodeError, OSError):
            continue
        found.append(unescape(re.sub(r"<[^>]+>|^\..*$|\\f.|\\", " ", text, flags=re.M)))
    return [text for text in found if not text.isascii() and len(text) > SIZES[0]]


def share_right(found: list[str], charset: str, size: int) -> float:
    pick, right, tried = random.Random(f"{charset} {size}"), 0, 0
    for _ in range(SNIPPETS * 50):
        text = pick.choice(found)
        begin = pick.randrange(max(1, len(text) - size // 2))
        body = text[begin : begin + size].encode(charset, "ignore")[:size]
        text = body.decode(charset, "ignore")
        body = text.encode(charset)
        if sum(b > 0x7F for b in body) < MIN_HIGH * len(body) or len(body) < size * 0.9:
            continue
        if charset == "utf-8":
            at = pick.randrange(len(body))
            body = body[:at] + bytes([pick.choice((0x80, 0xC0, 0xE4, 0xFF))]) + body[at:]
        read = decode(b"<html><body><p>" + body + b"</p></body></html>")
        right += read.encoding == "utf-8" if charset == "utf-8" else text in read.text
        tried += 1
        if tried == SNIPPETS:
            break
    return right / tried if tried else float("nan")


def main() -> None:
    print(f"{'charset':12}" + "".join(f"{size:>8} B" for size in SIZES))
    for pair in sys.argv[1:]:
        charset, _, folder = pair.partition("=")
        found = texts(Path(folder))
        print(f"{charset:12}" + "".join(f"{share_right(found, charset, size):>9.1%} " for size in SIZES), flush=True)


if __name__ == "__main__":
    main()
