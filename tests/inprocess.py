"""Run a stage in this process: the same as the command, without the second that a fresh interpreter takes."""

from __future__ import annotations

from pathlib import Path

from llmpipe.config import load
from llmpipe.stage import STAGES, Options, Outcome, Request, run_stage


def run(name: str, given: Path, output: Path, *sets: str, dry_run: bool = False) -> Outcome:
    stage = STAGES[name]
    config = load(stage.load().Config, stage=name, sets=sets, environ={})
    return run_stage(stage, config, Request(inputs=(given,), output=output), Options(workers=1, dry_run=dry_run))
