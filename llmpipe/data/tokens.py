"""Token shards in Megatron-LM's indexed format, with the documents beside them, and the memory-mapped reader.

    tokens = TokensDir(Path("tokens"))
    ids = tokens.split("train").window(0, 1025)            # int64, across shards, tombstones left out
    for document in tokens.split("valid").documents(): ...
    tokens.split("train").by("language")                   # {"en": a split of its own, "zh": …}
    open_tokens([Path("web"), Path("books")])              # several directories of one tokenizer, read as one

Reads and writes `train-00000.bin` (raw little-endian ids, each document ended by EOS), `train-00000.idx` (lengths and
offsets of documents) and `train-00000.docs.parquet` (which document each span is); `tombstones-GGGGG.parquet` lists spans
that later generations took back.

The index, byte by byte: `MMIDIDX\\0\\0`, version 1 (uint64), element type (uint8: 8 is uint16, 4 is int32), number of
sequences S (uint64), number of document bounds D (uint64), then S lengths (int32), S byte offsets (int64), and D document
bounds in sequences (int64, from 0). Here each document is one sequence, so D is S + 1 and the bounds are 0, 1, …, S.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llmpipe.data.files import read_json, sha256_file
from llmpipe.data.manifest import Manifest, read_manifest
from llmpipe.errors import InputError

Split = Literal["train", "valid"]
SPLITS: tuple[Split, ...] = ("train", "valid")

MAGIC = b"MMIDIDX\x00\x00"
DTYPE_CODES = {1: np.uint8, 2: np.int8, 3: np.int16, 4: np.int32, 5: np.int64, 6: np.float64, 7: np.float32, 8: np.uint16}
MAX_UINT16_VOCAB = 65_500
MAX_SEQUENCE = 2**31 - 1  # lengths are int32

DOCS_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("language", pa.string()),
        ("offset", pa.int64()),  # of the first token in the shard
        ("length", pa.int64()),  # in tokens, EOS included
        ("bytes", pa.int64()),  # of the text in UTF-8
    ]
)
TOMBSTONES_SCHEMA = pa.schema([("id", pa.string()), ("shard", pa.string()), ("offset", pa.int64()), ("length", pa.int64()), ("bytes", pa.int64())])


def token_dtype(vocab_size: int) -> np.dtype:
    """Choose as Megatron-LM does: uint16 below 65,500 ids, else int32."""
    return np.dtype("<u2") if vocab_size < MAX_UINT16_VOCAB else np.dtype("<i4")


# --- writing --------------------------------------------------------------------------------------------------------


def index_bytes(lengths: np.ndarray, dtype: np.dtype) -> bytes:
    """Make the `.idx` of a shard whose documents have `lengths` tokens."""
    if len(lengths) and lengths.max() > MAX_SEQUENCE:
        raise InputError(f"a document of {lengths.max():,} tokens does not fit the index (int32 lengths)", hint="split it before tokenizing")
    code = next(c for c, t in DTYPE_CODES.items() if np.dtype(t) == dtype)
    ends = np.cumsum(lengths, dtype=np.int64)
    offsets = (ends - lengths) * dtype.itemsize
    bounds = np.arange(len(lengths) + 1, dtype=np.int64)
    head = MAGIC + struct.pack("<QBQQ", 1, code, len(lengths), len(bounds))
    return head + lengths.astype("<i4").tobytes() + offsets.astype("<i8").tobytes() + bounds.astype("<i8").tobytes()


# --- reading --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Document:
    """One document of a split. `ids` (int64) end with EOS."""

    id: str
    ids: np.ndarray
    num_bytes: int
    source: str | None
    language: str | None


class TokensDir:
    """A directory of token shards, opened by its manifest. Raises `InputError` for what is missing or cut."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest: Manifest = read_manifest(path, kind="tokens")
        self.vocab_size: int = self.manifest.info["vocab_size"]
        self.eos_id: int = self.manifest.info["eos_id"]
        self.tokenizer = path / "tokenizer"

    def split(self, name: Split) -> TokenSplit:
        names = sorted(s.name.removesuffix(".bin") for s in self.manifest.shards if s.name.startswith(f"{name}-") and s.name.endswith(".bin"))
        dead = _read_tombstones(self.path, self.manifest)
        return TokenSplit([ShardFile(self.path, n, _open_shard(self.path, n), dead.get(n, {})) for n in names], path=self.path, eos_id=self.eos_id)

    def token_bytes(self) -> np.ndarray:
        """Bytes of UTF-8 that each id stands for (int64, V); special tokens are 0. WordPiece's do not hold the spaces that it drops."""
        raw = read_json(self.tokenizer / "tokenizer.json")
        sizes = np.zeros(self.vocab_size, dtype=np.int64)
        vocab = raw["model"]["vocab"]
        pieces = vocab.items() if isinstance(vocab, dict) else ((piece, number) for number, (piece, _) in enumerate(vocab))
        count = _count_bytes(raw["model"])
        for token, number in pieces:
            sizes[number] = count(token)
        for token in raw["added_tokens"]:
            sizes[token["id"]] = 0 if token["special"] else len(token["content"].encode())
        return sizes


class TokensDirs(TokensDir):
    """Several directories of token shards that one tokenizer made, read as one."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.parts = [TokensDir(path) for path in paths]
        super().__init__(paths[0])
        first = _tokenizer_facts(self.parts[0])
        for part in self.parts[1:]:
            if _tokenizer_facts(part) != first:
                raise InputError(f"{part.path} was made with another tokenizer than {self.path}", hint="tokenize both with one: llmpipe tokenize --input DOCS --tokenizer DIR --output TOKENS")

    def split(self, name: Split) -> TokenSplit:
        return TokenSplit([file for part in self.parts for file in part.split(name).files], path=self.path, eos_id=self.eos_id)


def open_tokens(paths: Sequence[Path]) -> TokensDir:
    """Open one directory or several of one tokenizer. Raises `InputError` where their tokenizers differ."""
    return TokensDir(paths[0]) if len(paths) == 1 else TokensDirs(paths)


def _tokenizer_facts(tokens: TokensDir) -> tuple[str, int, int]:
    return sha256_file(tokens.tokenizer / "tokenizer.json"), tokens.vocab_size, tokens.eos_id


def _count_bytes(model: dict[str, Any]) -> Callable[[str], int]:
    """Say how a kind of tokenizer writes bytes in its vocabulary."""
    if model["type"] == "BPE" and not model.get("byte_fallback"):
        return len  # the byte-level alphabet writes each byte as one character
    prefix = model.get("continuing_subword_prefix") or ""
    return lambda token: 1 if re.fullmatch("<0x[0-9A-F]{2}>", token) else len(token.removeprefix(prefix).encode())


@dataclass(frozen=True, slots=True)
class ShardFile:
    """One shard, mapped into memory."""

    path: Path
    """Of its directory."""
    name: str
    data: np.ndarray
    dead: dict[int, int]
    """Offset and length of documents that tombstones took."""


By = Literal["input", "source", "language"]


class TokenSplit:
    """The live tokens of one split, as one sequence in order of directories, shards and documents.

    `spans` (N, 3: shard, offset, length) leaves out parts of the shards; None: what tombstones take. Memory: 24 bytes a span.
    """

    def __init__(self, files: Sequence[ShardFile], *, path: Path, spans: np.ndarray | None = None, eos_id: int | None = None) -> None:
        self.path, self.files, self.eos_id = path, list(files), eos_id
        self.shards = [file.name for file in files]
        if spans is None:
            spans = np.array([(n, *span) for n, file in enumerate(self.files) for span in _live_spans(file)], dtype=np.int64).reshape(-1, 3)
        self.spans = spans
        self._shard, self._offset = spans[:, 0], spans[:, 1]
        self._end = np.cumsum(spans[:, 2])

    def __len__(self) -> int:
        """Number of tokens."""
        return int(self._end[-1]) if len(self._end) else 0

    def window(self, start: int, length: int) -> np.ndarray:
        """Copy `length` tokens from `start` as int64. Cost: one copy; no file is read beyond what the window touches."""
        if start < 0 or start + length > len(self):
            raise IndexError(f"window {start}..{start + length} of {len(self)} tokens")
        out = np.empty(length, dtype=np.int64)
        done, span = 0, int(np.searchsorted(self._end, start, side="right"))
        while done < length:
            first = int(self._end[span - 1]) if span else 0
            inside = start + done - first
            take = min(length - done, int(self._end[span]) - first - inside)
            at = int(self._offset[span]) + inside
            out[done : done + take] = self.files[self._shard[span]].data[at : at + take]
            done, span = done + take, span + 1
        return out

    def lineage(self, start: int, length: int) -> list[dict[str, Any]]:
        """Say which documents a window holds: each `id`, `source`, `language`, `shard`, and `start` and `stop` in the window."""
        out: list[dict[str, Any]] = []
        tables: dict[int, pa.Table] = {}
        done, span = 0, int(np.searchsorted(self._end, start, side="right"))
        while done < length:
            inside = start + done - (int(self._end[span - 1]) if span else 0)
            at, take = int(self._offset[span]) + inside, min(length - done, int(self._end[span]) - start - done)
            number = int(self._shard[span])
            file = self.files[number]
            if number not in tables:
                tables = {number: read_documents(file.path, file.name)}
            rows = tables[number]
            offsets = rows["offset"].to_numpy()
            first, last = np.searchsorted(offsets, at, side="right") - 1, np.searchsorted(offsets, at + take, side="left")
            for row in rows.slice(int(first), int(last - first)).to_pylist():
                begin, end = max(row["offset"], at), min(row["offset"] + row["length"], at + take)
                if begin < end:
                    out.append({"id": row["id"], "source": row["source"], "language": row["language"], "shard": file.name, "start": done + begin - at, "stop": done + end - at})
            done, span = done + take, span + 1
        return out

    def documents(self) -> Iterator[Document]:
        """Yield every live document in order."""
        for number, file in enumerate(self.files):
            mine = self.spans[self._shard == number]
            rows = read_documents(file.path, file.name)
            offsets = rows["offset"].to_numpy()
            span = np.searchsorted(mine[:, 1], offsets, side="right") - 1
            inside = (span >= 0) & (offsets < mine[span, 1] + mine[span, 2]) if len(mine) else np.zeros(len(offsets), bool)
            for row in rows.filter(pa.array(inside)).to_pylist():
                ids = file.data[row["offset"] : row["offset"] + row["length"]].astype(np.int64)
                yield Document(row["id"], ids, row["bytes"], row["source"], row["language"])

    def by(self, what: By) -> dict[str, TokenSplit]:
        """Divide by input directory, or by what documents say of their source or language (`unknown` where nothing); names in order.

        Neighbouring documents of one source make one span, so text that was tokenized source by source costs next to nothing.
        """
        spans: dict[str, list[np.ndarray]] = {}
        inputs = _input_names([file.path for file in self.files])
        for number, file in enumerate(self.files):
            for name, found in ((inputs[file.path], self.spans[self._shard == number][:, 1:]),) if what == "input" else _spans_by(file, what):
                spans.setdefault(name, []).append(np.column_stack([np.full(len(found), number), found]))
        return {name: TokenSplit(self.files, path=self.path, spans=np.concatenate(spans[name]), eos_id=self.eos_id) for name in sorted(spans)}

    def max_id(self) -> int:
        """Find the largest id, over all shards (dead spans too)."""
        return max((int(file.data.max()) for file in self.files if len(file.data)), default=-1)


def _live_spans(file: ShardFile) -> Iterable[tuple[int, int]]:
    """Yield (offset, length) of what lies between tombstones."""
    start = 0
    for offset, length in sorted(file.dead.items()):
        if offset > start:
            yield start, offset - start
        start = offset + length
    if start < len(file.data):
        yield start, len(file.data) - start


def _spans_by(file: ShardFile, what: By) -> Iterator[tuple[str, np.ndarray]]:
    """Yield for each source or language of a shard the (offset, length) of its live documents, neighbours joined."""
    rows = read_documents(file.path, file.name)
    offset, length = rows["offset"].to_numpy(), rows["length"].to_numpy()
    named = [(name or "unknown").split("-")[0] if what == "language" else name or "unknown" for name in rows[what].to_pylist()]
    names, group = np.unique(named, return_inverse=True) if named else ([], np.empty(0, int))
    alive = ~np.isin(offset, list(file.dead))
    for number, name in enumerate(names):
        mine = alive & (group == number)
        start, size = offset[mine], length[mine]
        if len(start):
            first = np.flatnonzero(np.r_[True, start[1:] != start[:-1] + size[:-1]])
            yield str(name), np.column_stack([start[first], np.add.reduceat(size, first)])


def _input_names(paths: Sequence[Path]) -> dict[Path, str]:
    """Name directories by their last part, or whole where that is not enough."""
    distinct = list(dict.fromkeys(paths))
    short = [p.resolve().name for p in distinct]
    return {p: name if short.count(name) == 1 else str(p) for p, name in zip(distinct, short, strict=True)}


def read_documents(path: Path, shard: str) -> pa.Table:
    """Read which documents a shard holds (DOCS_SCHEMA), in order, those with a tombstone too."""
    file = path / f"{shard}.docs.parquet"
    try:
        return pq.read_table(file)
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"{file}: cannot be read ({error})", hint=f"llmpipe verify {path}") from None


def read_index(path: Path) -> tuple[np.dtype, np.ndarray, np.ndarray]:
    """Read an `.idx`: the element type, the lengths and the byte offsets of its sequences."""
    raw = path.read_bytes()
    try:
        if not raw.startswith(MAGIC):
            raise ValueError("it does not begin with MMIDIDX")
        version, code, sequences, bounds = struct.unpack_from("<QBQQ", raw, len(MAGIC))
        at = len(MAGIC) + struct.calcsize("<QBQQ")
        if version != 1 or code not in DTYPE_CODES or len(raw) < at + 12 * sequences + 8 * bounds:
            raise ValueError("its header and its size do not fit")
    except (ValueError, struct.error) as error:
        raise InputError(f"{path}: not an index of Megatron's format ({error})", hint=f"llmpipe verify {path.parent}") from None
    lengths = np.frombuffer(raw, "<i4", sequences, at)
    offsets = np.frombuffer(raw, "<i8", sequences, at + lengths.nbytes)
    return np.dtype(DTYPE_CODES[code]).newbyteorder("<"), lengths, offsets


def _open_shard(path: Path, name: str) -> np.ndarray:
    """Map a shard's tokens, checking that they are as many as its index says."""
    file = path / f"{name}.bin"
    try:
        dtype, lengths, _ = read_index(path / f"{name}.idx")
        size = file.stat().st_size
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error})", hint=f"llmpipe verify {path}") from None
    wanted = int(lengths.sum(dtype=np.int64))
    if size != wanted * dtype.itemsize:
        raise InputError(f"{file}: {size:,} bytes, its index says {wanted * dtype.itemsize:,}", hint=f"llmpipe verify {path}")
    return np.memmap(file, dtype=dtype, mode="r") if wanted else np.empty(0, dtype)


def _read_tombstones(path: Path, manifest: Manifest) -> dict[str, dict[int, int]]:
    """Map each shard to the offset and length of its dead documents."""
    dead: dict[str, dict[int, int]] = {}
    for shard in manifest.shards:
        if shard.name.startswith("tombstones-"):
            for row in pq.read_table(path / shard.name).to_pylist():
                dead.setdefault(row["shard"], {})[row["offset"]] = row["length"]
    return dead
