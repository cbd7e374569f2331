"""Byte-level BPE on the `tokenizers` library: sampling, training, and the two files that make a tokenizer directory.

    tokenizer = train_bpe(texts, vocab_size=4096, max_run_chars=64, num_sentinels=32)

The result depends on the texts alone, not on their order, on threads or on the machine.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from llmpipe.data.docs import read_docs
from llmpipe.data.files import atomic_write, write_json
from llmpipe.data.manifest import read_manifest
from llmpipe.tokenizer.special import END, PAD, special_tokens

# Qwen2's: contractions, words with one leading mark or space, single digits, punctuation with its line ends, spaces.
SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def sample_texts(paths: list[Path], sample_bytes: int) -> Iterator[tuple[bool, str]]:
    """Yield each live document's text with whether the sample has it: the share of ids, by hash, that makes about `sample_bytes`."""
    total = sum(_text_bytes(path) for path in paths)
    share = min(1.0, sample_bytes / max(total, 1))
    for path in paths:
        for batch in read_docs(path, columns=["id", "text"]):
            for row in batch.to_pylist():
                yield share >= 1.0 or hash_unit("sample", row["id"]) < share, row["text"]


def hash_unit(salt: str, doc_id: str) -> float:
    """Map a document to [0, 1), evenly, for good: the same on every machine and for every generation."""
    digest = hashlib.blake2b(f"{salt}:{doc_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def _text_bytes(path: Path) -> int:
    """Add up the size of all texts, from the footers of the shards."""
    total = 0
    for shard in read_manifest(path, kind="docs").doc_shards():
        meta = pq.read_metadata(path / shard.name)
        column = meta.schema.to_arrow_schema().get_field_index("text")
        total += sum(meta.row_group(g).column(column).total_uncompressed_size for g in range(meta.num_row_groups))
    return total


def train_bpe(texts: Iterable[str], *, vocab_size: int, max_run_chars: int, num_sentinels: int) -> Tokenizer:
    """Train on texts. Special tokens take the first ids, then the 256 bytes, then merges in order of their gain."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=False, ignore_merges=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[AddedToken(t, special=True, normalized=False) for t in special_tokens(num_sentinels)],
    )
    os.environ["TOKENIZERS_PARALLELISM"] = "true"  # encoding turns it off, see encode.py
    tokenizer.train_from_iterator((piece for text in texts for piece in cut_runs(text, max_run_chars)), trainer=trainer)
    return tokenizer


def cut_runs(text: str, max_chars: int) -> list[str]:
    """Cut a text inside its runs of more than `max_chars` characters without a space; other text stays whole."""
    pieces, start = [], 0
    for run in re.finditer(rf"\S{{{max_chars + 1},}}", text):
        for cut in range(run.start() + max_chars, run.end(), max_chars):
            pieces.append(text[start:cut])
            start = cut
    return [*pieces, text[start:]]


def write_tokenizer(directory: Path, tokenizer: Tokenizer) -> list[Path]:
    """Write tokenizer.json and the settings with which `transformers` takes it as it is."""
    atomic_write(directory / "tokenizer.json", tokenizer.to_str(pretty=False) + "\n")
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END,
        "pad_token": PAD,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1_000_000,
    }
    write_json(directory / "tokenizer_config.json", settings)
    return [directory / "tokenizer.json", directory / "tokenizer_config.json"]
