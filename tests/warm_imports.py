"""What the server of tests/warm.py loads before it forks: everything slow, and nothing that computes."""

import torch._dynamo
import torch.distributed.fsdp  # noqa: F401  what several processes need

import llmpipe.cli
import llmpipe.pretrain.job  # noqa: F401
