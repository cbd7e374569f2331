"""Models from elsewhere are scored and asked for text like our own; models that give no probability to a text say so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from llmpipe.cli import main
from llmpipe.tokenizer.directory import load_tokenizer
from tests.material import bilingual_rows, write_docs_dir
from tests.models.test_families import ours
from tests.tiny import make_model

SHAPES = {
    "GPT2LMHeadModel": ("GPT2Config", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 48, "bos_token_id": 0, "eos_token_id": 0}),
    "LlamaForCausalLM": ("LlamaConfig", {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 48}),
}


def theirs_in(directory: Path, name: str) -> object:
    """A random model of transformers, saved by it, beside our tokenizer."""
    import transformers

    make_model(directory)
    torch.manual_seed(5)
    kind, settings = SHAPES[name]
    model = getattr(transformers, name)(getattr(transformers, kind)(vocab_size=load_tokenizer(directory).get_vocab_size(), **settings)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.2)
    model.save_pretrained(directory)
    return model


@pytest.mark.parametrize("name", SHAPES)
def test_bits_per_byte_of_a_model_from_elsewhere(tmp_path: Path, name: str) -> None:
    model = theirs_in(tmp_path / "model", name)
    rows = bilingual_rows(2, sentences=1)
    write_docs_dir(tmp_path / "docs", rows)
    assert main(["eval", "--model", str(tmp_path / "model"), "--input", str(tmp_path / "docs"), "--output", str(tmp_path / "out"), "--set", "draws=0", "--set", "window=48", "--set", "stride=48"]) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))["results"]
    got = next(r["value"] for r in results if r["metric"] == "bits_per_byte" and r["system"] == "model" and r["language"] is None and r["source"] is None)
    tokenizer, nats, size = load_tokenizer(tmp_path / "model"), 0.0, 0
    for row in rows:
        ids = torch.tensor([0, *tokenizer.encode(row["text"]).ids])
        for start in range(0, len(ids) - 1, 48):
            part = ids[start : start + 49]
            with torch.no_grad():
                logits = model(part[None, :-1]).logits[0].double()  # type: ignore[operator]
            nats += torch.nn.functional.cross_entropy(logits, part[1:], reduction="sum").item()
        size += len(row["text"].encode())
    assert got == pytest.approx(nats / size / torch.tensor(2.0).double().log().item(), rel=1e-4)


@pytest.mark.parametrize("name", SHAPES)
def test_greedy_text_equals_that_of_transformers(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    model = theirs_in(tmp_path, name)
    tokenizer = load_tokenizer(tmp_path)
    ids = torch.tensor([tokenizer.encode("河水 the river").ids])
    made = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=1)[0, ids.shape[1] :].tolist()  # type: ignore[attr-defined]
    made = made[: made.index(0)] if 0 in made else made
    capsys.readouterr()
    assert main(["generate", "--model", str(tmp_path), "--prompt", "河水 the river", "--set", "temperature=0", "--set", "max_new_tokens=12"]) == 0
    assert capsys.readouterr().out.rstrip("\n") == tokenizer.decode(made).rstrip("�\n")


@pytest.mark.parametrize(("family", "message"), [("bert", "is an encoder, which"), ("t5", "is an encoder-decoder, which gives")])
def test_models_without_a_probability_for_text_say_so(tmp_path: Path, family: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    from llmpipe.models.hf import save_model

    make_model(tmp_path / "model")
    save_model(tmp_path / "model", ours(family), tokenizer=tmp_path / "model")
    write_docs_dir(tmp_path / "docs", bilingual_rows(2))
    assert main(["eval", "--model", str(tmp_path / "model"), "--input", str(tmp_path / "docs"), "--output", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    code = main(["generate", "--model", str(tmp_path / "model"), "--prompt", "x", "--set", "max_new_tokens=2"])
    assert code == (2 if family == "bert" else 0)
