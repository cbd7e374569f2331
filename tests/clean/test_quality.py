"""The quality classifier and the perplexity model: they learn, measure themselves, cut by language, and give the same bytes."""

from __future__ import annotations

import itertools
import json
import random
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score

from llmpipe.clean import perplexity, quality
from llmpipe.clean.examples import sample_texts
from llmpipe.clean.perplexity import Perplexity, Table
from llmpipe.clean.quality import Quality, auc, bags_of
from llmpipe.clean.stage import Config
from llmpipe.config import load
from llmpipe.data.ids import doc_id
from llmpipe.data.manifest import read_manifest
from llmpipe.errors import InputError, UsageError
from llmpipe.text.block import Block
from tests.inprocess import run
from tests.killing import digests, kill_until_done
from tests.material import CHINESE, ENGLISH, write_docs_dir


def prose(seed: int, *, zh: bool, good: bool, sentences: int = 10) -> str:
    """Text in word order that has a pattern (good), or drawn word by word with words of its own now and then (bad)."""
    rng = random.Random(f"{seed} {zh} {good}")
    words, bait = (CHINESE, ["点击", "优惠", "下载"]) if zh else (ENGLISH, ["click", "offer", "download"])
    out = []
    for _ in range(sentences):
        if good:
            start = rng.randrange(len(words))
            chosen = [words[(start + i) % len(words)] for i in range(rng.randint(8, 14))]
        else:
            chosen = [rng.choice(bait if rng.random() < 0.1 else words) for _ in range(rng.randint(8, 14))]
        out.append(("" if zh else " ").join(chosen) + ("。" if zh else "."))
    return ("" if zh else " ").join(out)


def rows(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": t}, ensure_ascii=False) + "\n" for t in texts), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Examples of both classes, and a directory of documents that are half good, half bad, in two languages and eight shards."""
    root = tmp_path_factory.mktemp("quality")
    for name, good in (("good", True), ("bad", False)):
        rows(root / f"{name}.jsonl", [prose(i, zh=zh, good=good) for i in range(120) for zh in (False, True)])
    docs = []
    for i in range(240):
        zh, good = i % 2 == 1, i % 4 < 2
        docs.append({"id": doc_id(str(i)), "url": f"http://x.example/{'good' if good else 'bad'}/{i}", "text": prose(1000 + i, zh=zh, good=good)})
    write_docs_dir(root / "docs", docs, shards=8)
    return root


def sets(root: Path, *more: str) -> list[str]:
    return ["presets=[]", f"quality.positive={root}/good.jsonl", f"quality.negative={root}/bad.jsonl", *more]


def table(folder: Path) -> list[dict]:
    return [row for path in sorted(folder.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


# --- the classifier ------------------------------------------------------------------------------------------------


def test_learns_what_is_good_in_both_languages_and_says_how_well(material: Path, tmp_path: Path):
    run("clean", material / "docs", tmp_path / "out", *sets(material))
    report = json.loads((tmp_path / "out/models/quality.json").read_text("utf-8"))
    assert read_manifest(tmp_path / "out", kind="docs").info["models"]["quality"] == report
    assert report["positive"] == report["negative"] == 240 and report["held_out"]["examples"] > 20
    assert all(report[k]["accuracy"] > 0.95 and report[k]["auc"] > 0.98 for k in report if k.startswith("held_out"))
    kept, dropped = table(tmp_path / "out"), table(tmp_path / "out/dropped")
    right = sum("good" in r["url"] for r in kept) + sum("bad" in r["url"] for r in dropped)
    assert right >= 234 and {r["language"] for r in kept} == {"en", "zh"}
    assert {(d["rule"], d["threshold"]) for d in dropped} == {("quality.threshold", "0.5")} and all(float(d["value"]) < 0.5 for d in dropped)
    values = table(tmp_path / "out/values")
    assert len(values) == 240 and all(0 <= v["quality"] <= 1 for v in values)


def test_keeps_a_share_of_each_language(material: Path, tmp_path: Path):
    run("clean", material / "docs", tmp_path / "out", *sets(material, "quality.keep_share=0.25"))
    kept = table(tmp_path / "out")
    assert {lang: sum(r["language"] == lang for r in kept) for lang in ("en", "zh")} == {"en": 30, "zh": 30}
    assert all("good" in r["url"] for r in kept)


def test_a_trained_model_is_applied_elsewhere_and_is_part_of_the_recipe(material: Path, tmp_path: Path):
    run("clean", material / "docs", tmp_path / "a", *sets(material))
    run("clean", material / "docs", tmp_path / "b", "presets=[]", f"quality.model={tmp_path}/a")
    assert table(tmp_path / "a/values") == table(tmp_path / "b/values")
    assert read_manifest(tmp_path / "b", kind="docs").recipe["config"]["quality"]["model"].startswith("sha256:")
    shutil.copy(tmp_path / "a/models/quality.safetensors", tmp_path / "moved.safetensors")
    assert run("clean", material / "docs", tmp_path / "b", "presets=[]", f"quality.model={tmp_path}/moved.safetensors").state == "fresh"


def test_new_documents_meet_the_same_model_and_cutoff_though_the_examples_are_gone(material: Path, tmp_path: Path, make_docs):
    shutil.copytree(material, tmp_path / "m")
    m = tmp_path / "m"
    wanted = sets(m, "quality.keep_share=0.5")
    run("clean", m / "docs", tmp_path / "out", *wanted)
    before = (tmp_path / "out/models/quality.safetensors").read_bytes()
    make_docs(m / "docs", [{"id": doc_id(f"new {i}"), "text": prose(i, zh=i % 2 == 1, good=False)} for i in range(40)])
    assert run("clean", m / "docs", tmp_path / "out", *wanted).counts.dropped == {"quality.threshold": 40}
    assert (tmp_path / "out/models/quality.safetensors").read_bytes() == before


def test_same_bytes_for_one_and_two_workers_and_after_kills(material: Path, tmp_path: Path):
    command = ["clean", "--input", material / "docs", *[a for s in sets(material, "quality.keep_share=0.5", f"perplexity.reference={material}/good.jsonl") for a in ("--set", s)]]
    made = {}
    for name, workers, kills in (("one", 1, 0), ("two", 2, 0), ("killed", 1, 2)):
        assert kill_until_done([*command, "--output", tmp_path / name, "--workers", workers], tmp_path / name, kills=kills) == kills
        made[name] = digests(tmp_path / name)
    assert made["one"] == made["two"] == made["killed"] and "models/quality.safetensors" in made["one"]


def test_a_score_does_not_depend_on_the_rest_of_the_block(material: Path):
    config = Quality(positive=material / "good.jsonl", negative=material / "bad.jsonl")
    model, _ = quality.train(config)
    texts = [prose(7, zh=True, good=True), "", prose(8, zh=False, good=False), "点击 offer", "1"]
    together = quality.score(model, Block(texts))
    assert [quality.score(model, Block([t]))[0] for t in texts] == together.tolist()
    again, _ = quality.train(config)
    assert np.array_equal(again.weight, model.weight) and np.array_equal(again.buckets, model.buckets)


def test_features_are_words_and_pairs_and_in_chinese_three_characters():
    assert bags_of(Block(["the Cat, the cat"])).count.tolist().count(2) == 3  # the, cat, "the cat"
    assert len(bags_of(Block(["天地玄黄"])).count) == 4 + 3 + 2 and len(bags_of(Block(["a b c d"])).count) == 4 + 3
    assert len(bags_of(Block(["", "a", "b"])).count) == 2  # no pair across documents


def test_auc_is_that_of_scikit_learn_with_ties():
    rng = np.random.default_rng(0)
    labels, scores = rng.integers(0, 2, 500), rng.integers(0, 20, 500) / 20
    assert auc(scores, labels) == pytest.approx(roc_auc_score(labels, scores))


def test_too_few_examples_both_at_once_and_broken_models_are_said(material: Path, tmp_path: Path):
    few = rows(tmp_path / "few.jsonl", ["a text"])
    with pytest.raises(InputError, match="1 examples of its own, at least 20"):
        quality.train(Quality(positive=few, negative=material / "bad.jsonl"))
    with pytest.raises(InputError, match="0 examples of its own"):
        quality.train(Quality(positive=material / "bad.jsonl", negative=material / "bad.jsonl"))
    for given, words in (("quality.positive=x", "needs `positive` and `negative`"), ("quality={model: x, positive: y, negative: z}", "both `model` and examples"), ("perplexity={}", "either `reference`"), ("perplexity={reference: x, keep: [head, tail]}", "leaves out the middle")):
        with pytest.raises(UsageError, match=words):
            load(Config, stage="clean", sets=[given], environ={})
    (tmp_path / "x.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
    for module in (quality, perplexity):
        with pytest.raises(InputError, match="is not a"):
            module.load_model(str(tmp_path / "x.safetensors"))
    (tmp_path / "y.safetensors").write_bytes(b"no")
    with pytest.raises(InputError, match="cannot be read"):
        quality.load_model(str(tmp_path / "y.safetensors"))


def test_dry_run_trains_in_a_place_that_goes_again(material: Path, tmp_path: Path):
    plan = run("clean", material / "docs", tmp_path / "out", *sets(material), "sample=100", dry_run=True).plan
    assert 0.3 < plan["sample"]["rules"]["quality.threshold"]["any_fail"] < 0.7 and not (tmp_path / "out").exists()


# --- perplexity ----------------------------------------------------------------------------------------------------


def naive_log2(train: list[list[str]], test: list[str]) -> list[float]:
    """Interpolated Kneser-Ney of order 2 by the book, with dictionaries."""
    from collections import Counter, defaultdict

    pairs = Counter(p for words in train for p in itertools.pairwise(words))
    after, before = defaultdict(set), defaultdict(set)
    heads = Counter()
    for (a, b), n in pairs.items():
        after[a].add(b), before[b].add(a)
        heads[a] += n
    def rate(counts):
        once, twice = (sum(c == k for c in counts) for k in (1, 2))
        return min(max(once / max(once + 2 * twice, 1), 0.1), 0.95)

    d2, d1 = rate(pairs.values()), rate([len(s) for s in before.values()])
    total, size = sum(len(s) for s in before.values()), len(before)
    base = d1 * size / total / (size + 1)
    def p1(w):
        return base + ((len(before[w]) - d1) / total if w in before else 0)

    out = []
    for i, w in enumerate(test):
        p = p1(w)
        if i and test[i - 1] in heads:
            a = test[i - 1]
            p = p * d2 * len(after[a]) / heads[a] + (max(pairs[a, w] - d2, 0) / heads[a] if (a, w) in pairs else 0)
        out.append(float(np.log2(p)))
    return out


def test_probabilities_are_kneser_ney_by_the_book_and_sum_to_one():
    rng = random.Random(3)
    train = [[rng.choice("abcdefgh") * rng.randint(1, 2) for _ in range(40)] for _ in range(40)]
    model, _ = perplexity.train([" ".join(words) for words in train], order=2, max_ngrams=10**6)
    test = ["aa", "b", "zz", "c", "dd", "a", "h"]
    got = model.log2(*perplexity.tokens_of(Block([" ".join(test)])))
    assert got == pytest.approx(naive_log2(train, test), rel=1e-5)
    vocabulary = sorted({w for words in train for w in words})
    for order, cut in ((2, 10**6), (3, 10**6), (3, 60)):
        model, _ = perplexity.train([" ".join(words) for words in train], order=order, max_ngrams=cut)
        for context in ("a b", "zz", "hh a"):
            block = Block([f"{context} {w}" for w in [*vocabulary, "unseen"]])
            hashes, docs = perplexity.tokens_of(block)
            last = model.log2(hashes, docs)[np.append(np.diff(docs) > 0, True)]
            known = len(model.grams[0].keys)
            missing = len(vocabulary) - known  # pruned words are as good as unseen ones, which all share one part
            assert np.exp2(last).sum() - missing * np.exp2(last[-1]) == pytest.approx(1, abs=1e-5), (order, cut, context)


def test_word_order_counts_and_the_same_holds_in_chinese():
    texts = [prose(i, zh=zh, good=True) for i in range(60) for zh in (False, True)]
    model, _ = perplexity.train(texts, order=3, max_ngrams=10**6)
    for zh in (False, True):
        good, bad = (2 ** model.bits_per_token(Block([prose(900 + i, zh=zh, good=good) for i in range(20)])) for good in (True, False))
        assert good.max() * 3 < bad.min(), zh
    assert np.isnan(model.bits_per_token(Block(["", "。", "a"]))).tolist() == [True, True, False]


def test_look_up_finds_all_and_nothing_else():
    rng = np.random.default_rng(1)
    keys = np.unique(rng.integers(0, 2**63, 5000, dtype=np.uint64) * np.uint64(2))
    found = Table(keys)
    assert (found.find(keys) == np.arange(len(keys))).all()
    assert (found.find(keys + np.uint64(1)) == -1).all() and len(found.find(keys[:0])) == 0
    assert Table(keys[:0]).find(keys[:3]).tolist() == [-1, -1, -1]


def test_parts_are_cut_within_each_language_and_thresholds_are_absolute(material: Path, tmp_path: Path):
    reference = f"perplexity.reference={material}/good.jsonl"
    run("clean", material / "docs", tmp_path / "parts", "presets=[]", reference, "perplexity.keep=[head]", "perplexity.head=0.25")
    kept = table(tmp_path / "parts")
    assert {lang: sum(r["language"] == lang for r in kept) for lang in ("en", "zh")} == {"en": 30, "zh": 30}
    assert all("good" in r["url"] for r in kept)
    assert {d["rule"] for d in table(tmp_path / "parts/dropped")} == {"perplexity.max"}
    run("clean", material / "docs", tmp_path / "middle", "presets=[]", reference, "perplexity.keep=[middle]", "perplexity.head=0.25", "perplexity.middle=0.25")
    assert len(table(tmp_path / "middle")) == 60 and {d["rule"] for d in table(tmp_path / "middle/dropped")} == {"perplexity.max", "perplexity.min"}
    run("clean", material / "docs", tmp_path / "fixed", "presets=[]", f"perplexity={{model: '{tmp_path}/parts', max: 8}}")
    values = {v["id"]: v["perplexity"] for v in table(tmp_path / "fixed/values")}
    assert {d["id"] for d in table(tmp_path / "fixed/dropped")} == {i for i, p in values.items() if p > 8} and all("good" in r["url"] for r in table(tmp_path / "fixed"))


def test_text_comes_from_documents_rows_and_text_files(material: Path, tmp_path: Path):
    (tmp_path / "t").mkdir()
    (tmp_path / "t/a.txt").write_text("One paragraph.\n\n" + "长" * 9000 + "\n\n末段", encoding="utf-8")
    rows(tmp_path / "t/b.jsonl", ["row one", "第二行", "row one"])
    assert sorted(map(len, sample_texts(tmp_path / "t", max_texts=99, max_chars=10**6))) == [3, 7, 14, 1004, 4000]
    assert len(sample_texts(material / "docs", max_texts=10**6, max_chars=10**9)) == 240
    few = sample_texts(material / "docs", max_texts=5, max_chars=10**9)
    assert few == sample_texts(material / "docs", max_texts=99, max_chars=10**9)[:5] and len(few) == 5
    with pytest.raises(InputError, match="no such file"):
        sample_texts(tmp_path / "nowhere", max_texts=1, max_chars=1)


def test_settings_that_contradict_each_other():
    with pytest.raises(ValueError, match="leave no tail"):
        Perplexity(reference=Path("x"), head=0.6, middle=0.5)
