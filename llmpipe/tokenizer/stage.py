"""Train a tokenizer on a bounded sample of documents.

    llmpipe tokenizer --input docs --output tok --set vocab_size=32000

Reads documents; writes tokenizer.json (the `tokenizers` library's file) and tokenizer_config.json (what
`transformers.AutoTokenizer` needs). manifest.info holds its fertility: UTF-8 bytes per token, by language.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from llmpipe.errors import InputError
from llmpipe.work import Counts, Work

if TYPE_CHECKING:
    from collections.abc import Iterator

MIN_VOCAB_SIZE = 256 + 64  # the bytes, the special tokens, and some room to learn
FERTILITY_BYTES = 200_000  # of each language: enough for three digits, a tenth of a second


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    kind: Literal["bpe"] = "bpe"
    """Byte-level BPE with Qwen2's split pattern: any text comes back as it was, and llama.cpp knows the pattern."""
    vocab_size: int = 16_384
    """Ids in all, special tokens included. On a CPU the head is most of the work from 8,192 on."""
    sample_bytes: int = 256_000_000
    """Train on about this much text, documents chosen by the hash of their id; all of it if there is less."""
    max_run_chars: int = 64
    """Cut runs without a space into pieces of this many characters while training: base64 and the like take memory by the square."""
    num_sentinels: int = 32
    """Reserved tokens for removed spans (T5); 15 % noise in spans of 3 needs 28 for a window of 512."""

    def __post_init__(self) -> None:
        if self.vocab_size < MIN_VOCAB_SIZE + self.num_sentinels:
            raise ValueError(f"vocab_size {self.vocab_size} is below {MIN_VOCAB_SIZE + self.num_sentinels}: the 256 bytes and the special tokens alone take most of that")


def run(config: Config, work: Work) -> Counts:
    from llmpipe.tokenizer import train

    paths = [i.path for i in work.inputs]
    read = used = size = 0

    def sample() -> Iterator[str]:
        nonlocal read, used, size
        for taken, text in train.sample_texts(paths, config.sample_bytes):
            read += 1
            if taken:
                used += 1
                size += len(text.encode())
                yield text
                work.progress.update(used, sample_mb=size / 1e6)

    tokenizer = train.train_bpe(sample(), vocab_size=config.vocab_size, max_run_chars=config.max_run_chars, num_sentinels=config.num_sentinels)
    if used == 0:
        raise InputError(f"{', '.join(map(str, paths))}: no documents to train a tokenizer on", hint="llmpipe inspect DIR says what a directory holds")
    if tokenizer.get_vocab_size() < config.vocab_size:
        work.log.warning("the sample holds only %d distinct tokens, fewer than vocab_size %d", tokenizer.get_vocab_size(), config.vocab_size)
    for path in train.write_tokenizer(work.output, tokenizer):
        work.add_file(path)
    work.info.update(vocab_size=tokenizer.get_vocab_size(), sample_bytes=size, bytes_per_token=_fertility(tokenizer, paths))
    return Counts(read=read, kept=used, extra={"sample_bytes": size})


def _fertility(tokenizer, paths: list[Path]) -> dict[str, float]:
    """Measure UTF-8 bytes per token on the first texts of each language."""
    from llmpipe.data.docs import read_docs

    size: Counter[str] = Counter()
    tokens: Counter[str] = Counter()
    for path in paths:
        for batch in read_docs(path, columns=["text", "language"]):
            for row in batch.to_pylist():
                language = (row["language"] or "und").split("-")[0]
                if size[language] < FERTILITY_BYTES:
                    text = row["text"][:FERTILITY_BYTES]
                    size[language] += len(text.encode())
                    tokens[language] += len(tokenizer.encode(text, add_special_tokens=False).ids)
    return {language: round(size[language] / tokens[language], 3) for language in sorted(size) if tokens[language]}
