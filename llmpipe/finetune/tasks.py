"""The table of tasks: what `task` in a finetune config and `tasks` in an eval config can name.

    task = TASKS["classify"]
"""

from __future__ import annotations

from llmpipe.evaluate.score import LANGUAGE
from llmpipe.finetune.classify import CLASSIFY
from llmpipe.finetune.task import Task

TASKS: dict[str, Task] = {"classify": CLASSIFY, "language": LANGUAGE}
