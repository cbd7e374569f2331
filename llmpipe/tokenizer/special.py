"""The special tokens that every tokenizer of llmpipe reserves, and what each is for.

    END                     # ends each document in the token stream; also what a model generates to stop
    special_tokens(32)      # all of them in order of their ids, 0 upwards

`token_roles` in directory.py finds their ids in any tokenizer's directory, ours or another's.
"""

from __future__ import annotations

END = "<|endoftext|>"
PAD = "<|pad|>"
TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"
MASK = "<|mask|>"
CLS = "<|cls|>"
SEP = "<|sep|>"
UNKNOWN = "<|unk|>"

ROLES = {"eos": END, "pad": PAD, "mask": MASK, "cls": CLS, "sep": SEP, "unk": UNKNOWN}
"""Under the names that `transformers` has for them: eos_token, pad_token, …"""

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""ChatML: each turn between <|im_start|>ROLE and <|im_end|>."""


def sentinel(number: int) -> str:
    """Name the token that stands for the n-th removed span, as T5 does."""
    return f"<extra_id_{number}>"


def special_tokens(num_sentinels: int) -> list[str]:
    return [END, PAD, TURN_START, TURN_END, MASK, CLS, SEP, UNKNOWN, *(sentinel(i) for i in range(num_sentinels))]
