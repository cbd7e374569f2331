"""What a model has to beat: the most frequent class, general compressors, and a uniform distribution over bytes.

    majority(train_labels, num_classes=9)          # the class number to answer always
    compressed_bits_per_byte(texts)                # {"xz": 1.32, "zstd": 1.41, "uniform": 8.0}

The linear bag of n-grams stands in linear.py.
"""

from __future__ import annotations

import lzma

import numpy as np
import pyarrow as pa

XZ_PRESET = 9
ZSTD_LEVEL = 19


def majority(labels: np.ndarray, *, num_classes: int) -> int:
    """Return the most frequent class; of several the first."""
    return int(np.bincount(labels, minlength=num_classes).argmax())


def compressed_bits_per_byte(texts: list[str]) -> dict[str, float]:
    """Compress the UTF-8 bytes of all texts, one after the other with nothing between them, as one stream.

    `xz` is `lzma` with preset 9, `zstd` is level 19, container overhead (60 bytes for xz) included: what a file on disk
    would take. A compressor starts knowing nothing and adapts to these texts; a language model was trained on others.
    """
    data = "".join(texts).encode("utf-8", "replace")
    if not data:
        return {}
    sizes = {
        "xz": len(lzma.compress(data, preset=XZ_PRESET)),
        "zstd": pa.Codec("zstd", compression_level=ZSTD_LEVEL).compress(data).size,
        "uniform": len(data),
    }
    return {name: 8 * size / len(data) for name, size in sizes.items()}
