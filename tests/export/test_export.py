"""What is exported loads in transformers, gives the same ids and logits, and says where it comes from."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from llmpipe.data.manifest import read_manifest
from llmpipe.evaluate.stage import Config as Evaluate
from llmpipe.export.stage import Config
from llmpipe.finetune.label_rule import LabelRule
from llmpipe.finetune.stage import Config as Finetune
from llmpipe.models.heads import load_classifier
from llmpipe.models.hf import load_model
from llmpipe.stage import STAGES, Options, Request, run_stage
from llmpipe.tokenizer.directory import load_tokenizer
from tests.finetune.test_classify import SMALL, labelled, write_rows
from tests.material import bilingual_rows, write_docs_dir
from tests.tiny import make_model

FILES = {"chat_template.jinja", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "README.md"}
TEXT = "床前明月光 😀 the quick 👩‍👩‍👧‍👦 fox\n\n  疑是地上霜。"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("base"), max_seq_len=128)


def export(model, output, **config):
    return run_stage(STAGES["export"], Config(**config), Request(model=model, output=output), Options(workers=1)).manifest


@pytest.mark.parametrize("shape", [{}, {"qk_norm": False, "tie_embeddings": False}], ids=["qwen3-tied", "llama-untied"])
def test_transformers_gives_the_same_ids_and_logits(tmp_path, shape):
    model = make_model(tmp_path / "model", max_seq_len=128, **shape)
    manifest = export(model, tmp_path / "out")
    assert {s.name for s in manifest.shards} >= FILES
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    ids = load_tokenizer(model).encode(TEXT).ids
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer(TEXT).input_ids == ids
    assert tokenizer.decode(ids) == TEXT
    batch = torch.tensor([ids])
    with torch.no_grad():
        assert (theirs(batch).logits - load_model(model)[0](batch)).abs().max() <= 1e-4
    assert tokenizer.pad_token_id != tokenizer.eos_token_id


def test_classifier_is_exported_with_its_labels_and_card(base, tmp_path):
    source = write_rows(tmp_path / "rows.jsonl", labelled(80))
    run_stage(STAGES["finetune"], Finetune(**SMALL, epochs=0.5), Request(model=base, inputs=(source,), output=tmp_path / "tuned"), Options(workers=1))
    run_stage(STAGES["eval"], Evaluate(draws=50), Request(model=tmp_path / "tuned", output=tmp_path / "scores"), Options(workers=1))
    export(tmp_path / "tuned", tmp_path / "out", name="评论 reviews", license="apache-2.0")
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    batch = AutoTokenizer.from_pretrained(tmp_path / "out")([TEXT, "好"], padding=True, return_tensors="pt")
    with torch.no_grad():
        ours = load_classifier(tmp_path / "tuned")[0](batch.input_ids, batch.attention_mask.sum(1))
        assert (theirs(**{k: batch[k] for k in ("input_ids", "attention_mask")}).logits - ours).abs().max() <= 1e-4
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    results = json.loads((tmp_path / "scores" / "results.json").read_text(encoding="utf-8"))["results"]
    f1 = next(r["value"] for r in results if r["metric"] == "macro_f1" and r["system"] == "model")
    assert "# 评论 reviews" in card and "license: apache-2.0" in card and "text-classification" in card
    assert f"{f1:.4f}" in card and "linear_ngrams" in card
    assert str(tmp_path) not in card


def test_card_counts_sources_and_licences_of_the_very_documents_that_were_read(base, tmp_path):
    rows = [{**r, "license": ("CC-BY-4.0", None)[i % 2], "source": f"源{i % 2}"} for i, r in enumerate(bilingual_rows(40))]
    docs = write_docs_dir(tmp_path / "docs", rows)
    write_docs_dir(tmp_path / "stranger", bilingual_rows(4, start=90))
    rule = LabelRule(pattern=r"/(en|zh)/", passage_chars=200)
    run_stage(STAGES["finetune"], Finetune(**SMALL, epochs=0.2, label_from=rule), Request(model=base, inputs=(docs,), output=tmp_path / "tuned"), Options(workers=1))
    export(tmp_path / "tuned", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "40 documents" in card and "ingest -> finetune" in card
    assert "CC-BY-4.0 20, unknown 20" in card and "源0 20, 源1 20" in card and "- en\n- zh" in card


def test_weights_can_be_stored_smaller(base, tmp_path):
    manifest = export(base, tmp_path / "out", dtype="bfloat16")
    assert 0 < manifest.info["max_difference"] < 0.5
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    assert next(AutoModelForCausalLM.from_pretrained(tmp_path / "out").parameters()).dtype == torch.bfloat16


def test_a_model_without_a_manifest_says_that_its_data_are_unknown(base, tmp_path):
    export(base, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "Unknown: the directories" in card and "license: unknown" in card
    assert read_manifest(tmp_path / "out", kind="model").info["parameters"] > 0
