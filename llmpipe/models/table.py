"""Every kind of model by the name that configs give it."""

from __future__ import annotations

from torch import nn

from llmpipe.models.transformer import Transformer

MODELS: dict[str, type[nn.Module]] = {"gpt": Transformer}
