"""Hugging Face directories: what we write transformers reads, what it writes we read, and pickles nobody reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from llmpipe.errors import InputError
from llmpipe.models.hf import load_model, load_tokenizer, save_model
from llmpipe.tokenizer.train import train_bpe, write_tokenizer
from tests.material import chinese, english
from tests.models.test_transformer import tiny

TEXT = "The river runs. 河水流过安静的小镇。 🙂👍🏽 <|endoftext|> x = 1234"


@pytest.fixture(scope="module")
def tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tok")
    write_tokenizer(path, train_bpe([english(1, 60), chinese(2, 60)], vocab_size=400, max_run_chars=64, num_sentinels=4))
    return path


@pytest.mark.parametrize("shape", [{}, {"tie_embeddings": False, "qk_norm": False, "num_kv_heads": 4, "head_dim": 16}])
def test_transformers_gives_the_same_logits_and_ids(tmp_path: Path, tokenizer_dir: Path, shape: dict) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = tiny(vocab_size=400, max_seq_len=128, **shape)
    files = save_model(tmp_path, model, tokenizer=tokenizer_dir)
    assert sorted(f.name for f in files) == sorted(f.name for f in tmp_path.iterdir())
    theirs, loading = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    assert theirs.config.model_type == ("llama" if shape else "qwen3") and theirs.dtype == torch.float32
    ids = AutoTokenizer.from_pretrained(tmp_path)(TEXT, return_tensors="pt").input_ids
    assert ids[0].tolist() == load_tokenizer(tmp_path).encode(TEXT).ids
    ours, config = load_model(tmp_path)
    assert config == model.config
    with torch.no_grad():
        assert (theirs(ids).logits - ours(ids)).abs().max() <= 1e-4
        assert torch.equal(ours(ids), model(ids))
        greedy = theirs.generate(ids, max_new_tokens=5, do_sample=False, eos_token_id=None)[0, ids.shape[1] :]
        for token in greedy.tolist():
            assert ours(ids)[0, -1].argmax() == token
            ids = torch.cat([ids, torch.tensor([[token]])], dim=1)
    assert theirs.generation_config.eos_token_id == 0 and theirs.generation_config.pad_token_id == 1


@pytest.mark.parametrize("family", ["Qwen3", "Llama"])
@pytest.mark.parametrize("tied", [True, False])
def test_models_from_transformers_load_here(tmp_path: Path, family: str, tied: bool) -> None:
    import transformers

    torch.manual_seed(3)
    settings = getattr(transformers, family + "Config")(
        vocab_size=211, hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=2, head_dim=8,
        max_position_embeddings=64, tie_word_embeddings=tied, rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    )
    theirs = getattr(transformers, family + "ForCausalLM")(settings).eval()
    theirs.save_pretrained(tmp_path, max_shard_size="40KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    ours, config = load_model(tmp_path)
    assert config.qk_norm == (family == "Qwen3") and config.rope_theta == 1e6
    ids = torch.randint(0, 211, (2, 30), generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        assert (theirs(ids).logits - ours(ids)).abs().max() <= 1e-4


def test_weights_in_a_pickle_are_refused_unread(tmp_path: Path, tokenizer_dir: Path) -> None:
    save_model(tmp_path, tiny(vocab_size=400), tokenizer=tokenizer_dir)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch " + str(tmp_path / "owned").encode() + b"'\ntR.")
    with pytest.raises(InputError, match=r"pickle \(pytorch_model.bin\)"):
        load_model(tmp_path)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "mamba"}, "model_type 'mamba'"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "rope type 'yarn'"),
        ({"attention_bias": True}, "attention_bias"),
        ({"num_hidden_layers": 3}, "layers.2.input_layernorm.weight is missing"),
        ({"intermediate_size": 64}, r"down_proj.weight is \(32, 128\)"),
    ],
)
def test_what_would_be_computed_wrongly_is_refused(tmp_path: Path, tokenizer_dir: Path, change: dict, message: str) -> None:
    save_model(tmp_path, tiny(vocab_size=400), tokenizer=tokenizer_dir)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(InputError, match=message):
        load_model(tmp_path)


def test_cut_files_are_named(tmp_path: Path, tokenizer_dir: Path) -> None:
    save_model(tmp_path, tiny(vocab_size=400), tokenizer=tokenizer_dir)
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="not a whole safetensors file"):
        load_model(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match="not a tokenizer"):
        load_tokenizer(tmp_path)
