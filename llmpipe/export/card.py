"""Write a model card from manifests: what the model is, what it read, how it was trained, how it scores.

    write_card(model, output, name="tiny", license="apache-2.0")        # output/README.md

Facts only: what no manifest says is said to be unknown. No time, host or path gets in, so the card is a function of the data.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from llmpipe.data.docs import read_docs
from llmpipe.data.files import atomic_write, read_json
from llmpipe.export.lineage import Step, lineage, reports
from llmpipe.models.families import FAMILIES, family_of, load_config
from llmpipe.models.heads import class_labels
from llmpipe.report import markdown_table

MAX_SOURCES = 20
SHAPE = ("num_layers", "dim", "num_heads", "num_kv_heads", "ffn_dim", "vocab_size", "max_seq_len")


def write_card(model: Path, output: Path, *, name: str | None, license: str | None) -> Path:
    """Write README.md with the front matter that model hubs read; return its path."""
    steps = lineage(model)
    labels = class_labels(model)
    languages, sources, licenses, documents = _data(steps)
    front = ["---", "library_name: transformers", f"pipeline_tag: {_pipeline(model, labels)}", f"license: {license or 'unknown'}"]
    if languages:
        front += ["language:", *(f"- {code}" for code, _ in languages.most_common() if code != "unknown")]
    sections = [
        "\n".join([*front, "tags:", "- llmpipe", "---", "", f"# {name or model.resolve().name}"]) + "\n",
        _what(model, labels),
        _read(steps, languages, sources, licenses, documents),
        _training(steps),
        _scores(model),
        _use(_pipeline(model, labels)),
    ]
    path = output / "README.md"
    atomic_write(path, "\n".join(s for s in sections if s))
    return path


def _what(model: Path, labels: list[str] | None) -> str:
    config = load_config(model)
    names = {"decoder": "A decoder-only language model", "encoder": "A masked language model", "encoder-decoder": "An encoder-decoder from text to text"}
    kind = names[config.stack] if labels is None else f"A text classifier ({len(labels)} labels: {', '.join(labels[:20])}{', …' if len(labels) > 20 else ''})"
    rows = [[key, f"{getattr(config, key):,}"] for key in SHAPE]
    return f"{kind} trained with llmpipe, in the layout of {FAMILIES[family_of(config)].architecture.partition('For')[0].removesuffix('LMHeadModel')}.\n\n" + markdown_table(("", ""), rows)


def _data(steps: list[Step]) -> tuple[Counter[str], Counter[str], Counter[str], int]:
    """Count languages, sources and licences of the last documents before the model."""
    languages, sources, licenses, documents = Counter(), Counter(), Counter(), 0
    docs = [s for s in steps if s.manifest.kind == "docs"]
    if docs:
        for batch in read_docs(docs[-1].path, columns=["language", "source", "license"]):
            for row in batch.to_pylist():
                languages[row["language"] or "unknown"] += 1
                sources[row["source"] or "unknown"] += 1
                licenses[row["license"] or "unknown"] += 1
                documents += 1
    return languages, sources, licenses, documents


def _read(steps: list[Step], languages: Counter[str], sources: Counter[str], licenses: Counter[str], documents: int) -> str:
    if not documents:
        return "## Data\n\nUnknown: the directories that the model was made from do not lie beside it.\n"
    rows = [[what, _counted(counter)] for what, counter in (("sources", sources), ("languages", languages), ("licences", licenses))]
    tokens = next((s.manifest.info["tokens"] for s in steps if s.manifest.kind == "tokens" and "tokens" in s.manifest.info), None)
    path = " -> ".join(s.manifest.stage for s in steps)
    lines = [f"{documents:,} documents" + (f", {tokens:,} tokens" if isinstance(tokens, int) else "") + f", through {path}. Documents by:", ""]
    funnel = [[s.manifest.stage, f"{c['read']:,}", f"{c['kept']:,}", _dropped(c)] for s in steps if s.manifest.kind == "docs" and (c := s.manifest.counts()).get("read")]
    return "## Data\n\n" + "\n".join(lines) + "\n" + markdown_table(("", "documents"), rows) + ("\n" + markdown_table(("step", "read", "kept", "left out, by rule"), funnel) if funnel else "")


def _dropped(counts: dict[str, Any]) -> str:
    dropped = sorted(counts.get("dropped", {}).items(), key=lambda kv: (-kv[1], kv[0]))
    return ", ".join(f"{rule} {n:,}" for rule, n in dropped[:8]) or "nothing"


def _counted(counter: Counter[str]) -> str:
    shown = ", ".join(f"{key} {n:,}" for key, n in sorted(counter.items(), key=lambda kv: (-kv[1], kv[0]))[:MAX_SOURCES])
    return shown + (f", … {len(counter) - MAX_SOURCES} more" if len(counter) > MAX_SOURCES else "")


def _training(steps: list[Step]) -> str:
    sections = []
    for step in steps:
        if step.manifest.stage in ("tokenizer", "pretrain", "finetune"):
            facts = {k: v for k, v in {**step.manifest.recipe.get("config", {}), **step.manifest.info}.items() if isinstance(v, int | float | str) and not isinstance(v, bool)}
            sections.append(f"### {step.manifest.stage}\n\n" + markdown_table(("setting or figure", "value"), [[k, _shown(v)] for k, v in sorted(facts.items())]))
    return "## Training\n\n" + "\n".join(sections) if sections else "## Training\n\nUnknown: the model has no manifest of llmpipe.\n"


def _scores(model: Path) -> str:
    rows = []
    for step in reports(model):
        for r in read_json(step.path / "results.json")["results"]:
            if r["class"] is r["language"] is r["source"] is None:
                low, high = r["ci95"] or (None, None)
                rows.append([r["task"], r["metric"], r["system"], f"{r['value']:.4f}", f"{low:.4f} to {high:.4f}" if low is not None else "", f"{r['n']:,}"])
    return "## Scores\n\n" + markdown_table(("task", "metric", "system", "value", "95 % interval", "n"), rows) if rows else "## Scores\n\nNot evaluated, as far as the directories beside the model tell.\n"


def _pipeline(model: Path, labels: list[str] | None) -> str:
    """Name what the model does as model hubs do."""
    if labels is not None:
        return "text-classification"
    return {"decoder": "text-generation", "encoder": "fill-mask", "encoder-decoder": "text2text-generation"}[load_config(model).stack]


def _use(task: str) -> str:
    lines = {
        "fill-mask": ["from transformers import pipeline", "", 'fill = pipeline("fill-mask", model="PATH_OF_THIS_DIRECTORY")', 'print(fill(f"… {fill.tokenizer.mask_token} …"))'],
        "text2text-generation": [  # transformers has no pipeline for it any more
            "from transformers import AutoModelForSeq2SeqLM, AutoTokenizer", "", 'path = "PATH_OF_THIS_DIRECTORY"',
            "model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)",
            'print(tokenizer.decode(model.generate(**tokenizer("…", return_tensors="pt"))[0]))',
        ],
    }.get(task, ["from transformers import pipeline", "", f'print(pipeline("{task}", model="PATH_OF_THIS_DIRECTORY")("…"))'])  # fmt: skip
    return "\n".join(["## Use", "", "```python", *lines, "```", ""])


def _shown(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.6g}" if isinstance(value, float) else str(value)
