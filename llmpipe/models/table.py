"""Every kind of model that `pretrain` trains, by the name that configs give it: a family, whose layout its directory has."""

from __future__ import annotations

from llmpipe.models.families import FAMILIES, Family

MODELS: dict[str, Family] = {("gpt" if name == "qwen3" else name): family for name, family in FAMILIES.items() if name != "roberta"}
"""RoBERTa is BERT with another count of positions: read, written and trained on, but no kind of its own."""
