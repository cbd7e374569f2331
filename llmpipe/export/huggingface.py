"""Copy a model into a complete Hugging Face directory and check that the copy answers as the original does.

    files = export(model, output, dtype="keep", info={})      # info gets parameters and max_difference
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from llmpipe.data.files import write_json
from llmpipe.errors import LlmpipeError
from llmpipe.models.heads import class_labels, load_classifier, save_classifier
from llmpipe.models.hf import load_model, save_model
from llmpipe.tokenizer.directory import load_tokenizer, special_ids, tokenizer_settings

PROBE = "Hello, world! 床前明月光，疑是地上霜。 def f(x): return x 👩‍👩‍👧‍👦\n\tlast line"
TOLERANCE = {"keep": 1e-5, "float32": 1e-5, "bfloat16": 0.5, "float16": 0.1}
"""Largest change of a logit: nothing but the rounding of stored weights may show."""


def export(model: Path, output: Path, *, dtype: str, info: dict[str, Any]) -> list[Path]:
    """Write the directory and return its files. Raises `LlmpipeError` when the copy differs from the original."""
    stored = None if dtype == "keep" else getattr(torch, dtype)
    labels = class_labels(model)
    if labels is None:
        original, _ = load_model(model)
        files = save_model(output, original, tokenizer=model, dtype=stored)
        copy, _ = load_model(output)
    else:
        original, _ = load_classifier(model)
        limit = tokenizer_settings(model).get("model_max_length")
        files = save_classifier(output, original, labels=labels, tokenizer=model, max_length=limit or original.config.max_seq_len, dtype=stored)
        write_json(output / "generation_config.json", special_ids(model))
        files.append(output / "generation_config.json")
        copy, _ = load_classifier(output)
    ids = load_tokenizer(model).encode(PROBE).ids[: original.config.max_seq_len]
    if load_tokenizer(output).encode(PROBE).ids[: original.config.max_seq_len] != ids:
        raise LlmpipeError(f"{output}: the exported tokenizer gives other ids than that of {model}", hint="this is a defect of llmpipe; please report it with the tokenizer")
    probe = (torch.tensor([ids]),) if labels is None else (torch.tensor([ids]), torch.tensor([len(ids)]))
    more = {"decoder_ids": probe[0].flip(1)} if original.config.stack == "encoder-decoder" else {}
    with torch.no_grad():
        difference = (original(*probe, **more) - copy(*probe, **more)).abs().max().item()
    if not difference <= TOLERANCE[dtype]:  # also catches NaN
        raise LlmpipeError(f"{output}: logits of the exported model differ by {difference:.3g} from those of {model}", hint="export with dtype=float32" if dtype != "float32" else None)
    info.update(parameters=sum(p.numel() for p in original.parameters()), max_difference=difference)
    return files
