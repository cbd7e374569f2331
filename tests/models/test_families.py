"""Every family in both directions: what transformers writes gives the same logits here, what we write gives them there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from llmpipe.errors import InputError
from llmpipe.models.config import ModelConfig, count_parameters
from llmpipe.models.families import FAMILIES, family_of
from llmpipe.models.heads import SequenceClassifier, load_classifier, save_classifier
from llmpipe.models.hf import load_config, load_model, load_tokenizer, save_model
from llmpipe.models.transformer import KVCache, Transformer
from llmpipe.tokenizer.train import train_bpe, write_tokenizer
from tests.material import chinese, english

TEXT = "The river runs. 河水流过安静的小镇。 🙂👍🏽 x = 1234"
V = 211
LLAMA = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64}
BERT = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 6, "max_position_embeddings": 66}
MODERN = {**BERT, "num_hidden_layers": 5, "local_attention": 8, "bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3, "pad_token_id": 1}
T5 = {"d_model": 48, "d_kv": 16, "d_ff": 80, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 4, "feed_forward_proj": "gated-gelu"}
THEIRS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3": ("Qwen3", LLAMA),
    "llama": ("Llama", {**LLAMA, "tie_word_embeddings": True}),
    "gpt2": ("GPT2", {"n_embd": 48, "n_layer": 3, "n_head": 6, "n_positions": 64, "bos_token_id": 0, "eos_token_id": 0}),
    "bert": ("Bert", BERT),
    "roberta": ("Roberta", {**BERT, "type_vocab_size": 1}),
    "modernbert": ("ModernBert", {**MODERN, "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 5e4}, "sliding_attention": {"rope_type": "default", "rope_theta": 1e3}}}),
    "t5": ("T5", {**T5, "tie_word_embeddings": False}),
    "t5-tied": ("T5", T5),
}
OURS: dict[str, dict[str, Any]] = {
    "qwen3": {"num_kv_heads": 2},
    "llama": {"qk_norm": False, "tie_embeddings": False},
    "gpt2": {},
    "bert": {"token_types": 2},
    "roberta": {"position_offset": 2, "token_types": 1},
    "modernbert": {"local_window": 8, "global_every": 2, "num_layers": 5, "local_rope_theta": 500.0},
    "t5": {"tie_embeddings": False, "head_dim": 12, "num_decoder_layers": 3},
}


@pytest.fixture(scope="module")
def tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tok")
    write_tokenizer(path, train_bpe([english(1, 60), chinese(2, 60)], vocab_size=400, max_run_chars=64, num_sentinels=4))
    return path


def ours(family: str, vocab_size: int = 400, **changes: Any) -> Transformer:
    shape = {"num_layers": 2, "dim": 32, "num_heads": 4, "max_seq_len": 128}
    model = Transformer(ModelConfig(**{"vocab_size": vocab_size, **shape, **FAMILIES[family].fixed, **OURS[family], **changes})).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0.0, 0.2, generator=generator)
    return model


def auto_class(family: str) -> Any:
    import transformers

    stack = FAMILIES[family].fixed["stack"]
    return {"decoder": transformers.AutoModelForCausalLM, "encoder": transformers.AutoModelForMaskedLM, "encoder-decoder": transformers.AutoModelForSeq2SeqLM}[stack]


def random_ids(rows: int = 2, length: int = 40, low: int = 5) -> torch.Tensor:
    return torch.randint(low, V, (rows, length), generator=torch.Generator().manual_seed(4))


def both(model: Transformer, theirs: Any, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.no_grad():
        if model.config.stack == "encoder-decoder":
            decoder_ids = ids.flip(1)[:, :9]
            hidden = model.hidden(ids, decoder_ids=decoder_ids)
            return model.logits(hidden), theirs(input_ids=ids, decoder_input_ids=decoder_ids).logits
        return model(ids), theirs(ids).logits


@pytest.mark.parametrize("name", THEIRS)
def test_models_from_transformers_give_the_same_logits_here(tmp_path: Path, name: str) -> None:
    import transformers

    torch.manual_seed(3)
    prefix, settings = THEIRS[name]
    family = name.partition("-")[0]
    config = getattr(transformers, f"{prefix}Config")(vocab_size=V, **settings)
    theirs = getattr(transformers, FAMILIES[family].architecture)(config).eval()
    with torch.no_grad():
        for p in theirs.parameters():  # their initialisation has biases of zero and norms of one
            p.add_(torch.randn_like(p) * 0.1)
        if name == "t5":  # transformers ties unless the two differ, but their 1.1 checkpoints have a head of their own
            theirs.lm_head.weight = torch.nn.Parameter(torch.randn(V, 48) * 0.3)
    theirs.save_pretrained(tmp_path, max_shard_size="40KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    model, config = load_model(tmp_path)
    assert family_of(config) == family
    a, b = both(model, theirs, random_ids())
    assert a.shape == b.shape and b.std() > 0.1
    assert (a - b).abs().max() <= 1e-4


@pytest.mark.parametrize("family", OURS)
def test_transformers_gives_our_logits_and_ids(tmp_path: Path, tokenizer_dir: Path, family: str) -> None:
    from transformers import AutoTokenizer

    model = ours(family)
    files = save_model(tmp_path, model, tokenizer=tokenizer_dir)
    assert {f.name for f in files} == {f.name for f in tmp_path.iterdir()}
    theirs, loading = auto_class(family).from_pretrained(tmp_path, output_loading_info=True)
    assert theirs.config.model_type == family and not any(loading.values())
    again, config = load_model(tmp_path)
    assert config == model.config
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    ids = tokenizer(TEXT, return_tensors="pt").input_ids
    assert ids[0].tolist() == load_tokenizer(tmp_path).encode(TEXT).ids
    if model.config.stack == "encoder":
        assert tokenizer.convert_ids_to_tokens(ids[0])[:: ids.shape[1] - 1] == ["<|cls|>", "<|sep|>"] and tokenizer.mask_token == "<|mask|>"
    a, b = both(again, theirs.eval(), ids)
    assert torch.equal(a, both(model, theirs, ids)[0])
    assert (a - b).abs().max() <= 1e-4


@pytest.mark.parametrize("family", OURS)
def test_parameters_are_counted_as_they_are(family: str) -> None:
    for changes in ({}, {"num_layers": 3, "dim": 48}):
        model = ours(family, **changes)
        counted = count_parameters(model.config)
        assert counted.all == sum(p.numel() for p in model.parameters())
        tables = [p for n, p in model.named_parameters() if ".embed_" in n or "lm_head" in n]
        assert counted.embedding == sum(p.numel() for p in tables)


@pytest.mark.parametrize("family", ["bert", "roberta", "modernbert"])
def test_an_encoders_padding_changes_nothing(tmp_path: Path, tokenizer_dir: Path, family: str) -> None:
    model, ids = ours(family, V), random_ids(1, 20)
    keep = torch.tensor([[1] * 20 + [0] * 6])
    with torch.no_grad():
        padded = model.hidden(torch.cat([ids, torch.ones(1, 6, dtype=torch.long)], 1), attention_mask=keep)
        assert torch.allclose(padded[:, :20], model.hidden(ids), atol=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "llama", "t5"])
def test_cached_decoding_equals_the_whole_pass(family: str) -> None:
    model, ids, source = ours(family, V), random_ids(2, 12), random_ids(2, 17)
    cache = KVCache(model.config, batch_size=2, max_len=12)
    encdec = model.config.stack == "encoder-decoder"
    with torch.no_grad():
        memory = model.encode(source) if encdec else None
        whole = model.hidden(source, decoder_ids=ids) if encdec else model.hidden(ids)
        pieces = [ids[:, :5], ids[:, 5:9], *[ids[:, i : i + 1] for i in range(9, 12)]]
        parts = [model.hidden(source, decoder_ids=p, memory=memory, cache=cache) if encdec else model.hidden(p, cache=cache) for p in pieces]
    assert torch.allclose(torch.cat(parts, 1), whole, atol=1e-5)


@pytest.mark.parametrize("family", OURS)
def test_bf16_on_a_cpu_stays_near_fp32(family: str) -> None:
    """The scores are held as plain products there, masks and biases and all."""
    model, ids = ours(family, V), random_ids()
    extra = {"decoder_ids": ids[:, :15]} if model.config.stack == "encoder-decoder" else {}
    targets = ids[:, :15] if extra else ids
    whole = model(ids, targets, **extra)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = model(ids, targets, **extra)
    assert low.dtype == torch.float32 and abs(low / whole - 1) < 0.03


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx True"),
        ("gpt2", {"activation_function": "relu"}, "activation_function 'relu'"),
        ("bert", {"position_embedding_type": "relative_key"}, "position_embedding_type 'relative_key'"),
        ("bert", {"is_decoder": True}, "is_decoder True"),
        ("roberta", {"tie_word_embeddings": False}, "tie_word_embeddings False"),
        ("modernbert", {"layer_types": ["full_attention", "full_attention", "sliding_attention", "full_attention", "sliding_attention"]}, "layer_types"),
        ("modernbert", {"rope_parameters": {"full_attention": {"rope_type": "yarn"}}}, "rope type 'yarn'"),
        ("modernbert", {"attention_bias": True}, "attention_bias True"),
        ("qwen3", {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ("llama", {"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2.0}}, "rope type 'linear'"),
        ("t5", {"feed_forward_proj": "relu"}, "feed_forward_proj 'relu'"),
        ("t5", {"d_ff": None}, "no d_ff"),
        ("llama", {"quantization_config": {"bits": 4}}, "quantization_config"),
    ],
)
def test_what_would_be_computed_otherwise_is_refused_by_key_and_value(tmp_path: Path, tokenizer_dir: Path, family: str, change: dict, message: str) -> None:
    save_model(tmp_path, ours(family), tokenizer=tokenizer_dir)
    raw = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**raw, **change}))
    with pytest.raises(InputError, match=message):
        load_config(tmp_path)


def test_keys_that_nobody_knows_are_said(tmp_path: Path, tokenizer_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_model(tmp_path, ours("llama"), tokenizer=tokenizer_dir)
    raw = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**raw, "attn_logit_softcapping": 50.0}))
    with caplog.at_level("WARNING"):
        load_config(tmp_path)
    assert "attn_logit_softcapping 50.0" in caplog.text


def test_options_that_no_family_has_together_are_an_error() -> None:
    with pytest.raises(ValueError, match="no family"):
        family_of(ModelConfig(vocab_size=9, num_layers=1, dim=8, num_heads=2, activation="relu"))


def test_dropout_is_off_in_evaluation_and_drawn_from_the_seed_in_training() -> None:
    for family in ("gpt2", "bert", "t5"):
        model, ids = ours(family, V, dropout=0.2, attention_dropout=0.2), random_ids()
        extra = {"decoder_ids": ids} if family == "t5" else {}
        plain = ours(family, V)
        with torch.no_grad():
            assert torch.equal(model(ids, ids, **extra), plain(ids, ids, **extra))
            model.train()
            drawn = []
            for seed in (7, 7, 8):
                torch.manual_seed(seed)
                drawn.append(model(ids, ids, **extra).item())
        assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize("family", ["qwen3", "llama", "gpt2"])
def test_classifiers_of_decoders_load_in_transformers(tmp_path: Path, tokenizer_dir: Path, family: str) -> None:
    from transformers import AutoModelForSequenceClassification

    model = ours(family)
    classifier = SequenceClassifier(model.config, num_labels=3)
    classifier.load_body(model)
    classifier.initialize_head(torch.Generator().manual_seed(2))
    save_classifier(tmp_path, classifier.eval(), labels=["好评", "差评", "none"], tokenizer=tokenizer_dir, max_length=64)
    theirs, loading = AutoModelForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(loading.values())
    ids = random_ids(3, 12)
    ids[0, 9:] = 1
    with torch.no_grad():
        a = load_classifier(tmp_path)[0](ids, torch.tensor([9, 12, 12]))
        b = theirs.eval()(ids, attention_mask=(ids != 1).long()).logits
    assert (a - b).abs().max() <= 1e-4


def test_an_encoder_cannot_be_finetuned_yet_and_says_so() -> None:
    with pytest.raises(InputError, match="a bert model cannot be finetuned here yet"):
        SequenceClassifier(ours("bert").config, num_labels=2)


@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_the_fill_mask_pipeline_of_transformers_finds_everything(tmp_path: Path, tokenizer_dir: Path, family: str) -> None:
    from transformers import pipeline

    save_model(tmp_path, ours(family), tokenizer=tokenizer_dir)
    fill = pipeline("fill-mask", model=str(tmp_path), device="cpu")
    text = f"河水流过{fill.tokenizer.mask_token}的小镇。"
    best = fill(text, top_k=1)[0]
    ids = load_tokenizer(tmp_path).encode(text).ids
    with torch.no_grad():
        assert load_model(tmp_path)[0](torch.tensor([ids]))[0, ids.index(load_tokenizer(tmp_path).token_to_id("<|mask|>"))].argmax() == best["token"]


@pytest.mark.parametrize("family", ["qwen3", "gpt2", "t5"])
def test_what_their_tokenizer_returns_can_be_given_to_generate(tmp_path: Path, tokenizer_dir: Path, family: str) -> None:
    from transformers import AutoTokenizer

    even = {"num_decoder_layers": 2} if family == "t5" else {}  # their cache has as many layers as the encoder
    save_model(tmp_path, ours(family, **even), tokenizer=tokenizer_dir)
    model, tokenizer = auto_class(family).from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert model.generate(**tokenizer("河水", return_tensors="pt"), max_new_tokens=2).shape[0] == 1


def test_old_spellings_of_weights_are_read(tmp_path: Path, tokenizer_dir: Path) -> None:
    """google-bert's files say gamma and beta and carry a pooler; openai-community's GPT-2 leaves out the prefix and carries masks."""
    from safetensors.torch import load_file, save_file

    for family in ("bert", "gpt2"):
        model, directory = ours(family), tmp_path / family
        save_model(directory, model, tokenizer=tokenizer_dir)
        weights = load_file(directory / "model.safetensors")
        if family == "bert":
            weights = {n.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): t for n, t in weights.items()}
            weights |= {"bert.pooler.dense.weight": torch.zeros(32, 32), "cls.seq_relationship.bias": torch.zeros(2), "bert.embeddings.position_ids": torch.arange(128)[None]}
        else:
            weights = {n.removeprefix("transformer."): t for n, t in weights.items()} | {"h.0.attn.bias": torch.ones(1, 1, 128, 128)}
        save_file(weights, directory / "model.safetensors")
        ids = random_ids(1, 20)
        with torch.no_grad():
            assert torch.equal(load_model(directory)[0](ids), model(ids))


def test_an_encoder_keeps_documents_apart_when_told_to() -> None:
    model, ids = ours("bert", V), random_ids(1, 20)
    ids[0, 9] = 3
    model.model.separator = 3
    changed = ids.clone()
    changed[0, 12] = 7
    with torch.no_grad():
        a, b = model.hidden(ids), model.hidden(changed)
    assert torch.equal(a[:, :10], b[:, :10]) and not torch.equal(a[:, 10:], b[:, 10:])
