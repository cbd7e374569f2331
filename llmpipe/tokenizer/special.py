"""The special tokens that every tokenizer of llmpipe reserves, and what each is for.

    END                     # ends each document in the token stream; also what a model generates to stop
    special_tokens(32)      # all of them in order of their ids, 0 upwards
"""

from __future__ import annotations

END = "<|endoftext|>"
PAD = "<|pad|>"
TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"
MASK = "<|mask|>"
CLS = "<|cls|>"
SEP = "<|sep|>"


def sentinel(number: int) -> str:
    """Name the token that stands for the n-th removed span."""
    return f"<|span_{number}|>"


def special_tokens(num_sentinels: int) -> list[str]:
    return [END, PAD, TURN_START, TURN_END, MASK, CLS, SEP, *(sentinel(i) for i in range(num_sentinels))]
