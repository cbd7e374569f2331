"""Name documents and their texts: the hashes that stand in the columns `id` and `content_hash`.

    doc_id("http://a.example/"), content_hash("text")

Apart from docs.py, so that what needs no Parquet doesn't load it: a refresh that finds nothing new takes half the time.
"""

from __future__ import annotations

import hashlib


def doc_id(key: str) -> str:
    """Hash a document's canonical key (a URL's, or file and record) to its id."""
    return hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def content_hash(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
