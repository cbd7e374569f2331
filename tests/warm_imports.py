"""What the server of tests/warm.py loads before it forks: everything slow, and nothing that computes."""

import torch._dynamo  # noqa: F401  optimizers import it on their first step

import llmpipe.cli
import llmpipe.pretrain.job  # noqa: F401
