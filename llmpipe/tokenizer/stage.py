"""Train a tokenizer on a bounded sample of documents.

    llmpipe tokenizer --input docs --output tok --set vocab_size=32000

Reads documents; writes tokenizer.json (the `tokenizers` library's file), tokenizer_config.json (what
`transformers.AutoTokenizer` needs) and chat_template.jinja. manifest.info holds its fertility by language and source, beside
that of a GPT-2-like tokenizer: `llmpipe inspect tok`, or `--json`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llmpipe.errors import InputError
from llmpipe.work import Counts, Work

ROOM = {"bpe": 256 + 64, "unigram": 256 + 384, "wordpiece": 512}
"""Ids that the bytes or letters and the special tokens but sentinels take, and some room to learn."""
MANY_SENTINELS, FEW_SENTINELS = 100, 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    kind: Literal["bpe", "unigram", "wordpiece"] = "bpe"
    """bpe: byte-level, lossless, Qwen2's split pattern, which llama.cpp knows; the same bytes on every run. unigram: with
    byte fallback, lossless too, a few pieces differ from run to run, no GGUF. wordpiece: BERT's; drops spaces and rare characters."""
    vocab_size: int = 16_384
    """Ids in all, special tokens included. On a CPU the head is most of the work from 8,192 on."""
    sample_bytes: int = 64_000_000
    """Train on about this much text, documents chosen by the hash of their id; all of it if there is less. Languages share
    it by the square root of their sizes. Training takes 20 bytes of memory for each byte of English, 80 of Chinese."""
    max_run_chars: int = 64
    """Cut runs without a space into pieces of this many characters while training: base64 and the like take memory by the square."""
    num_sentinels: int | None = None
    """Reserved tokens for removed spans (T5): <extra_id_0>, …; null: 100 from 4,096 ids on, else 32. 15 % noise in spans of
    3 needs 28 for a window of 512."""
    baseline: bool = True
    """Also train a BPE with GPT-2's split pattern on the same sample, to compare with; takes as long again."""
    compare: list[Path] | None = None
    """More tokenizers for the report: tokenizer.json files, or directories that hold one."""

    def __post_init__(self) -> None:
        if self.sentinels < 0:
            raise ValueError(f"num_sentinels {self.num_sentinels} is below 0")
        least = ROOM[self.kind] + self.sentinels
        if self.vocab_size < least:
            raise ValueError(f"vocab_size {self.vocab_size} is below {least}: the alphabet and the special tokens alone take most of that")
        for name in ("sample_bytes", "max_run_chars"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} is below 1")

    @property
    def sentinels(self) -> int:
        """How many tokens for spans there are."""
        if self.num_sentinels is not None:
            return self.num_sentinels
        return MANY_SENTINELS if self.vocab_size >= 4_096 else FEW_SENTINELS


def run(config: Config, work: Work) -> Counts:
    from llmpipe.tokenizer import train
    from llmpipe.tokenizer.directory import gguf_pre, load_tokenizer
    from llmpipe.tokenizer.fertility import measure
    from llmpipe.tokenizer.sample import Sample

    paths = [i.path for i in work.inputs]
    sample = Sample(paths, sample_bytes=config.sample_bytes, progress=lambda used, size: work.progress.update(used, sample_mb=size / 1e6))
    sizes = {"vocab_size": config.vocab_size, "max_run_chars": config.max_run_chars, "num_sentinels": config.sentinels}
    if next(iter(sample), None) is None:
        raise InputError(f"{', '.join(map(str, paths))}: no documents to train a tokenizer on", hint="llmpipe inspect DIR says what a directory holds")
    tokenizer = train.KINDS[config.kind](sample, **sizes)
    counts = Counts(read=sample.read, kept=sample.used, extra={"sample_bytes": sample.size})
    if tokenizer.get_vocab_size() < config.vocab_size:
        work.log.warning("the sample holds only %d distinct tokens, fewer than vocab_size %d", tokenizer.get_vocab_size(), config.vocab_size)
    for path in train.write_tokenizer(work.output, tokenizer):
        work.add_file(path)
    others = {"gpt2_like": train.train_gpt2_like(sample, **sizes)} if config.baseline else {}
    for path in config.compare or ():
        folder = path if path.is_dir() else path.parent
        others[folder.name] = load_tokenizer(folder)
    rows = measure({"this": tokenizer, **others}, paths)
    whole = {row["language"]: row["bytes_per_token"] for row in rows if row["source"] is None}
    work.info.update(tokenizer_kind=config.kind, vocab_size=tokenizer.get_vocab_size(), sample_bytes=sample.size, gguf_pre=gguf_pre(work.output), bytes_per_token=whole, fertility=rows)
    return counts
