"""Token shards: readable from the format's description alone, one sequence across shards, tombstones left out."""

from __future__ import annotations

import struct
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from llmpipe.data.tokens import TokensDir, index_bytes, open_tokens, read_index, token_dtype
from llmpipe.errors import InputError
from llmpipe.tokenizer.directory import load_tokenizer
from tests.material import bilingual_rows


def read_megatron(prefix: Path) -> list[list[int]]:
    """Read `prefix.idx` and `prefix.bin` with nothing but the description of the format; one list of ids a document."""
    with open(f"{prefix}.idx", "rb") as f:
        assert f.read(9) == b"MMIDIDX\x00\x00"
        assert struct.unpack("<Q", f.read(8)) == (1,)
        code = struct.unpack("<B", f.read(1))[0]
        kind, width = {4: ("i", 4), 8: ("H", 2)}[code]
        sequences, bounds = struct.unpack("<QQ", f.read(16))
        lengths = struct.unpack(f"<{sequences}i", f.read(4 * sequences))
        pointers = struct.unpack(f"<{sequences}q", f.read(8 * sequences))
        documents = struct.unpack(f"<{bounds}q", f.read(8 * bounds))
        assert f.read() == b""
    raw = Path(f"{prefix}.bin").read_bytes()
    read = [list(struct.unpack(f"<{n}{kind}", raw[p : p + n * width])) for n, p in zip(lengths, pointers, strict=True)]
    assert sum(lengths) * width == len(raw)
    return [[i for sequence in read[a:b] for i in sequence] for a, b in pairwise(documents)]


@pytest.mark.parametrize(("vocab_size", "code"), [(65_499, 8), (65_500, 4)])
def test_ids_are_uint16_below_65500_and_int32_from_there(tmp_path: Path, vocab_size: int, code: int) -> None:
    dtype = token_dtype(vocab_size)
    ids = [[1, vocab_size - 1, 0], [7, 0]]
    (tmp_path / "t.idx").write_bytes(index_bytes(np.array([3, 2]), dtype))
    (tmp_path / "t.bin").write_bytes(b"".join(np.array(d, dtype=dtype).tobytes() for d in ids))
    assert (tmp_path / "t.idx").read_bytes()[17] == code
    assert read_megatron(tmp_path / "t") == ids
    read, lengths, offsets = read_index(tmp_path / "t.idx")
    assert read == dtype and lengths.tolist() == [3, 2] and offsets.tolist() == [0, 3 * dtype.itemsize]


@pytest.fixture
def tokens_dir(tmp_path: Path, make_docs: Callable, run: Callable) -> Path:
    make_docs(tmp_path / "docs", bilingual_rows(40), shards=4)
    for args in (["tokenizer", "--set", "vocab_size=400"], ["tokenize", "--tokenizer", "tok", "--set", "valid_fraction=0.3", "--set", "shard_tokens=2000"]):
        done = run(args[0], "--workers", 1, "--input", "docs", "--output", "tok" if args[0] == "tokenizer" else "tokens", *args[1:])
        assert done.returncode == 0, done.stderr
    return tmp_path / "tokens"


def test_megatron_reader_windows_and_documents_agree(tokens_dir: Path) -> None:
    tokens, tokenizer = TokensDir(tokens_dir), load_tokenizer(tokens_dir / "tokenizer")
    texts = {r["id"]: r for r in bilingual_rows(40)}
    seen = []
    for name in ("train", "valid"):
        split = tokens.split(name)
        whole = split.window(0, len(split)).tolist()
        documents = list(split.documents())
        assert whole == [i for d in documents for i in d.ids.tolist()]
        assert [i for shard in split.shards for d in read_megatron(tokens_dir / shard) for i in d] == whole
        for start, length in ((0, 1), (13, 700), (len(split) - 5, 5)):
            assert split.window(start, length).tolist() == whole[start : start + length]
        with pytest.raises(IndexError):
            split.window(len(split) - 4, 5)
        for d in documents:
            assert d.ids[-1] == tokens.eos_id and tokenizer.decode(d.ids[:-1].tolist()) == texts[d.id]["text"]
            assert (d.num_bytes, d.language, d.source) == (len(texts[d.id]["text"].encode()), texts[d.id]["language"], "test")
            assert tokens.token_bytes()[d.ids].sum() == d.num_bytes
        for start, length in ((0, len(split)), (13, 700), (len(split) - 5, 5)):  # a window's documents, cut where it cuts them
            parts, ends = split.lineage(start, length), np.cumsum([len(d.ids) for d in documents])
            assert [p["start"] for p in parts] == [0, *(p["stop"] for p in parts[:-1])] and parts[-1]["stop"] == length
            for p in parts:
                d = documents[int(np.searchsorted(ends, start + p["start"], side="right"))]
                assert (p["id"], p["source"], p["language"]) == (d.id, d.source, d.language) and p["shard"] in split.shards
        seen += [d.id for d in documents]
    assert len(tokens.split("train").shards) > 1 and len(tokens.split("valid")) > 0
    assert sorted(seen) == sorted(texts)
    assert tokens.split("train").max_id() < tokens.vocab_size
    info = tokens.manifest.info
    assert info["tokens"] == len(tokens.split("train")) + len(tokens.split("valid")) and info["train_documents"] + info["valid_documents"] == 40
    assert pq.read_table(tokens_dir / "train-00000.docs.parquet")["offset"][0].as_py() == 0


def test_sources_and_languages_divide_what_is_live(tokens_dir: Path, make_docs: Callable, run: Callable) -> None:
    rows = bilingual_rows(40)
    make_docs(tokens_dir.parent / "docs", [{**rows[2], "op": "gone", "text": ""}, {**rows[3], "text": "改过了。", "op": "changed", "source": None}])
    assert run("tokenize", "--workers", 1, "--input", "docs", "--tokenizer", "tok", "--output", "tokens", "--set", "valid_fraction=0.3", "--set", "shard_tokens=2000").returncode == 0
    tokens = TokensDir(tokens_dir)
    for name in ("train", "valid"):
        split = tokens.split(name)
        for what, of in (("language", lambda d: d.language), ("source", lambda d: d.source or "unknown")):
            parts = split.by(what)
            assert sum(map(len, parts.values())) == len(split)
            for key, part in parts.items():
                expected = [d for d in split.documents() if of(d) == key]
                assert [d.id for d in part.documents()] == [d.id for d in expected]
                assert part.window(0, len(part)).tolist() == [i for d in expected for i in d.ids.tolist()]
    assert set(tokens.split("train").by("language")) == {"en", "zh"}


def test_directories_of_one_tokenizer_are_read_as_one(tokens_dir: Path, make_docs: Callable, run: Callable) -> None:
    make_docs(tokens_dir.parent / "more", bilingual_rows(10, start=100))
    assert run("tokenize", "--workers", 1, "--input", "more", "--tokenizer", "tok", "--output", "books").returncode == 0
    both = open_tokens([tokens_dir, tokens_dir.parent / "books"])
    split, parts = both.split("train"), [TokensDir(p).split("train") for p in (tokens_dir, tokens_dir.parent / "books")]
    assert split.window(0, len(split)).tolist() == [i for p in parts for i in p.window(0, len(p)).tolist()]
    assert [d.id for d in split.documents()] == [d.id for p in parts for d in p.documents()]
    assert {name: len(part) for name, part in split.by("input").items()} == {"tokens": len(parts[0]), "books": len(parts[1])}
    assert run("tokenizer", "--input", "more", "--output", "other", "--set", "vocab_size=390").returncode == 0
    assert run("tokenize", "--workers", 1, "--input", "more", "--tokenizer", "other", "--output", "foreign").returncode == 0
    with pytest.raises(InputError, match="foreign was made with another tokenizer than"):
        open_tokens([tokens_dir, tokens_dir.parent / "foreign"])


def test_a_cut_shard_is_named(tokens_dir: Path) -> None:
    whole = (tokens_dir / "train-00000.bin").read_bytes()
    (tokens_dir / "train-00000.bin").write_bytes(whole[:-2])
    with pytest.raises(InputError, match=r"train-00000.bin: .* bytes, its index says"):
        TokensDir(tokens_dir).split("train")
    (tokens_dir / "train-00000.idx").write_bytes(b"MMIDIDX")
    with pytest.raises(InputError, match="not an index"):
        TokensDir(tokens_dir).split("train")
