"""Configs: types come from the dataclass, all faults are shown at once, and the nearest name is offered."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
import yaml

from llmpipe.config import as_dict, cosmetic, diff, load, recipe_of, template, to_yaml
from llmpipe.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Near:
    threshold: float = 0.7
    """Jaccard similarity. 相似度。"""
    num_bands: int = 14


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    near: Near | None = field(default_factory=Near)
    """Near duplicates; null turns them off."""
    languages: list[str] = field(default_factory=list)
    pii: Literal["redact", "drop", "off"] = "redact"
    lr: float = 1e-3
    steps: int | None = None
    tokens: int | None = None
    private: bool | list[str] = False
    block_list: Path | None = None
    workers: int = cosmetic(1)

    def __post_init__(self) -> None:
        if self.steps and self.tokens:
            raise ValueError("give one of steps and tokens, not both")


def read(text: str = "", tmp_path: Path | None = None, **kwargs):
    file = None
    if text:
        file = tmp_path / "config.yaml"
        file.write_text(text, encoding="utf-8")
    return load(Config, stage="clean", file=file, environ=kwargs.pop("environ", {}), **kwargs)


def test_types_come_from_the_dataclass_not_from_yaml(tmp_path):
    config = read("lr: 6e-4\nlanguages: [no, zh, 1e3]\nsteps: 1e6\nprivate: ['10.0.0.0/8']\n", tmp_path)
    assert config.lr == 6e-4 and config.languages == ["no", "zh", "1e3"] and config.steps == 1_000_000
    assert config.private == ["10.0.0.0/8"]
    assert read(sets=["private=true"]).private is True


def test_later_sources_win(tmp_path):
    environ = {"LLMPIPE_CLEAN_NEAR__THRESHOLD": "0.8", "LLMPIPE_CLEAN_LR": "0.2", "LLMPIPE_CRAWL_LR": "9"}
    config = read("near: {threshold: 0.6, num_bands: 20}\nlr: 0.1\n", tmp_path, environ=environ, sets=["lr=0.3"], flags={"lr": 0.4, "steps": None})
    assert config.near == Near(threshold=0.8, num_bands=20) and config.lr == 0.4


def test_null_turns_an_optional_part_off_and_a_quoted_null_is_text():
    assert read(sets=["near=null"]).near is None
    assert read(sets=["languages=['null']"]).languages == ["null"]


def test_paths_in_yaml_are_relative_to_it_and_in_set_to_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert read("block_list: lists/a.txt\n", tmp_path).block_list == tmp_path / "lists/a.txt"
    assert read(sets=["block_list=b.txt"]).block_list == tmp_path / "here/b.txt"


def test_all_faults_at_once_with_dotted_paths_and_nearest_names(tmp_path):
    with pytest.raises(UsageError) as caught:
        read("neer: 1\nnear: {treshold: 0.5, num_bands: many}\npii: redacted\nlanguages: {a: 1}\n", tmp_path)
    message = caught.value.message
    assert caught.value.exit_code == 2
    for part in (
        "neer: unknown key; did you mean near?",
        "near.treshold: unknown key; did you mean threshold?",
        "near.num_bands: expected a whole number, got 'many'",
        "pii: 'redacted' is not one of redact, drop, off; did you mean redact?",
        "languages: expected a list",
    ):
        assert part in message


def test_fields_that_exclude_each_other(tmp_path):
    with pytest.raises(UsageError, match="one of steps and tokens"):
        read("steps: 5\ntokens: 10\n", tmp_path)


@pytest.mark.parametrize(
    ("text", "part"),
    [("a: [1", "not valid YAML"), ("lr: 1\nlr: 2\n", "given twice"), ("- a\n", "mapping"), ("a: &a [x]\nb: [*a, *a, *a]\n", "unknown key")],
)
def test_broken_yaml_is_a_usage_error(text, part, tmp_path):
    with pytest.raises(UsageError, match=part):
        read(text, tmp_path)


def test_yaml_tags_build_no_objects(tmp_path):
    config = read(f"languages: [!!python/object/apply:os.mkdir ['{tmp_path}/made']]\n".replace("languages: [", "languages: !!seq ["), tmp_path, sets=["languages=[zh]"])
    assert config.languages == ["zh"] and not (tmp_path / "made").exists()


def test_billion_laughs_ends_quickly(tmp_path):
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    with pytest.raises(UsageError):
        read("\n".join(levels), tmp_path)


def test_recipe_leaves_out_cosmetic_fields_and_takes_files_by_content(tmp_path):
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("坏词\nbad\n", encoding="utf-8")
    a, b = (recipe_of(read(sets=[f"block_list={tmp_path / name}", "workers=7"])) for name in ("a.txt", "b.txt"))
    assert a == b and "workers" not in a
    (tmp_path / "b.txt").write_text("other", encoding="utf-8")
    assert recipe_of(read(sets=[f"block_list={tmp_path / 'b.txt'}"])) != a


def test_diff_names_the_leaf():
    old, new = recipe_of(read()), recipe_of(read(sets=["near.num_bands=20", "lr=0.5"]))
    assert diff(old, new) == ["lr 0.001 -> 0.5", "near.num_bands 14 -> 20"]


def test_template_and_resolved_yaml_load_again(tmp_path):
    written = template(Config)
    assert "# Jaccard similarity. 相似度。" in written
    assert read(written, tmp_path) == Config()
    assert read(to_yaml(Config()), tmp_path) == Config()
    assert yaml.safe_load(to_yaml(Config())) == as_dict(Config())
