"""Continue prompts with a language model.

    llmpipe generate --model runs/pretrain --prompt "import asyncio" --set temperature=0.8
    llmpipe generate --model runs/pretrain --input prompts.jsonl --output runs/samples

Without `--output` the continuations go to stdout, alone. With it: reads rows with a `prompt` (or `text`) column and the
prompts of the config, writes `continuations.parquet` (prompt, sample, continuation, num_tokens, finish).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import pyarrow as pa

from llmpipe.data.docs import clean_str, write_parquet
from llmpipe.data.rows import read_rows
from llmpipe.errors import InputError, UsageError
from llmpipe.work import Counts, Work

SCHEMA = pa.schema([("prompt", pa.string()), ("sample", pa.int32()), ("continuation", pa.string()), ("num_tokens", pa.int32()), ("finish", pa.string())])


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    prompts: list[str] = field(default_factory=list)
    """Texts to continue, beside those of `--input`. An empty one starts a new document."""
    temperature: float = 0.8
    """0 always takes the likeliest token; 1 samples from the model's own distribution."""
    top_k: int | None = 50
    """Sample among this many likeliest tokens; null: among all."""
    top_p: float = 1.0
    """Sample among the likeliest tokens whose probabilities reach this sum."""
    max_new_tokens: int = 128
    """Stop after so many tokens, if the end token does not come before."""
    num_samples: int = 1
    """Continuations of each prompt."""
    seed: int = 1337
    """With the numbers of prompt and sample it fixes every draw, so more samples leave the first ones as they were."""
    device: Literal["auto", "cpu", "cuda"] = "auto"

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ValueError(f"temperature {self.temperature} is negative")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p {self.top_p} is not in (0, 1]")
        for name in ("top_k", "max_new_tokens", "num_samples"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} {value} is less than 1")


def resolve(config: Config) -> Config:
    from llmpipe.models.device import choose_device

    return replace(config, device=choose_device(config.device))


def run(config: Config, work: Work) -> Counts:
    from llmpipe.evaluate.sampling import Sampler

    prompts = [*config.prompts, *(p for given in work.inputs if given.role.isdigit() for p in _prompts(given.path))]
    if not prompts:
        raise UsageError("generate has nothing to continue", hint="--prompt TEXT, --set 'prompts=[\"…\"]', or --input FILE with a `prompt` column")
    sampler = Sampler.load(work.input("model").path, device=config.device)
    rows, tokens = [], 0
    for number, prompt in enumerate(prompts):
        for sample, made in enumerate(sampler.continue_text(prompt, config, number=number)):
            rows.append({"prompt": clean_str(prompt), "sample": sample, "continuation": made.text, "num_tokens": made.num_tokens, "finish": made.finish})
            tokens += made.num_tokens
        work.progress.update(number + 1, len(prompts), tokens=tokens)
    path = work.output / "continuations.parquet"
    write_parquet(path, pa.Table.from_pylist(rows, schema=SCHEMA))
    work.add_file(path, rows=len(rows))
    work.info["tokens"] = tokens
    return Counts(read=len(prompts), kept=len(rows), extra={"tokens": tokens})


def _prompts(path: Path) -> list[str]:
    rows = read_rows(path)
    column = next((c for c in ("prompt", "text") if c in rows[0]), None)
    if column is None:
        raise InputError(f"{path}: no column `prompt` or `text`, only {', '.join(sorted(rows[0]))}")
    return [str(row[column]) for row in rows]


def generate_texts(model: Path, prompt: str, config: Config) -> list[str]:
    """Return `config.num_samples` continuations of one prompt, without the prompt."""
    from llmpipe.evaluate.sampling import Sampler

    return [made.text for made in Sampler.load(model, device=resolve(config).device).continue_text(prompt, config)]


def stream_text(model: Path, prompt: str, config: Config) -> Iterator[str]:
    """Yield one continuation in pieces as it comes; a character of several tokens comes whole."""
    from llmpipe.evaluate.sampling import Sampler

    sampler = Sampler.load(model, device=resolve(config).device)
    for pieces in sampler.stream(prompt, replace(config, num_samples=1)):
        yield pieces[0].text
