"""Put a task's head on a language model's body.

    classifier = SequenceClassifier(config, num_labels=3)
    classifier.load_body(load_model(directory)[0])              # the pretrained weights below the head
    logits = classifier(ids, lengths)                           # (B, T), (B,) -> (B, num_labels)
    save_classifier(out, classifier, labels=[...], tokenizer=directory, max_length=256); load_classifier(out)

Parameters are named as in `Qwen3ForSequenceClassification`, and the pooled position is the same (the last token that is
not padding), so the saved directory loads with AutoModelForSequenceClassification and gives the same logits.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from llmpipe.data.files import read_json, write_json
from llmpipe.errors import InputError
from llmpipe.models.families import FAMILIES, family_of
from llmpipe.models.hf import config_json, load_config, load_weights, our_weights, save_weights, their_weights
from llmpipe.models.transformer import ModelConfig, Stack, Transformer
from llmpipe.tokenizer.directory import save_tokenizer, special_ids


class SequenceClassifier(nn.Module):
    """A body and one linear layer, without bias, on the hidden state of each text's last token."""

    def __init__(self, config: ModelConfig, *, num_labels: int) -> None:
        super().__init__()
        if FAMILIES[family_of(config)].classifier is None:
            raise InputError(f"a {family_of(config)} model cannot be finetuned here yet", hint=f"take one of {', '.join(name for name, f in FAMILIES.items() if f.classifier)}")
        self.config = config
        self.model = Stack(config)
        self.score = nn.Linear(config.dim, num_labels, bias=False)

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """Return logits (B, num_labels) in fp32. Padding stands on the right, where no token sees it."""
        hidden = self.model(ids, cache=None, attention_mask=None, positions=None)  # (B, T, C)
        pooled = hidden[torch.arange(len(ids), device=ids.device), lengths - 1]
        return self.score(pooled).float()

    def load_body(self, model: Transformer) -> None:
        """Copy the weights of a language model; its output layer is left behind."""
        self.model.load_state_dict(model.model.state_dict())

    @torch.no_grad()
    def initialize_head(self, generator: torch.Generator) -> None:
        self.score.weight.normal_(0.0, self.config.dim**-0.5, generator=generator)


def save_classifier(directory: Path, classifier: SequenceClassifier, *, labels: list[str], tokenizer: Path, max_length: int, dtype: torch.dtype | None = None) -> list[Path]:
    """Write a directory that AutoModelForSequenceClassification loads; return the files written, each atomically.

    `tokenizer` is the directory that the tokenizer's files are copied from; `max_length` what it cuts texts at.
    """
    directory.mkdir(parents=True, exist_ok=True)
    weights = their_weights(classifier.config, {name: t.detach().to("cpu", dtype or torch.float32) for name, t in classifier.state_dict().items()})
    config = config_json(classifier.config, dtype or torch.float32)
    config["architectures"] = [FAMILIES[config["model_type"]].classifier]
    config["id2label"] = {str(i): label for i, label in enumerate(labels)}
    config["label2id"] = {label: i for i, label in enumerate(labels)}
    config["problem_type"] = "single_label_classification"
    ids = special_ids(tokenizer)
    write_json(directory / "config.json", {**config, **ids, "pad_token_id": pad_id(tokenizer)})
    files = save_tokenizer(directory, tokenizer, model_max_length=max_length)
    save_weights(directory / "model.safetensors", weights)
    return [*files, directory / "config.json", directory / "model.safetensors"]


def load_classifier(directory: Path, *, device: torch.device | str = "cpu") -> tuple[SequenceClassifier, list[str]]:
    """Load a classifier and its labels in the order of its logits."""
    labels = class_labels(directory)
    if labels is None:
        raise InputError(f"{directory}: not a classifier", hint="llmpipe finetune --model DIR --input ROWS --output DIR makes one")
    config, weights = load_config(directory), load_weights(directory)
    with torch.device("meta"):
        classifier = SequenceClassifier(config, num_labels=len(labels))
    ours = our_weights(FAMILIES[family_of(config)], {name: tuple(p.shape) for name, p in classifier.state_dict().items()}, weights, directory)
    classifier.load_state_dict({name: t.to(device=device, dtype=torch.float32).contiguous() for name, t in ours.items()}, assign=True)
    return classifier.requires_grad_(True).eval(), labels


def class_labels(directory: Path) -> list[str] | None:
    """Return the labels of a classifier's directory, None for a language model's."""
    path = directory / "config.json"
    raw = read_json(path) if path.is_file() else {}
    architectures = raw.get("architectures") or [""]
    if not str(architectures[0]).endswith("ForSequenceClassification"):
        return None
    id2label = raw.get("id2label")
    if not isinstance(id2label, dict) or sorted(id2label, key=lambda k: int(k)) != [str(i) for i in range(len(id2label))]:
        raise InputError(f"{path}: id2label does not number the labels from 0")
    return [str(id2label[str(i)]) for i in range(len(id2label))]


def pad_id(tokenizer: Path) -> int:
    """Return the id that fills short rows: the padding token, or in a tokenizer without one the end token."""
    ids = special_ids(tokenizer)
    for role in ("pad_token_id", "eos_token_id"):
        if role in ids:
            return ids[role]
    raise InputError(f"{tokenizer}: its tokenizer names neither a padding nor an end token", hint="name one in tokenizer_config.json")
