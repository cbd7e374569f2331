"""Write a finished model as a directory that others load, with a model card.

    llmpipe export --model runs/pretrain --output runs/export
    python -c "from transformers import AutoModelForCausalLM; AutoModelForCausalLM.from_pretrained('runs/export')"

Reads a model (a language model or a classifier). Writes config.json, model.safetensors, tokenizer.json,
tokenizer_config.json, generation_config.json and README.md, whose facts come from the manifests of the stages that led
to the model, as far as they lie beside it. The copy is loaded again and must answer as the original does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from llmpipe.work import Counts, Work


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    format: Literal["hf"] = "hf"
    """hf: a Hugging Face directory."""
    dtype: Literal["keep", "float32", "bfloat16", "float16"] = "keep"
    """What the weights are stored in; the check against the original allows for its rounding."""
    name: str | None = None
    """The model's name on its card; null: the name of the model's directory."""
    license: str | None = None
    """The licence that you give the model, an SPDX name such as apache-2.0; null: the card says that none is set."""


def run(config: Config, work: Work) -> Counts:
    from llmpipe.export.card import write_card
    from llmpipe.export.huggingface import export

    files = export(work.input("model").path, work.output, dtype=config.dtype, info=work.info)
    files.append(write_card(work.input("model").path, work.output, name=config.name, license=config.license))
    for path in files:
        work.add_file(path)
    return Counts(read=1, kept=1)
