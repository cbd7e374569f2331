"""Eval writes rows with stable keys, scores the right part, puts baselines on the same data, and reports compare in pairs."""

from __future__ import annotations

import json
import lzma
import math

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import f1_score

from llmpipe.errors import InputError, UsageError
from llmpipe.evaluate.compare import compare_reports
from llmpipe.evaluate.runs import ROW
from llmpipe.evaluate.stage import Config
from llmpipe.finetune.stage import Config as Finetune
from llmpipe.stage import STAGES, Options, Request, run_stage
from tests.finetune.test_classify import SMALL, labelled, write_rows
from tests.material import bilingual_rows, write_docs_dir
from tests.tiny import make_model


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def tuned(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tuned")
    request = Request(model=base, inputs=(write_rows(folder / "rows.jsonl", labelled(240)),), output=folder / "out")
    run_stage(STAGES["finetune"], Finetune(**SMALL, epochs=2), request, Options(workers=1))
    return folder / "out"


def score(model, output, *inputs, **config):
    run_stage(STAGES["eval"], Config(**{"device": "cpu", "draws": 200, **config}), Request(model=model, inputs=inputs, output=output), Options(workers=1))
    return json.loads((output / "results.json").read_text(encoding="utf-8"))


def find(report, metric, system="model", **where):
    wanted = {"class": None, "language": None, "source": None, **where}
    rows = [r for r in report["results"] if r["metric"] == metric and r["system"] == system and all(r[k] == v for k, v in wanted.items())]
    assert len(rows) == 1, rows
    return rows[0]


def test_language_model_is_scored_beside_compressors_per_language(base, tmp_path):
    rows = bilingual_rows(8)
    report = score(base, tmp_path / "out", write_docs_dir(tmp_path / "docs", rows))
    assert {tuple(r) for r in report["results"]} == {tuple(sorted(ROW))}
    data = "".join(r["text"] for r in rows).encode()
    assert find(report, "bits_per_byte", "xz")["value"] == 8 * len(lzma.compress(data, preset=9)) / len(data)
    assert find(report, "bits_per_byte", "uniform")["value"] == 8.0
    whole = find(report, "bits_per_byte")
    assert whole["num_bytes"] == len(data) and whole["n"] == 8
    assert whole["ci95"][0] < whole["value"] < whole["ci95"][1]
    assert (whole["window"], whole["stride"], whole["bos"]) == (64, 32, "<|endoftext|>")
    parts = [find(report, "bits_per_byte", language=g) for g in ("en", "zh")]
    assert math.isclose(sum(p["value"] * p["num_bytes"] for p in parts), whole["value"] * whole["num_bytes"])
    samples = pq.read_table(tmp_path / "out" / "samples" / "language.parquet").to_pydict()
    assert sum(samples["nats"]) / math.log(2) / sum(samples["num_bytes"]) == pytest.approx(whole["value"])


def test_rows_documents_and_tokens_of_the_same_text_give_the_same_score(base, tmp_path):
    docs = write_docs_dir(tmp_path / "docs", bilingual_rows(12))
    run_stage(STAGES["tokenize"], STAGES["tokenize"].load().Config(valid_fraction=0.4), Request(inputs=(docs,), tokenizer=_tokenizer_dir(base, tmp_path), output=tmp_path / "tokens"), Options(workers=1))
    tokens = score(base, tmp_path / "a", tmp_path / "tokens")
    held_out = set(pq.read_table(tmp_path / "a" / "samples" / "language.parquet")["id"].to_pylist())
    assert 0 < len(held_out) < 12
    rows = write_rows(tmp_path / "rows.jsonl", [{"text": r["text"], "language": r["language"]} for r in bilingual_rows(12) if r["id"] in held_out])
    from_rows = score(base, tmp_path / "b", rows)
    for system in ("model", "xz", "zstd"):
        assert find(tokens, "bits_per_byte", system)["num_bytes"] == find(from_rows, "bits_per_byte", system)["num_bytes"]
    assert find(tokens, "bits_per_byte")["value"] == pytest.approx(find(from_rows, "bits_per_byte")["value"], rel=1e-6)


def _tokenizer_dir(base, tmp_path):
    """The tokenizer of the tiny model as a directory with a manifest, as the tokenizer stage would leave it."""
    from llmpipe.data.files import sha256_file
    from llmpipe.data.manifest import Generation, Manifest, Shard, write_manifest

    out = tmp_path / "tokenizer"
    out.mkdir()
    shards = []
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (out / name).write_bytes((base / name).read_bytes())
        shards.append(Shard(name=name, rows=0, bytes=(out / name).stat().st_size, sha256=sha256_file(out / name)))
    info = {"vocab_size": 400, "eos_id": 0}
    write_manifest(out, Manifest(stage="tokenizer", kind="tokenizer", recipe={}, fingerprint="t", generations=[Generation(number=0, counts={}, made={})], shards=shards, info=info))
    return out


def test_classifier_is_scored_on_its_own_test_split_beside_baselines(tuned, tmp_path):
    report = score(tuned, tmp_path / "out")
    samples = pq.read_table(tmp_path / "out" / "samples" / "classify.parquet").to_pydict()
    test = pq.read_table(tuned / "splits" / "test.parquet").to_pydict()
    assert samples["text"] == test["text"]
    for system, column in (("model", "predicted"), ("majority", "majority"), ("linear_ngrams", "linear_ngrams")):
        assert find(report, "macro_f1", system)["value"] == pytest.approx(f1_score(test["label"], samples[column], average="macro"))
    assert find(report, "accuracy", "majority")["value"] < find(report, "accuracy", "linear_ngrams")["value"]
    assert find(report, "accuracy")["split"] == "test"
    assert find(report, "f1", **{"class": "好评"})["n"] == test["label"].count("好评")
    assert np.array(report["tasks"]["classify"]["confusion"]).sum() == len(test["label"])
    assert 0 <= find(report, "ece")["value"] <= 1


def test_same_run_gives_the_same_bytes_and_another_set_another_task_hash(tuned, tmp_path):
    a = score(tuned, tmp_path / "a", write_rows(tmp_path / "x.jsonl", labelled(40, seed=3)))
    b = score(tuned, tmp_path / "b", write_rows(tmp_path / "y.jsonl", labelled(40, seed=3)))
    c = score(tuned, tmp_path / "c", write_rows(tmp_path / "z.jsonl", labelled(41, seed=3)))
    assert (tmp_path / "a" / "results.json").read_bytes() == (tmp_path / "b" / "results.json").read_bytes()
    assert a["results"][0]["task_hash"] == b["results"][0]["task_hash"] != c["results"][0]["task_hash"]
    assert a["results"][0]["model_hash"] == c["results"][0]["model_hash"]


def test_unknown_labels_are_dropped_and_counted(tuned, tmp_path):
    source = write_rows(tmp_path / "x.jsonl", [*labelled(30, seed=4), {"text": "中性 neutral", "label": "other"}])
    score(tuned, tmp_path / "out", source)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["generations"][0]["counts"]["dropped"] == {"unknown_label": 1}
    with pytest.raises(InputError, match="none of 1 rows has a label that the model knows"):
        score(tuned, tmp_path / "no", write_rows(tmp_path / "y.jsonl", [{"text": "a", "label": "b"}]))


def test_what_does_not_fit_is_said(base, tuned, tmp_path):
    with pytest.raises(UsageError, match="needs an --input"):
        score(base, tmp_path / "a")
    with pytest.raises(UsageError, match="tasks: 'classfy' is unknown; did you mean classify"):
        score(base, tmp_path / "b", tasks=["classfy"])
    with pytest.raises(UsageError, match="language does not fit"):
        score(tuned, tmp_path / "c", tasks=["language"])
    with pytest.raises(ValueError, match="tokens would be left out"):
        Config(window=8, stride=9)


def test_comparison_is_paired(base, tuned, tmp_path):
    source = write_rows(tmp_path / "x.jsonl", labelled(60, seed=5))
    score(tuned, tmp_path / "a", source)
    same = compare_reports(tmp_path / "a", tmp_path / "a")
    assert all(r["difference"] == 0 and r["ci95"] == [0, 0] for r in same["results"])
    docs = write_docs_dir(tmp_path / "docs", bilingual_rows(10))
    first, second = score(base, tmp_path / "l1", docs), score(make_model(tmp_path / "other", seed=1), tmp_path / "l2", docs)
    row = compare_reports(tmp_path / "l1", tmp_path / "l2")["results"][0]
    assert (row["metric"], row["n"]) == ("bits_per_byte", 10)
    assert row["difference"] == pytest.approx(find(second, "bits_per_byte")["value"] - find(first, "bits_per_byte")["value"])
    alone = find(first, "bits_per_byte")["ci95"]
    assert row["ci95"][1] - row["ci95"][0] < 2 * (alone[1] - alone[0])
    with pytest.raises(InputError, match="no task in common"):
        compare_reports(tmp_path / "a", tmp_path / "l1")
