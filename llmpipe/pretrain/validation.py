"""Score a model by its own objective on held-out tokens, with the same masks and spans at every evaluation of every run.

    evaluate = evaluate_objective(run, tokens.split("valid"), config, shape); evaluate()      # {"val_loss", "val_ppl"}

For mlm: the loss and perplexity of the masked tokens, at 15 % whatever is trained with. For span: the loss of the targets.
Bits per byte are not among them: neither model gives a text a probability. What `clm` has is in job.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from llmpipe.data.tokens import TokenSplit
from llmpipe.training.compute import autocast
from llmpipe.training.objectives import CausalLM, MaskedLM
from llmpipe.training.parallel import reshard

if TYPE_CHECKING:
    from llmpipe.pretrain.shape import Shape
    from llmpipe.pretrain.stage import Config
    from llmpipe.training.loop import Run


def evaluate_objective(run: Run, valid: TokenSplit, config: Config, shape: Shape) -> Callable[[], dict[str, Any]] | None:
    """Return a function that scores the start of the valid split in windows side by side; None if it is shorter than one.

    Processes share the windows. Those of the last batch that have no part of their own pass over the first once more, uncounted:
    sharded weights are gathered together.
    """
    assert not isinstance(run.objective, CausalLM)
    objective, world = run.objective.for_evaluation(), run.world
    width = objective.window(shape.seq_len)
    number = min(len(valid), config.eval_tokens) // width
    if not number:
        return None
    batches = [range(i, min(i + shape.micro_batch, number)) for i in range(0, number, shape.micro_batch)]
    batches += [range(0)] * (-len(batches) % world.size)

    @torch.no_grad()
    def evaluate() -> dict[str, Any]:
        run.model.eval()
        nats, count = 0.0, 0
        for numbers in batches[world.rank :: world.size]:
            windows = np.stack([valid.window(k * width, width) for k in numbers or [0]])
            batch = objective.batch(windows, numbers or [0])
            with autocast(config.device, config.dtype):
                summed = float(objective.loss(run.model, batch.to(config.device)))
            nats, count = (nats + summed, count + batch.count) if numbers else (nats, count)
        reshard(run.model, world)
        nats, count = world.sum([nats, float(count)])
        loss = nats / max(count, 1)
        return {"val_loss": loss, **({"val_ppl": math.exp(min(loss, 700.0))} if isinstance(objective, MaskedLM) else {})}

    return evaluate
