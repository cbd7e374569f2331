"""Turn `auto` into the device that will be used, before the fingerprint is taken.

    choose_device("auto")       # "cuda" where there is one, else "cpu"
"""

from __future__ import annotations

from llmpipe.errors import UsageError


def choose_device(wanted: str) -> str:
    import torch

    if wanted == "cuda" and not torch.cuda.is_available():
        raise UsageError("device: cuda is asked for, but this machine offers no GPU to torch", hint="leave it at auto, or see llmpipe doctor")
    return ("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted


def bf16_is_fast(device: str) -> bool:
    """Whether bf16 arithmetic is native here. Without it a CPU emulates, up to hundreds of times slower than fp32."""
    import torch

    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
