"""Finetuning learns, keeps the best, counts what it drops, and gives a directory that transformers loads."""

from __future__ import annotations

import json
import math
import random

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from llmpipe.data.files import sha256_file
from llmpipe.data.manifest import read_manifest
from llmpipe.errors import InputError, UsageError
from llmpipe.finetune.label_rule import LabelRule
from llmpipe.finetune.stage import Config, LoRA
from llmpipe.models.heads import load_classifier
from llmpipe.models.hf import load_model
from llmpipe.models.lora import load_adapter
from llmpipe.stage import STAGES, Options, Request, run_stage
from tests.material import CHINESE, ENGLISH, write_docs_dir
from tests.tiny import make_model

SMALL = {"device": "cpu", "dtype": "fp32", "threads": 1, "lr": 3e-3}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("base"))


def labelled(count: int, seed: int = 0) -> list[dict]:
    """Rows whose label is told by words of their own, half English, half Chinese."""
    rng = random.Random(seed)
    rows = []
    for i in range(count):
        label = ("好评", "差评")[i % 2]
        words = rng.choices(CHINESE if i % 4 < 2 else ENGLISH, k=rng.randint(3, 12))
        words.insert(0, {"好评": ("喜欢", "read"), "差评": ("风雨", "wind")}[label][i % 4 >= 2])
        rng.shuffle(words)
        rows.append({"text": ("" if i % 4 < 2 else " ").join(words) + f" {i}", "label": label})
    return rows


def write_rows(path, rows):
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")
    return path


def finetune(base, source, output, **config):
    return run_stage(STAGES["finetune"], Config(**{**SMALL, **config}), Request(model=base, inputs=(source,), output=output), Options(workers=1))


@pytest.fixture(scope="module")
def tuned(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tuned")
    source = write_rows(folder / "rows.jsonl", labelled(240))
    finetune(base, source, folder / "out", epochs=4)
    return folder / "out"


def test_learns_and_keeps_the_best_of_its_evaluations(tuned):
    manifest = read_manifest(tuned, kind="model")
    lines = [json.loads(line) for line in (tuned / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    evaluated = {line["step"]: line["val_macro_f1"] for line in lines if "val_macro_f1" in line}
    assert manifest.info["valid_macro_f1"] == max(evaluated.values()) == evaluated[manifest.info["best_step"]]
    assert manifest.info["valid_macro_f1"] > 0.8
    assert {"step", "loss", "lr", "grad_norm", "tokens_per_s"} <= set(lines[0])
    assert [p.relative_to(tuned).as_posix() for p in tuned.rglob("model.safetensors")] == ["model.safetensors"]


def test_transformers_loads_it_and_gives_the_same_logits(tuned):
    ours, labels = load_classifier(tuned)
    theirs = AutoModelForSequenceClassification.from_pretrained(tuned).eval()
    tokenizer = AutoTokenizer.from_pretrained(tuned)
    texts = ["河水流过安静的小镇，我喜欢 😀", "the wind", "混排 mixed 文本 with read"]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    assert theirs.config.id2label == dict(enumerate(labels)) == {0: "好评", 1: "差评"}
    with torch.no_grad():
        got = ours(batch.input_ids, batch.attention_mask.sum(1))
        wanted = theirs(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    assert (got - wanted).abs().max() <= 1e-4


def test_parts_share_no_text_and_the_test_part_does_not_depend_on_seed(base, tuned, tmp_path):
    parts = {n: {r["text"] for r in pq.read_table(tuned / "splits" / f"{n}.parquet").to_pylist()} for n in ("train", "valid", "test")}
    assert sum(map(len, parts.values())) == 240
    assert not parts["train"] & parts["valid"] and not parts["train"] & parts["test"]
    source = write_rows(tmp_path / "rows.jsonl", labelled(240)[::-1])
    finetune(base, source, tmp_path / "out", epochs=0.1, seed=5)
    assert {r["text"] for r in pq.read_table(tmp_path / "out" / "splits" / "test.parquet").to_pylist()} == parts["test"]


def test_lora_saves_peft_files_and_a_merged_model_that_agree(base, tmp_path):
    source = write_rows(tmp_path / "rows.jsonl", labelled(80))
    finetune(base, source, tmp_path / "out", epochs=1, lora=LoRA(rank=4))
    out = tmp_path / "out"
    manifest = read_manifest(out, kind="model")
    assert manifest.info["merge_max_difference"] < 1e-4
    assert {"adapter/adapter_config.json", "adapter/adapter_model.safetensors", "model.safetensors"} <= {s.name for s in manifest.shards}
    settings = json.loads((out / "adapter" / "adapter_config.json").read_text())
    assert (settings["peft_type"], settings["r"], settings["lora_alpha"]) == ("LORA", 4, 8)
    merged, labels = load_classifier(out)
    body, shape = load_model(base)
    beside = type(merged)(shape, num_labels=len(labels))
    beside.load_body(body)
    load_adapter(out / "adapter", beside, base_digest=sha256_file(base / "model.safetensors")).eval()
    ids, lengths = torch.randint(3, 200, (4, 12)), torch.tensor([12, 7, 3, 1])
    with torch.no_grad():
        assert (merged(ids, lengths) - beside(ids, lengths)).abs().max() < 1e-4
    assert not torch.equal(merged.model.layers[0].self_attn.q_proj.weight, body.model.layers[0].self_attn.q_proj.weight)
    with pytest.raises(InputError, match="trained on another base"):
        load_adapter(out / "adapter", type(merged)(shape, num_labels=2), base_digest="0" * 64)


def test_rows_without_text_or_label_are_counted_and_many_of_them_are_an_error(base, tmp_path):
    rows = labelled(60)
    source = write_rows(tmp_path / "a.jsonl", [*rows, {"text": " ", "label": "好评"}, {"text": "ok", "label": None}])
    outcome = finetune(base, source, tmp_path / "a", epochs=0.2)
    assert (outcome.counts.dropped, outcome.counts.read, outcome.counts.kept) == ({"no_text": 1, "no_label": 1}, 62, 60)
    many = write_rows(tmp_path / "b.jsonl", [*rows, *({"text": "x", "label": ""} for _ in range(9))])
    with pytest.raises(InputError, match="9 of 69 rows cannot be used"):
        finetune(base, many, tmp_path / "b")
    with pytest.raises(InputError, match="no column label"):
        finetune(base, write_rows(tmp_path / "c.jsonl", [{"text": "a", "lable": "b"}]), tmp_path / "c")
    with pytest.raises(InputError, match="at least two labels"):
        finetune(base, write_rows(tmp_path / "d.jsonl", [{**r, "label": 1} for r in rows]), tmp_path / "d")


def test_valid_file_that_repeats_train_is_reported_and_unknown_labels_are_dropped(base, tmp_path):
    rows = labelled(60)
    valid = write_rows(tmp_path / "valid.jsonl", [*rows[:5], {"text": "neu 新", "label": "other"}, *labelled(20, seed=9)])
    outcome = finetune(base, write_rows(tmp_path / "a.jsonl", rows), tmp_path / "a", epochs=0.2, valid=valid)
    assert outcome.manifest.info["valid_overlap"] == 5
    assert (outcome.counts.dropped, outcome.counts.kept, outcome.manifest.info["valid_unknown_label"]) == ({}, 60, 1)
    assert outcome.manifest.info["train_rows"] == 60 and "test_rows" in outcome.manifest.info
    assert not (tmp_path / "a" / "splits" / "test.parquet").exists()


def test_several_seeds_report_mean_and_deviation(base, tmp_path):
    outcome = finetune(base, write_rows(tmp_path / "a.jsonl", labelled(60)), tmp_path / "a", epochs=1, seeds=2)
    info = outcome.manifest.info
    values = list(info["seeds"].values())
    assert len(values) == 2
    assert info["valid_macro_f1"] == max(values) and info["valid_macro_f1_mean"] == pytest.approx(np.mean(values))
    assert math.isfinite(info["valid_macro_f1_sd"])


def test_documents_are_labelled_by_a_rule_and_split_by_document(base, tmp_path):
    rows = []
    for part, words in (("asyncio", "event loop coroutine await task"), ("email", "邮件 头部 header mime 编码"), ("rare", "x")):
        for i in range(2 if part == "rare" else 20):
            text = "\n".join(f"{w} {i} {k} {part[0]}。" * 3 for k in range(6) for w in words.split())
            url = f"http://pydoc.invalid/{part}.m{i}.html"
            rows.append({"id": f"{len(rows):032x}", "url": url, "text": text, "language": "en", "source": "pydoc"})
    docs = write_docs_dir(tmp_path / "docs", rows)
    rule = LabelRule(pattern=r"invalid/(\w+)\.", min_documents=8, passage_chars=100, max_passages=4)
    outcome = finetune(base, docs, tmp_path / "out", epochs=0.2, label_from=rule)
    assert outcome.manifest.info["labels"] == ["asyncio", "email"]
    assert outcome.counts.extra["label_from.rare_label"] == 2
    assert outcome.counts.read == outcome.counts.kept + sum(outcome.counts.dropped.values())
    groups = [{r["group"] for r in pq.read_table(tmp_path / "out" / "splits" / f"{n}.parquet").to_pylist()} for n in ("train", "valid", "test")]
    assert not (groups[0] & groups[1] or groups[0] & groups[2])
    with pytest.raises(UsageError, match="have no labels"):
        finetune(base, docs, tmp_path / "no")
    with pytest.raises(InputError, match="found no label"):
        finetune(base, docs, tmp_path / "no", label_from=LabelRule(pattern="(nothing)"))


def test_texts_and_pairs_are_read_up_to_the_length(base, tmp_path):
    rows = [{"text": f"前提 premise {i} " * (i + 1), "text_pair": f"假设 {i}", "label": i % 3} for i in range(90)]
    outcome = finetune(base, write_rows(tmp_path / "a.jsonl", rows), tmp_path / "a", epochs=0.2, max_length=32)
    assert outcome.manifest.info["labels"] == ["0", "1", "2"]
    assert outcome.manifest.info["truncated"] > 0
