"""Read Parquet by row group and Arrow IPC (file or stream) by record batch; list the data sets of Hugging Face on disk.

    for item in parquet(unit, config): ...      # Row(key, file, values) or Drop(rule, place)

A directory of `save_to_disk` holds data-*.arrow files that state.json lists: those are read, its other files are not.
Batches of Arrow files are validated before a value is taken: pyarrow trusts offsets, and a hostile file may lie.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from llmpipe.data.remote import open_remote
from llmpipe.ingest.files import READ_ERRORS, File, open_raw
from llmpipe.ingest.mapping import Drop, Item, broken, fields_of, mapped
from llmpipe.ingest.units import Unit, arrow_batches

if TYPE_CHECKING:
    from llmpipe.ingest.stage import Config

BATCH_ROWS = 500
MAX_STATE_BYTES = 64 << 20


def parquet(unit: Unit, config: Config) -> Iterator[Item]:
    file, number = unit.files[0], unit.line - 1
    try:
        with open_raw(file) as stream, pq.ParquetFile(stream) as f:
            wanted = _columns(f.schema_arrow.names, config)
            groups = [unit.start] if f.num_row_groups else []
            for batch in f.iter_batches(batch_size=BATCH_ROWS, row_groups=groups, columns=wanted):
                for item in _rows(batch, file, number, config):
                    number += 1
                    yield item
    except READ_ERRORS as error:
        yield broken(f"{file.name}:{number + 1}", error)


def arrow(unit: Unit, config: Config) -> Iterator[Item]:
    file, number = unit.files[0], unit.line - 1
    try:
        with _mapped_file(file) as stream:
            for n, batch in enumerate(arrow_batches(stream)):
                if n < unit.start:
                    continue
                if unit.end is not None and n >= unit.end:
                    return
                batch = batch.select(_columns(batch.schema.names, config))
                batch.validate(full=True)
                for start in range(0, batch.num_rows, BATCH_ROWS):
                    for item in _rows(batch.slice(start, BATCH_ROWS), file, number, config):
                        number += 1
                        yield item
    except READ_ERRORS as error:
        yield broken(f"{file.name}:{number + 1}", error)


def _rows(batch: pa.RecordBatch, file: File, number: int, config: Config) -> Iterator[Item]:
    try:
        records = batch.to_pylist()
    except UnicodeDecodeError:
        records = [_one(batch, i) for i in range(batch.num_rows)]
    for record in records:
        number += 1
        place = f"{file.name}:{number}"
        yield Drop("undecodable", place) if record is None else mapped(record, place, file, number, config)


def _one(batch: pa.RecordBatch, row: int) -> dict[str, Any] | None:
    try:
        return batch.slice(row, 1).to_pylist()[0]
    except UnicodeDecodeError:
        return None


def _columns(names: Iterable[str], config: Config) -> list[str]:
    """The columns that hold the fields which the config names, at the top of a path or whole."""
    tops = {name for field in fields_of(config) for name in (field, field.partition(".")[0])}
    return [name for name in names if name in tops]


@contextmanager
def _mapped_file(file: File) -> Iterator[pa.NativeFile]:
    if file.is_local:
        with pa.memory_map(file.path) as stream:
            yield stream
    else:
        with open_remote(file.path) as below, pa.PythonFile(below, "r") as stream:
            yield stream


def table_columns(file: File, file_format: str) -> dict[str, str]:
    """Return a table's columns by path and type; none when it is broken, which its reader counts."""
    try:
        if file_format == "parquet":
            with open_raw(file) as stream:
                schema = pq.read_schema(stream)
        else:
            with _mapped_file(file) as stream:
                magic = stream.read(6)
                stream.seek(0)
                schema = (pa.ipc.open_file(stream) if magic == b"ARROW1" else pa.ipc.open_stream(stream)).schema
    except READ_ERRORS:
        return {}
    return dict(_flat(schema))


def _flat(fields: Iterable[pa.Field], prefix: str = "", depth: int = 3) -> Iterator[tuple[str, str]]:
    for field in fields:
        kind = field.type
        if pa.types.is_struct(kind) and depth:
            yield from _flat((kind.field(i) for i in range(kind.num_fields)), f"{prefix}{field.name}.", depth - 1)
        else:
            yield f"{prefix}{field.name}", str(kind.storage_type if isinstance(kind, pa.ExtensionType) else kind)




# --- data sets on disk -----------------------------------------------------------------------------------------------


def dataset_files(files: list[File]) -> tuple[set[str], set[str]]:
    """Look for `save_to_disk` directories among files; return the keys of their listed shards, and of all else in them.

    `state.json` lists the shards of one data set; `dataset_dict.json` stands above the directories of several splits.
    A listed shard that is missing shows as `missing_file` (its key ends in `!`).
    """
    shards: set[str] = set()
    rest: set[str] = set()
    keys = {f.key for f in files}
    for state in (f for f in files if PurePosixPath(f.key).name == "state.json"):
        folder = state.key.rpartition("/")[0]
        listed = _listed(state)
        if listed is None:
            continue
        for name in listed:
            key = f"{folder}/{name}"
            shards.add(key if key in keys else f"{key}!")
        rest |= {f.key for f in files if f.key.rpartition("/")[0] == folder and f.key not in shards}
    folders = {k.rstrip("!").rpartition("/")[0] for k in shards}
    for file in files:
        folder, _, name = file.key.rpartition("/")
        if name == "dataset_dict.json" and any(f.rpartition("/")[0] == folder for f in folders):
            rest.add(file.key)
    return shards, rest


def _listed(state: File) -> list[str] | None:
    """The names in a state.json of `datasets`; None for a file of that name that is something else."""
    if state.bytes > MAX_STATE_BYTES:
        return None
    try:
        with open_raw(state) as stream:
            value = json.loads(stream.read(MAX_STATE_BYTES))
        names = [entry["filename"] for entry in value["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return [n for n in names if isinstance(n, str) and "/" not in n]
