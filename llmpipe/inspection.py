"""Read what stages left behind: status, inspect, why, verify, list, doctor. Nothing here writes.

    llmpipe why http://pydoc.invalid/json.html runs/quickstart
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from llmpipe.data.manifest import Manifest, find_manifest, verify_manifest
from llmpipe.errors import InputError
from llmpipe.journal import read_journal
from llmpipe.stage import STAGES


def outputs_below(path: Path) -> Iterator[tuple[str, Path]]:
    """Yield the outputs of a run directory in pipeline order, or the one output that `path` is."""
    if (path / "manifest.json").is_file() or read_journal(path):
        yield path.name, path
        return
    if not path.is_dir():
        raise InputError(f"{path}: no such directory", hint="name a run directory such as runs/quickstart, or an output below it")
    order = {name: i for i, name in enumerate(STAGES)}
    found = []
    for entry in sorted(path.iterdir()):
        if entry.is_dir() and ((entry / "manifest.json").is_file() or read_journal(entry)):
            manifest = find_manifest(entry)
            at = min((str(g.made.get("at", "")) for g in manifest.generations), default="") if manifest else "~"
            found.append((at, order.get(manifest.stage, 99) if manifest else 99, entry))
    if not found:
        raise InputError(f"{path}: holds no output of llmpipe", hint="name a run directory such as runs/quickstart, or an output below it")
    yield from ((entry.name, entry) for *_, entry in sorted(found))


# --- status and inspect --------------------------------------------------------------------------------------------


def status_of(path: Path) -> list[dict[str, Any]]:
    """Rows of step, state and what is there; of a pipeline.yaml also what a run would do and why."""
    if path.is_file():
        from llmpipe.pipeline import load_pipeline, plan_pipeline

        pipeline = load_pipeline(path)
        rows = plan_pipeline(pipeline, pipeline.steps)
        return [{"step": r["step"], "state": r["state"], "what": "; ".join(r["why"]) or _what(find_manifest(Path(r["output"])))} for r in rows]
    rows = []
    for name, output in outputs_below(path):
        manifest, journal = find_manifest(output), read_journal(output)
        state = "partial" if journal else "done"
        what = f"{max(len(journal) - 1, 0)} units done, the same command goes on" if journal else _what(manifest)
        rows.append({"step": name, "state": state, "what": what})
    return rows


def _what(manifest: Manifest | None) -> str:
    if manifest is None:
        return ""
    counts = manifest.counts()
    size = sum(s.bytes for s in manifest.shards)
    seconds = sum(g.made.get("seconds", 0) for g in manifest.generations)
    parts = [f"{counts['read']:,} read, {counts['kept']:,} kept"] if counts.get("read") else []
    parts += [f"{k} {v:,}" if isinstance(v, int) else f"{k} {v:.4g}" for k, v in manifest.info.items() if isinstance(v, int | float) and not isinstance(v, bool)][:4]
    return ", ".join([*parts, f"{size / 1e6:,.1f} MB", f"{seconds:,.0f} s"])


def describe_output(path: Path) -> dict[str, Any]:
    """Say what an output is: recipe, counts, shards, and for documents a sample and the languages."""
    manifest = find_manifest(path) if path.is_dir() else None
    if manifest is None and (path / "state" / "frontier.db").is_file() and (journal := read_journal(path)):
        return {"output": str(path), "stage": "crawl", "state": "unfinished", **_describe_frontier(path, journal[0]["recipe"])}
    if manifest is None:
        listed = [name for name, _ in outputs_below(path)]
        raise InputError(f"{path} is not one output", hint=f"it holds {', '.join(listed)}: name one of them")
    described: dict[str, Any] = {
        "output": str(path),
        "stage": manifest.stage,
        "kind": manifest.kind,
        "fingerprint": manifest.fingerprint,
        "config": manifest.recipe["config"],
        "counts": manifest.counts(),
        "info": manifest.info,
        "generations": [{"number": g.number, **g.made} for g in manifest.generations],
        "shards": len(manifest.shards),
        "bytes": sum(s.bytes for s in manifest.shards),
    }
    if manifest.kind == "docs":
        described.update(_describe_docs(path))
    if manifest.stage == "crawl" and (path / "state" / "frontier.db").is_file():
        described.update(_describe_frontier(path, manifest.recipe))
    return described


def _describe_frontier(path: Path, recipe: Mapping[str, Any]) -> dict[str, Any]:
    from llmpipe.crawl.overview import describe_frontier

    return describe_frontier(path / "state" / "frontier.db", agent=recipe["config"]["user_agent"])


def _describe_docs(path: Path) -> dict[str, Any]:
    from collections import Counter

    from llmpipe.data.docs import read_docs

    languages: Counter[str] = Counter()
    documents = characters = 0
    sample: list[dict[str, Any]] = []
    for batch in read_docs(path, columns=["id", "url", "title", "language", "text"]):
        for row in batch.to_pylist():
            documents += 1
            characters += len(row["text"])
            languages[row["language"] or "unknown"] += 1
            if len(sample) < 3:
                sample.append({**row, "text": row["text"][:200]})
    return {"documents": documents, "characters": characters, "languages": dict(languages.most_common(20)), "sample": sample}


# --- why -----------------------------------------------------------------------------------------------------------


def trace_document(document: str, run_dir: Path) -> list[dict[str, str]]:
    """Follow one document, by id or URL, through every output below `run_dir`: kept, or dropped by which rule."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    events: list[dict[str, str]] = []
    ids = {document}
    for name, output in outputs_below(run_dir):
        manifest = find_manifest(output)
        for shard in manifest.shards if manifest else ():
            if not shard.name.endswith(".parquet") or not ("/" not in shard.name or shard.name.startswith("dropped/")):
                continue
            with pq.ParquetFile(output / shard.name) as f:
                columns = [c for c in ("id", "url", "rule", "value", "threshold", "partner_id", "op", "language", "length") if c in f.schema_arrow.names]
                if "id" not in columns:
                    continue
                table = f.read(columns=columns)
            match = pc.is_in(table["id"], value_set=_strings(ids))
            if "url" in columns:
                match = pc.or_kleene(match, pc.equal(table["url"], document))
            for row in table.filter(pc.fill_null(match, False)).to_pylist():
                ids.add(row["id"])
                events.append({"step": name, "what": _event(shard.name, row)})
    if not events:
        raise InputError(f"{document}: not found below {run_dir}", hint="give the id or the exact URL of a document; llmpipe inspect shows some")
    return events


def _strings(values: set[str]) -> Any:
    import pyarrow as pa

    return pa.array(sorted(values), pa.string())


def _event(shard: str, row: Mapping[str, Any]) -> str:
    if shard.startswith("dropped/"):
        detail = f" ({row['value']}, threshold {row['threshold']})" if row.get("value") is not None else ""
        partner = f", duplicate of {row['partner_id']}" if row.get("partner_id") else ""
        return f"dropped by {row.get('rule')}{detail}{partner}"
    if row.get("op") == "gone":
        return f"gone, in {shard}"
    return f"kept as {row['id']} in {shard}" + (f" ({row['op']})" if row.get("op") else "")


# --- verify, list, doctor ------------------------------------------------------------------------------------------


def verify_outputs(paths: Sequence[Path]) -> tuple[int, list[str]]:
    """Check every file that the manifests below `paths` list; return how many, and one line per fault."""
    checked, faults = 0, []
    for path in paths:
        for _, output in outputs_below(path):
            manifest = find_manifest(output)
            if manifest is None:
                faults.append(f"{output}: unfinished, it has no manifest yet")
                continue
            checked += len(manifest.shards)
            faults += verify_manifest(output, manifest)
    return checked, faults


_TABLES = {
    "filters": ("llmpipe.clean.rules", "FILTERS"),
    "presets": ("llmpipe.clean.presets", "PRESETS"),
    "models": ("llmpipe.models.table", "MODELS"),
    "objectives": ("llmpipe.training.objectives", "OBJECTIVES"),
    "tasks": ("llmpipe.finetune.tasks", "TASKS"),
}


def known(what: str) -> list[tuple[str, str]]:
    """List the names of one table with the first line of each entry's docstring."""
    import importlib

    if what == "stages":
        return [(s.name, f"{' or '.join(s.reads) or ' '.join(s.needs)} -> {s.writes}: {s.help}") for s in STAGES.values()]
    module, table = _TABLES[what]
    entries = getattr(importlib.import_module(module), table)
    return [(name, entry if isinstance(entry, str) else first_line(entry)) for name, entry in entries.items()]


def first_line(entry: Any) -> str:
    return next(iter((entry.__doc__ or "").strip().splitlines()), "")


def examine_machine() -> dict[str, Any]:
    """Say what this machine offers and what would stop or slow a run here."""
    import shutil
    import sqlite3
    from importlib.metadata import PackageNotFoundError, version

    facts: dict[str, Any] = {"python": platform.python_version(), "platform": platform.platform(), "cores": os.cpu_count()}
    for package in ("torch", "tokenizers", "pyarrow", "trafilatura", "datasketch", "requests", "typer", "rich", "safetensors", "py3langid", "transformers"):
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            facts[package] = "not installed" + (" (optional)" if package == "transformers" else ": run scripts/quickstart")
    if hasattr(os, "sysconf"):
        facts["memory_gb"] = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    facts["free_disk_gb"] = round(shutil.disk_usage(".").free / 1e9, 1)
    facts["sqlite"] = sqlite3.sqlite_version
    import torch

    facts["torch_threads"] = torch.get_num_threads()
    facts["cpu_bf16"] = bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    facts["gpus"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return facts
