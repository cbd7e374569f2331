"""Augmented copies change what they say they change, keep labels, tags and answers, and no evaluation ever sees one."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from llmpipe.augment.dictionary import read_dictionary
from llmpipe.augment.edit import Editor
from llmpipe.augment.stage import Config
from llmpipe.config import load
from llmpipe.data.docs import meta_value, read_docs
from llmpipe.data.ids import doc_id
from llmpipe.data.manifest import read_manifest
from llmpipe.data.rows import is_augmented, read_rows, split_rows, text_key, without_copies_of
from llmpipe.data.tokens import TokensDir
from llmpipe.errors import InputError, UsageError
from tests.inprocess import run
from tests.killing import digests, kill_until_done
from tests.material import bilingual_rows, chinese, english, write_docs_dir

SYNONYMS = {"quiet": ("calm", "still"), "river": ("stream",), "old": ("ancient",), "安静": ("宁静", "寂静"), "小镇": ("镇子",), "喜欢": ("喜爱",), "喜": ("乐",)}
EN, ZH = "The quiet river, No. 12, runs past an old town.", "安静的小镇，我们都喜欢这个地方，第12号。"


def editor(*operations: str, alpha: float = 0.2, num_copies: int = 8) -> Editor:
    return Editor(SYNONYMS, operations, alpha=alpha, num_copies=num_copies, seed=1)


def copies(text: str, *operations: str, **settings: float) -> list[str]:
    return [copy for _, copy in editor(*operations, **settings).copies(text, "id", Counter())]


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")
    return path


def dictionary(folder: Path) -> Path:
    (folder / "syn.json").write_text(json.dumps({k: list(v) for k, v in SYNONYMS.items()}, ensure_ascii=False), encoding="utf-8")
    return folder / "syn.json"


@pytest.mark.parametrize("path", sorted(Path(__file__).parents[2].glob("configs/augment/*.yaml")), ids=lambda p: p.stem)
def test_shipped_configs_load(path: Path):
    assert load(Config, stage="augment", file=path, environ={}).chosen


# --- the operations ------------------------------------------------------------------------------------------------


def test_cutting_loses_nothing_and_takes_the_longest_chinese_word():
    for text in (EN, ZH, "", " a\n\tb ", "x_1 4th don't 3.14 https://a.b/c?d=e é 喜欢喜", "混排 mixed 文本"):
        assert "".join(editor("swap").cut(text)) == text
    assert editor("swap").cut("喜欢喜安静")[:3] == ["喜欢", "喜", "安静"]


def test_each_operation_does_what_it_says_in_both_languages():
    assert set(copies("The quiet river", "synonym", alpha=0.3)) <= {"The calm river", "The still river", "The quiet stream"}
    assert set(copies("Old books", "synonym")) == {"Ancient books"}
    assert set(copies("安静的小镇", "synonym")) <= {"宁静的小镇", "寂静的小镇", "安静的镇子"}
    for text in (EN, ZH):
        for swapped in copies(text, "swap"):
            assert swapped != text and sorted(swapped) == sorted(text)
        for shorter in copies(text, "delete"):
            assert len(shorter) < len(text) and "  " not in shorter and "12" in shorter
        for longer in copies(text, "insert"):
            assert len(longer) > len(text) and any(s in longer for known in SYNONYMS.values() for s in known)
    assert copies("one two. three", "delete", alpha=0.3)[0] in ("two. three", "one. three", "one two.")


def test_numbers_and_marks_stay_and_nothing_comes_of_nothing():
    assert all("No. 12" not in c or "12" in c for c in copies(EN, "swap", "delete"))
    for text in ("", "12 + 3", "word", "。", "词"):
        assert copies(text, "swap", "delete") == []
    assert copies("no such words", "synonym", "insert") == []


def test_copies_differ_from_their_source_and_from_each_other():
    for text in (EN, ZH):
        made = copies(text, "synonym", "swap", "insert", "delete", num_copies=16)
        assert len(made) > 10 and len({text, *made}) == len(made) + 1


def test_a_copy_depends_on_seed_id_and_number_alone():
    assert editor("swap").copies(EN, "a", Counter()) == editor("swap").copies(EN, "a", Counter()) != editor("swap").copies(EN, "b", Counter())
    assert editor("swap", num_copies=2).copies(ZH, "a", Counter()) == editor("swap", num_copies=8).copies(ZH, "a", Counter())[:2]


def test_dictionaries_of_three_forms_and_broken_ones(tmp_path: Path):
    (tmp_path / "a.tsv").write_text("# mine\nQuick\tfast\trapid, quick\n安静\t宁静、寂静\n", encoding="utf-8")
    assert read_dictionary(tmp_path / "a.tsv") == {"quick": ("fast", "rapid"), "安静": ("宁静", "寂静")}
    (tmp_path / "cilin.txt").write_text("Aa01A01= 人 士 人物\nAa01A02# 人类 生人\nAa01A03@ 全人类\n", encoding="utf-8")
    assert read_dictionary(tmp_path / "cilin.txt") == {"人": ("士", "人物"), "士": ("人", "人物"), "人物": ("人", "士")}
    (tmp_path / "g.json").write_text('[["a", "b"], ["c"]]', encoding="utf-8")
    assert read_dictionary(tmp_path / "g.json") == {"a": ("b",), "b": ("a",)}
    for content, words in (("no tab", "line 1 has no tab"), ('{"a": 1}', "no list of words"), ('{"a"', "not valid JSON")):
        (tmp_path / "x").write_text(content, encoding="utf-8")
        with pytest.raises(InputError, match=words):
            read_dictionary(tmp_path / "x")


# --- rows ----------------------------------------------------------------------------------------------------------


def test_rows_keep_their_labels_and_columns_and_are_marked(tmp_path: Path):
    rows = [{"text": EN, "label": "calm", "n": 1}, {"text": ZH, "label": "好", "n": None}, {"text": "42", "label": "x", "n": 3}]
    outcome = run("augment", write(tmp_path / "rows.jsonl", rows), tmp_path / "out", f"dictionary={dictionary(tmp_path)}", "num_copies=4")
    made = read_rows(tmp_path / "out")
    assert [r for r in made if not r["augmented"]] == [{**r, "augmented": False} for r in rows]
    for source in rows[:2]:
        own = [r for r in made if r.get("augmented_from") == text_key(source)]
        assert len(own) == 4 and all((r["label"], r["n"], r["augmented"]) == (source["label"], source["n"], True) and r["text"] != source["text"] for r in own)
    assert outcome.counts.extra["augmented"] == 8 and outcome.counts.extra["unchanged"] == 1
    assert read_manifest(tmp_path / "out", kind="rows").counts()["read"] == 3
    again = run("augment", tmp_path / "out", tmp_path / "twice", "num_copies=1")
    assert again.counts.extra["augmented"] == 2 and Counter(map(is_augmented, read_rows(tmp_path / "twice"))) == {True: 10, False: 3}


def test_tags_stay_with_their_words_and_entities_stay_whole(tmp_path: Path):
    rows = [
        {"tokens": ["The", "quiet", "New", "York", "river", "is", "old", "."], "tags": ["O", "O", "B-LOC", "I-LOC", "O", "O", "O", "O"]},
        {"tokens": ["王", "小", "明", "喜欢", "安静", "的", "北", "京"], "tags": ["B-PER", "I-PER", "I-PER", "O", "O", "O", "B-LOC", "I-LOC"]},
        {"tokens": ["Bob", "Smith"], "tags": ["B-PER", "I-PER"]},
    ]
    run("augment", write(tmp_path / "rows.jsonl", rows), tmp_path / "out", f"dictionary={dictionary(tmp_path)}", "num_copies=12", "alpha=0.4")
    made = [r for r in read_rows(tmp_path / "out") if r["augmented"]]
    assert len(made) > 16

    def entities(row: dict) -> list[tuple[str, ...]]:
        found: list[list[str]] = []
        for token, tag in zip(row["tokens"], row["tags"], strict=True):
            if tag.startswith("B-"):
                found.append([token])
            elif tag.startswith("I-"):
                found[-1].append(token)
        return list(map(tuple, found))

    for row in made:
        source = next(r for r in rows if text_key(r) == row["augmented_from"])
        assert entities(row) == entities(source) and row["tokens"] != source["tokens"] and all(row["tokens"])
    assert len({len(r["tokens"]) for r in made}) > 2
    numbers = write(tmp_path / "n.jsonl", [{"tokens": ["old", "York", "river"], "tags": [0, 3, 0]}])
    run("augment", numbers, tmp_path / "n", "outside=0", "operations=[swap]", "num_copies=1")
    assert read_rows(tmp_path / "n")[1]["tokens"] == ["river", "York", "old"] and read_rows(tmp_path / "n")[1]["tags"] == [0, 3, 0]


def test_answers_keep_their_place_and_rows_that_a_change_would_break_are_refused(tmp_path: Path):
    qa = {"context": "The river is old. " + ZH, "question": "How old is the quiet river? 小镇喜欢什么？", "answers": {"text": ["old"], "answer_start": [13]}}
    run("augment", write(tmp_path / "qa.jsonl", [qa]), tmp_path / "qa", "num_copies=3")
    for row in read_rows(tmp_path / "qa")[1:]:
        assert (row["context"], row["answers"]) == (qa["context"], qa["answers"]) and row["question"] != qa["question"]
    with pytest.raises(UsageError, match="point into the context"):
        run("augment", tmp_path / "qa.jsonl", tmp_path / "x", "columns=[context]")
    for row, words in (({"source": "a b", "target": "c d"}, "cannot be augmented"), ({"messages": []}, "cannot be augmented"), ({"text": EN, "entities": [[0, 3, "X"]]}, "point into the text")):
        with pytest.raises(InputError, match=words):
            run("augment", write(tmp_path / "bad.jsonl", [row]), tmp_path / "x")
    with pytest.raises(UsageError, match="synonym need a `dictionary`"):
        load(Config, stage="augment", sets=["operations=[synonym]"], environ={})


# --- documents -----------------------------------------------------------------------------------------------------


def test_documents_get_marked_copies_that_follow_a_change(tmp_path: Path, make_docs):
    make_docs(tmp_path / "docs", bilingual_rows(6))
    run("augment", tmp_path / "docs", tmp_path / "out", "num_copies=2")
    rows = [r for batch in read_docs(tmp_path / "out") for r in batch.to_pylist()]
    sources = {r["id"]: r for r in rows if not meta_value(r["meta"], "augmented")}
    marked = [r for r in rows if meta_value(r["meta"], "augmented") == "true"]
    assert len(sources) == 6 and len(marked) == 12 and {meta_value(r["meta"], "augmented_from") for r in marked} == set(sources)
    assert all(r["language"] == sources[meta_value(r["meta"], "augmented_from")]["language"] and r["url"] is None for r in marked)
    first, second, *_ = bilingual_rows(6)
    make_docs(tmp_path / "docs", [{**first, "text": "word", "op": "changed"}, {**second, "text": "", "op": "gone"}])
    run("augment", tmp_path / "docs", tmp_path / "out", "num_copies=2")
    left = [r for batch in read_docs(tmp_path / "out") for r in batch.to_pylist()]
    gone = {first["id"], second["id"]}
    assert len(left) == 5 + 8 and not any(meta_value(r["meta"], "augmented_from") in gone for r in left)


def test_same_bytes_for_one_and_two_workers_and_after_kills(tmp_path: Path):
    write_docs_dir(tmp_path / "docs", bilingual_rows(160, sentences=30), shards=8)
    command = ["augment", "--input", tmp_path / "docs", "--set", f"dictionary={dictionary(tmp_path)}", "--set", "num_copies=8"]
    run("augment", tmp_path / "docs", tmp_path / "one", f"dictionary={tmp_path}/syn.json", "num_copies=8")
    for name, workers, kills in (("two", 2, 0), ("killed", 1, 2)):
        kill_until_done([*command, "--output", tmp_path / name, "--workers", workers], tmp_path / name, kills=kills)
        assert digests(tmp_path / name) == digests(tmp_path / "one")


# --- never in an evaluation ----------------------------------------------------------------------------------------


def labelled(count: int, *, ids: bool = False) -> list[dict]:
    return [{**({"id": i} if ids else {}), "text": (chinese if i % 2 else english)(i, 3), "label": "ab"[i % 2]} for i in range(count)]


@pytest.mark.parametrize("ids", [False, True])
def test_no_copy_in_valid_or_test_and_none_of_their_rows_in_train(tmp_path: Path, ids: bool):
    source = write(tmp_path / "rows.jsonl", labelled(120, ids=ids))
    run("augment", source, tmp_path / "out", "num_copies=3")
    rows = read_rows(tmp_path / "out")
    plain, parts = split_rows(read_rows(source), valid=0.2, test=0.2), split_rows(rows, valid=0.2, test=0.2)
    for name in ("valid", "test"):
        assert sorted(map(text_key, parts[name])) == sorted(map(text_key, plain[name])) and not any(map(is_augmented, parts[name])) and parts[name]
    held = {str(r["id"]) if ids else text_key(r) for name in ("valid", "test") for r in parts[name]}
    from_train = [r for r in parts["train"] if is_augmented(r)]
    assert len(from_train) > 150 and not any(r["augmented_from"] in held for r in from_train)
    assert len(from_train) == sum(is_augmented(r) and r["augmented_from"] not in held for r in rows)
    shuffled = split_rows(rows[::-1], valid=0.2, test=0.2)
    assert {n: sorted(map(text_key, p)) for n, p in shuffled.items()} == {n: sorted(map(text_key, p)) for n, p in parts.items()}


def test_copies_of_rows_of_a_given_valid_file_and_copies_that_say_the_same_leave_train():
    a, b, c = ({"text": t} for t in ("one two 三", "three four 五", "six 六"))
    copy = {"text": "two one 三", "augmented": True, "augmented_from": text_key(a)}
    same = {"text": "six  六", "augmented": True, "augmented_from": text_key(b)}
    fine = {"text": "four three 五", "augmented": "True", "augmented_from": text_key(b)}
    assert without_copies_of([b, copy, same, fine], [a, c]) == [b, fine]


def test_finetune_trains_on_copies_and_chooses_and_scores_on_none(tmp_path: Path):
    from llmpipe.finetune.stage import Config as Finetune
    from llmpipe.stage import STAGES, Options, Request, run_stage
    from tests.tiny import make_model

    base = make_model(tmp_path / "base")
    source = write(tmp_path / "rows.jsonl", labelled(80))
    run("augment", source, tmp_path / "more", "num_copies=2")
    settings = Finetune(device="cpu", dtype="fp32", threads=1, epochs=0.2)
    plain, outcome = (run_stage(STAGES["finetune"], settings, Request(model=base, inputs=(given,), output=tmp_path / name), Options(workers=1)) for given, name in ((source, "plain"), (tmp_path / "more", "tuned")))
    parts = {n: pq.read_table(tmp_path / "tuned/splits" / f"{n}.parquet").to_pylist() for n in ("train", "valid", "test")}
    for name in ("valid", "test"):
        assert parts[name] == pq.read_table(tmp_path / "plain/splits" / f"{name}.parquet").to_pylist()
        assert not any(map(is_augmented, parts[name]))
    held = {r["id"] for n in ("valid", "test") for r in parts[n]}
    copies = [r for r in parts["train"] if is_augmented(r)]
    assert copies and not any(r["augmented_from"] in held for r in copies)
    counts = outcome.counts
    assert counts.dropped["augmented_held_out"] == 2 * len(held) and counts.read == counts.kept + sum(counts.dropped.values()) == 240
    assert plain.counts.read == 80


def test_tokenize_puts_no_copy_in_valid_and_none_of_a_valid_document_in_train(tmp_path: Path):
    write_docs_dir(tmp_path / "docs", bilingual_rows(60))
    run("augment", tmp_path / "docs", tmp_path / "more", "num_copies=2")
    from llmpipe.stage import STAGES, Options, Request, run_stage

    run("tokenizer", tmp_path / "docs", tmp_path / "tok", "vocab_size=400")
    made = {}
    for name in ("docs", "more"):
        config = load(STAGES["tokenize"].load().Config, stage="tokenize", sets=["valid_fraction=0.2"], environ={})
        made[name] = run_stage(STAGES["tokenize"], config, Request(inputs=(tmp_path / name,), tokenizer=tmp_path / "tok", output=tmp_path / f"t-{name}"), Options(workers=1))
    ids = {(name, split): {d.id for d in TokensDir(tmp_path / f"t-{name}").split(split).documents()} for name in made for split in ("train", "valid")}
    sources = {r["id"]: meta_value(r["meta"], "augmented_from") for batch in read_docs(tmp_path / "more") for r in batch.to_pylist()}
    assert ids["more", "valid"] == ids["docs", "valid"] and len(ids["docs", "valid"]) > 5
    assert {sources[i] or i for i in ids["more", "train"]} == ids["docs", "train"] and len(ids["more", "train"]) == 3 * len(ids["docs", "train"])
    assert made["more"].counts.dropped == {"augmented_held_out": 2 * len(ids["docs", "valid"])}


def test_passages_of_a_copy_go_with_the_document_it_comes_from(tmp_path: Path):
    from llmpipe.finetune.label_rule import LabelRule, label_documents

    rows = [{"id": doc_id(str(i)), "url": f"http://x/{'ab'[i % 2]}/{i}", "text": (chinese if i % 2 else english)(i, 30), "source": "ab"[i % 2]} for i in range(40)]
    write_docs_dir(tmp_path / "docs", rows)
    run("augment", tmp_path / "docs", tmp_path / "more", "num_copies=1")
    made, _ = label_documents(tmp_path / "more", LabelRule(column="source", pattern="(.)"))
    parts = split_rows(made, valid=0.3, test=0.2)
    groups = {n: {r["group"] for r in p} for n, p in parts.items()}
    assert not (groups["train"] & (groups["valid"] | groups["test"])) and any(map(is_augmented, parts["train"]))
    assert not any(map(is_augmented, parts["valid"] + parts["test"]))


def test_eval_scores_no_copy(tmp_path: Path):
    from types import SimpleNamespace

    from llmpipe.evaluate.sources import _texts, labelled_rows
    from llmpipe.finetune.tasks import TASKS
    from llmpipe.stage import STAGES, Request
    from llmpipe.survey import find_inputs

    write_docs_dir(tmp_path / "docs", bilingual_rows(6))
    run("augment", tmp_path / "docs", tmp_path / "more", "num_copies=2")
    run("augment", write(tmp_path / "rows.jsonl", labelled(10)), tmp_path / "rows", "num_copies=2")
    stage = STAGES["augment"]
    docs, rows = find_inputs(stage, Request(inputs=(tmp_path / "more", tmp_path / "rows"), output=tmp_path / "x"))
    config = SimpleNamespace(columns={}, label_from=None)
    work = SimpleNamespace(inputs=[rows])
    assert sorted(r["id"] for r in _texts(docs, config, work, None)) == sorted(r["id"] for r in bilingual_rows(6))
    assert len(_texts(rows, config, work, None)) == 10
    known, dropped, _ = labelled_rows(config, work, TASKS["classify"], ["a", "b"])
    assert len(known) == 10 and dropped["augmented"] == 20
