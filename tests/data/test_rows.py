"""Labelled rows read the same from every format, and a text never stands in two parts of a split."""

from __future__ import annotations

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmpipe.data.rows import overlap, read_rows, rows_kind, split_rows, text_key
from llmpipe.errors import InputError

ROWS = [{"text": "这本书很好，\n“值得”一读", "label": "pos"}, {"text": 'not good, "really" 😀', "label": "neg"}]


def write(path, suffix):
    lines = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in ROWS)
    if suffix == ".jsonl":
        path.write_text(lines, encoding="utf-8")
    elif suffix == ".jsonl.gz":
        path.write_bytes(gzip.compress(lines.encode()))
    elif suffix == ".jsonl.zst":
        path.write_bytes(pa.Codec("zstd").compress(lines.encode()).to_pybytes())
    elif suffix == ".json":
        path.write_text(json.dumps(ROWS, ensure_ascii=False, indent=1), encoding="utf-8")
    elif suffix == ".csv":
        path.write_text("﻿text,label\n" + "".join('"' + r["text"].replace('"', '""') + f'",{r["label"]}\n' for r in ROWS), encoding="utf-8")
    else:
        pq.write_table(pa.Table.from_pylist(ROWS), path)


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst", ".json", ".csv", ".parquet"])
def test_every_format_gives_the_same_rows(tmp_path, suffix):
    path = tmp_path / f"行 rows{suffix}"
    write(path, suffix)
    assert read_rows(path) == ROWS
    assert rows_kind(ROWS) == {"text", "label"}


def test_columns_can_be_renamed_and_a_wrong_name_gets_the_nearest(tmp_path):
    path = tmp_path / "a.jsonl"
    write(path, ".jsonl")
    assert read_rows(path, columns={"text": "label", "label": "text"})[0]["text"] == "pos"
    with pytest.raises(InputError, match="no column 'lable'; did you mean label"):
        read_rows(path, columns={"label": "lable"})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "a"}\n{"text": ', "line 2 is not JSON"),
        ("a.jsonl", b"[1]\n", "item 1 is not a JSON object"),
        ("a.jsonl", b"", "no rows"),
        ("a.jsonl", b'{"text": "\xff\xfe"}\n', "cannot be read"),
        ("a.jsonl.zst", b"\x28\xb5\x2f\xfd\x00", "cannot be read|no rows"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "abc"}\n' * 999)[:-20], "cannot be read|not JSON"),
        ("a.csv", b"text,label\na,b,c\n", "line 2 has another number"),
        ("a.parquet", b"PAR1 cut", "cannot be read"),
        ("a.xlsx", b"", "rows are read from"),
    ],
)
def test_broken_files_are_named_with_the_place(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_rows(tmp_path / name)


def test_split_keeps_equal_texts_together_and_ignores_order_and_label():
    rows = [{"text": f"句子 {i // 4} sentence" + "  " * (i % 2), "label": str(i % 3)} for i in range(800)]
    parts = split_rows(rows, valid=0.2, test=0.1)
    assert overlap(parts["train"], parts["valid"]) == overlap(parts["train"], parts["test"]) == overlap(parts["valid"], parts["test"]) == 0
    again = split_rows(rows[::-1], valid=0.2, test=0.1)
    for name, part in parts.items():
        assert sorted(map(text_key, part)) == sorted(map(text_key, again[name]))
    assert 100 < len(parts["valid"]) < 220 and 40 < len(parts["test"]) < 130


def test_passages_of_one_document_stay_together():
    rows = [{"text": f"passage {i}", "group": f"doc{i // 10}"} for i in range(1000)]
    parts = split_rows(rows, valid=0.2, test=0.2)
    groups = [{r["group"] for r in part} for part in parts.values()]
    assert not (groups[0] & groups[1] or groups[0] & groups[2] or groups[1] & groups[2])
