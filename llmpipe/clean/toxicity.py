"""A place for a toxicity model of your own: clean asks it for a score of every document.

    llmpipe clean --input docs --output cleaned --set toxicity.scorer=my_models.toxic:Scorer --set toxicity.threshold=0.8

`package.module:Name` is a function, or a class that is made once a process without arguments. It is called with a list of
texts and returns as many numbers; with an attribute `takes_block = True` it gets the Block instead (code points, tokens
and hashes, text/block.py). llmpipe brings no such model along: the good ones are large, and each has its own bias.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from llmpipe.clean.rules import Check
from llmpipe.clean.statistics import Stats
from llmpipe.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Toxicity:
    """Scores of a model from outside."""

    scorer: str
    """package.module:Name of a function or class: texts in, one number a text out."""
    threshold: float = 0.5
    """Drop a document with a higher score."""
    version: str = ""
    """Which model stands behind the name; another one makes the output stale."""

    def __post_init__(self) -> None:
        find_scorer(self.scorer)

    def __call__(self, stats: Stats) -> Iterator[Check]:
        scorer = _made(self.scorer)
        block = stats.block
        scores = np.asarray(scorer(block if getattr(scorer, "takes_block", False) else block.texts), float)
        if scores.shape != (block.num_docs,):
            raise UsageError(f"toxicity: {self.scorer} gave scores of shape {scores.shape} for {block.num_docs} texts", hint="it has to return one number a text")
        yield Check("toxicity.threshold", "toxicity", scores, self.threshold, scores > self.threshold)


def find_scorer(name: str) -> Any:
    """Import what `package.module:Name` names; raise `ValueError` that says what is wrong with it."""
    module, colon, attribute = name.partition(":")
    if not colon:
        raise ValueError(f"scorer: {name!r} is not of the form package.module:Name")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"scorer: {name!r} cannot be imported ({error})") from None
    if not callable(found):
        raise ValueError(f"scorer: {name!r} is not callable")
    return found


@cache
def _made(name: str) -> Callable[[Any], Any]:
    found = find_scorer(name)
    return found() if isinstance(found, type) else found
