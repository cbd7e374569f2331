"""Tell in Markdown what a run made: the funnel, the scores beside their baselines, samples, and where each thing lies.

    write_report(pipeline)       # after `llmpipe run`; also printed

Reads the manifests and results.json of the steps; writes `<run directory>/report.md`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmpipe.data.files import atomic_write, read_json
from llmpipe.data.manifest import Manifest, find_manifest
from llmpipe.pipeline import Pipeline

MAX_RULES = 8
SAMPLE_CHARS = 600


def write_report(pipeline: Pipeline) -> str:
    """Write and return the report of every step that has a finished output."""
    steps = [(s.name, s.request.output, m) for s in pipeline.steps if (m := find_manifest(s.request.output)) is not None]
    sections = [f"# {pipeline.name}\n", _funnel(steps), _training(steps), _scaling(steps), *_scores(steps), _samples(steps), _places(steps)]
    report = "\n".join(s for s in sections if s)
    atomic_write(pipeline.run_dir / "report.md", report)
    return report


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Align a Markdown table by terminal cells, so that it reads as well unrendered."""
    from rich.cells import cell_len

    lines = [list(header), *[[str(c) for c in row] for row in rows]]
    widths = [max(3, *(cell_len(line[c]) for line in lines)) for c in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(c + " " * (w - cell_len(c)) for c, w in zip(cells, widths, strict=True)) + " |"

    return "\n".join([line(lines[0]), "|" + "|".join("-" * (w + 2) for w in widths) + "|", *map(line, lines[1:])]) + "\n"


def _funnel(steps: list[tuple[str, Path, Manifest]]) -> str:
    rows = []
    for name, _, manifest in steps:
        counts = manifest.counts()
        dropped = sorted(counts.get("dropped", {}).items(), key=lambda kv: (-kv[1], kv[0]))
        shown = ", ".join(f"{rule} {n:,}" for rule, n in dropped[:MAX_RULES]) + (f", … {len(dropped) - MAX_RULES} more rules" if len(dropped) > MAX_RULES else "")
        if manifest.kind == "docs":
            unit = "pages" if manifest.stage == "crawl" else "documents"
            copies = counts.get("extra", {}).get("augmented", 0)
            rows.append([name, f"{counts['read']:,} {unit}", f"{counts['kept'] + copies:,} documents", shown or "nothing"])
        elif manifest.kind == "tokens":
            tokens = manifest.info.get("tokens", sum(s.rows for s in manifest.shards if s.name.endswith(".bin")))
            rows.append([name, f"{counts['read']:,} documents", f"{tokens:,} tokens" if isinstance(tokens, int) else str(tokens), shown or "nothing"])
    return ("## From pages to tokens\n\n" + markdown_table(("step", "in", "out", "left out, by rule"), rows)) if rows else ""


def _training(steps: list[tuple[str, Path, Manifest]]) -> str:
    rows = []
    for name, _, manifest in steps:
        if manifest.stage in ("tokenizer", "pretrain", "finetune"):
            facts = ", ".join(f"{k} {_number(v)}" for k, v in manifest.info.items() if isinstance(v, int | float) and not isinstance(v, bool))
            rows.append([name, facts, f"{sum(g.made.get('seconds', 0) for g in manifest.generations):,.0f} s"])
    return ("## Training\n\n" + markdown_table(("step", "figures", "time"), rows)) if rows else ""


def _scaling(steps: list[tuple[str, Path, Manifest]]) -> str:
    """Where a run trained at least three sizes: loss against compute, its fit, and the next size."""
    from llmpipe.pretrain.scaling import ladder

    found = ladder([{"name": name, **manifest.info} for name, _, manifest in steps if manifest.stage == "pretrain"])
    if found is None:
        return ""
    law, metric = found["law"], found["metric"]
    rows = [[r["name"], f"{r['parameters']:,}", f"{r['tokens']:,}", f"{r['flops']:.3g}", f"{r[metric]:.4f}", "" if law is None else f"{law.loss(r['flops']):.4f}"] for r in found["runs"]]
    if law is None:
        said = "The loss does not fall with compute as a power law does: train longer, or on more text."
    else:
        following = found["next"]
        rows.append(["next", f"{following['parameters']:,}", "", f"{following['flops']:.3g}", "", f"{following[metric]:.4f}"])
        said = f"L(C) = {law.floor:.3f} + {law.scale:.4g} C^-{law.exponent:.3f}, C in FLOPs; relative error of the fit {law.error:.2%}."
        if len(found["runs"]) == 3:
            said += " Three sizes determine the curve: nothing is left to judge it by."
        if held := found["held_out"]:
            said += f" From the smaller sizes alone the largest was predicted at {held['predicted']:.4f}; it reached {held['measured']:.4f}."
    return f"## Scaling\n\n{said}\n\n" + markdown_table(("run", "parameters", "tokens", "FLOPs", metric, "fitted"), rows)


def _scores(steps: list[tuple[str, Path, Manifest]]) -> list[str]:
    sections = []
    for name, output, manifest in steps:
        if manifest.stage == "eval":
            results = read_json(output / "results.json")["results"]
            sections.append(f"## Scores: {name}\n\nIn brackets the 95 % interval. All metrics, classes and examples: `{output}/results.json`, `{output}/samples/`.\n\n" + _systems_table(results))
    return sections


HEADLINES = ("bits_per_byte", "perplexity", "accuracy", "macro_precision", "macro_recall", "macro_f1")


def _systems_table(results: Sequence[dict[str, Any]]) -> str:
    """Put the systems side by side: one row a metric and part of the data."""
    systems = list(dict.fromkeys(r["system"] for r in results))
    cells: dict[tuple[str, str], dict[str, str]] = {}
    numbers: dict[tuple[str, str], int] = {}
    for r in results:
        if r["metric"] in HEADLINES and r["class"] is None and isinstance(r["value"], int | float):
            key = r["metric"], _part(r)
            interval = f" ({r['ci95'][0]:.3f} to {r['ci95'][1]:.3f})" if r.get("ci95") else ""
            cells.setdefault(key, {})[r["system"]] = f"{r['value']:.3f}{interval}"
            numbers[key] = r["n"]
    rows = [[metric, part, *(cells[metric, part].get(s, "") for s in systems), f"{numbers[metric, part]:,}"] for metric, part in cells]
    return markdown_table(("metric", "on", *systems, "n"), rows)


def _part(result: dict[str, Any]) -> str:
    return " ".join(str(result[k]) for k in ("language", "source", "class") if result.get(k) is not None) or "all"


def results_table(results: Sequence[dict[str, Any]]) -> str:
    """Tabulate results.json whole: one row a task, metric, part of the data and system, with its interval."""
    rows = []
    for r in results:
        if not isinstance(r.get("value"), int | float):
            continue
        interval = f"{r['ci95'][0]:.3f} to {r['ci95'][1]:.3f}" if r.get("ci95") else "exact"
        rows.append([r["task"], r["metric"], _part(r), r["system"], f"{r['value']:.4f}", interval, f"{r['n']:,}"])
    return markdown_table(("task", "metric", "on", "system", "value", "95 % interval", "n"), rows)


def compare_table(compared: dict[str, Any]) -> str:
    """Tabulate what `compare_reports` found."""
    rows = []
    for r in compared["results"]:
        low, high = r["ci95"]
        rows.append([r["task"], r["metric"], f"{r['a']:.4f}", f"{r['b']:.4f}", f"{r['difference']:+.4f}", f"{low:+.4f} to {high:+.4f}", "yes" if low > 0 or high < 0 else "no"])
    return markdown_table(("task", "metric", "A", "B", "B - A", "95 % interval", "differs"), rows)


def _samples(steps: list[tuple[str, Path, Manifest]]) -> str:
    import pyarrow.parquet as pq

    parts = []
    for name, output, manifest in steps:
        if manifest.stage != "generate":
            continue
        for shard in manifest.shards:
            if shard.name.endswith(".parquet"):
                for row in pq.read_table(output / shard.name).to_pylist():
                    text = (row["prompt"] + "⟶" + row["continuation"])[:SAMPLE_CHARS]
                    parts.append(f"`{name}`:\n\n" + "\n".join("    " + line for line in text.splitlines()) + "\n")
    return ("## Samples\n\nThe prompt, then ⟶ and what the model wrote.\n\n" + "\n".join(parts)) if parts else ""


def _places(steps: list[tuple[str, Path, Manifest]]) -> str:
    rows = []
    for name, output, manifest in steps:
        size = sum(s.bytes for s in manifest.shards)
        seconds = sum(g.made.get("seconds", 0) for g in manifest.generations)
        rows.append([name, manifest.kind, f"{output}/", f"{size / 1e6:,.1f} MB in {len(manifest.shards)} files", f"{seconds:,.0f} s"])
    return "## Where each thing lies\n\n" + markdown_table(("step", "what", "where", "size", "time"), rows)


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"
