"""Get the rows of a finetuning run: read or label them, drop what can't be used, split, write the splits.

    data = prepare(config, work)        # data.parts["train"], data.labels, data.counts

Reads the input (and `valid`), writes `splits/{train,valid,test}.parquet`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from llmpipe.data.docs import AUGMENTED, AUGMENTED_FROM, write_parquet
from llmpipe.data.rows import GROUP, Row, is_augmented, overlap, read_rows, rows_kind, split_rows, text_key, without_copies_of
from llmpipe.errors import InputError, UsageError
from llmpipe.finetune.label_rule import label_documents
from llmpipe.finetune.task import Task
from llmpipe.finetune.tasks import TASKS
from llmpipe.work import Counts, Input, Work

if TYPE_CHECKING:
    from llmpipe.finetune.stage import Config

SPLIT_SCHEMA = pa.schema([("id", pa.string()), ("text", pa.string()), ("text_pair", pa.string()), ("label", pa.string()), (GROUP, pa.string()), ("language", pa.string()), ("source", pa.string()), (AUGMENTED, pa.bool_()), (AUGMENTED_FROM, pa.string())])


@dataclass(frozen=True, slots=True)
class Data:
    task: Task
    labels: list[str]
    parts: dict[str, list[Row]]
    counts: Counts


def prepare(config: Config, work: Work) -> Data:
    """Read, drop, split and write rows. Raises `InputError` when too little is left to train or to choose by."""
    task = TASKS[config.task]
    dropped: Counter[str] = Counter()
    left_out: Counter[str] = Counter()  # documents and passages that never became rows
    rows = [row for given in work.inputs if given.role.isdigit() for row in read_input(given, config, left_out)]
    read = len(rows)
    rows = usable(rows, task, dropped, config.max_dropped, where="the input")
    test = config.test_fraction if config.test_fraction is not None else 0.0 if config.valid else 0.1
    parts = split_rows(rows, valid=0.0 if config.valid else config.valid_fraction, test=test)
    if config.valid:
        given = usable(read_rows(config.valid, columns=config.columns), task, Counter(), config.max_dropped, where=str(config.valid))
        parts["valid"] = [r for r in given if not is_augmented(r)]
        parts["train"] = without_copies_of(parts["train"], parts["valid"])
    dropped["augmented_held_out"] = len(rows) - sum(len(p) for name, p in parts.items() if name != "valid" or not config.valid)
    if config.max_train_examples is not None and len(parts["train"]) > config.max_train_examples:
        dropped["above_max_train_examples"] = len(parts["train"]) - config.max_train_examples
        chosen = np.random.default_rng([config.seed, 11]).permutation(len(parts["train"]))[: config.max_train_examples]
        parts["train"] = [parts["train"][i] for i in sorted(chosen)]
    labels = task.labels(parts["train"])
    _report_overlap(parts, config, work, dropped)
    for name in ("valid", "test"):
        known = [r for r in parts[name] if str(r["label"]) in labels]
        if name == "valid" and config.valid:
            work.info["valid_unknown_label"] = len(parts[name]) - len(known)  # not of the input, so not in its counts
        else:
            dropped["unknown_label"] += len(parts[name]) - len(known)
        parts[name] = known
    if not parts["valid"]:
        raise InputError("no rows to choose the best weights by", hint="give a file as `valid`, or raise valid_fraction")
    for name, part in parts.items():
        work.log.info("finetune: %s %s rows, %s", f"{len(part):,}", name, _shares(part))
    _write_splits(work, parts)
    work.info |= {f"{name}_rows": len(part) for name, part in parts.items()} | {"num_labels": len(labels), "labels": labels}
    return Data(task, labels, parts, Counts(read=read, kept=read - sum(dropped.values()), dropped=dict(+dropped), extra={f"label_from.{rule}": n for rule, n in sorted(left_out.items())}))


def read_input(given: Input, config: Config, left_out: Counter[str]) -> list[Row]:
    """Read one input: a file of rows, or documents by `label_from`, which adds to `left_out` what it passed over."""
    if given.kind == "docs":
        if config.label_from is None:
            raise UsageError(f"{given.path} holds documents, which have no labels", hint="give a rule: --set label_from.column=url --set 'label_from.pattern=…(…)…', or rows with a label")
        rows, passed = label_documents(given.path, config.label_from)
        left_out.update(passed)
        return rows
    if config.label_from is not None:
        raise UsageError(f"label_from labels documents, but {given.path} is a file of rows", hint="leave label_from out, or llmpipe ingest the file first")
    return read_rows(given.path, columns=config.columns)


def usable(rows: list[Row], task: Task, dropped: Counter[str], most: float, *, where: str) -> list[Row]:
    """Drop rows without a text or a label, counted; raise `InputError` for missing columns or when too many are dropped."""
    found = set().union(*(set(r) for r in rows[:100]))
    missing = [c for c in task.columns if c not in found]
    if missing:
        raise InputError(f"{where}: no column {', '.join(missing)}; there are {', '.join(sorted(rows_kind(rows)))}", hint="--set 'columns={text: THEIRS, label: THEIRS}' names them")
    kept, lost = [], Counter()
    for row in rows:
        rule = next((f"no_{c}" for c in task.columns if row.get(c) is None or not str(row[c]).strip()), None)
        if rule is None:
            kept.append({**row, "text": str(row["text"]), "label": _label(row["label"])})
        else:
            lost[rule] += 1
    dropped.update(lost)
    if lost and sum(lost.values()) > most * len(rows):
        shown = ", ".join(f"{rule} {n:,}" for rule, n in sorted(lost.items()))
        raise InputError(f"{where}: {sum(lost.values()):,} of {len(rows):,} rows cannot be used ({shown})", hint="right columns? --set max_dropped=1 trains on the rest")
    return kept


def _label(label: object) -> str:
    from llmpipe.finetune.classify import label_of

    return label_of({"label": label}) or ""


def _report_overlap(parts: dict[str, list[Row]], config: Config, work: Work, dropped: Counter[str]) -> None:
    """Say how many texts of valid and test occur in train; drop them from our own splits, where passages can repeat."""
    for name in ("valid", "test"):
        shared = overlap(parts["train"], parts[name])
        if name == "valid" and config.valid:
            work.info["valid_overlap"] = shared
            if shared:
                work.log.warning("finetune: %s of %s valid rows occur in train word for word; scores on them say little", f"{shared:,}", f"{len(parts[name]):,}")
                continue
        elif shared:
            seen = {text_key(r) for r in parts["train"]}
            parts[name] = [r for r in parts[name] if text_key(r) not in seen]
            dropped["also_in_train"] += shared
        work.log.info("finetune: overlap of train and %s: %d of %s", name, shared, f"{len(parts[name]):,}")


def _shares(part: Sequence[Row]) -> str:
    counts = Counter(r["label"] for r in part).most_common()
    return ", ".join(f"{label} {n:,}" for label, n in counts[:8]) + (f", … {len(counts) - 8} more labels" if len(counts) > 8 else "")


def _write_splits(work: Work, parts: dict[str, list[Row]]) -> None:
    for name, part in parts.items():
        if not part:
            continue
        table = pa.Table.from_pylist([{"id": text_key(r), **{c: _string(r.get(c)) for c in SPLIT_SCHEMA.names[1:]}, AUGMENTED: is_augmented(r)} for r in part], schema=SPLIT_SCHEMA)
        path: Path = work.output / "splits" / f"{name}.parquet"
        write_parquet(path, table)
        work.add_file(path, rows=len(part))


def _string(value: object) -> str | None:
    return None if value is None else str(value)
