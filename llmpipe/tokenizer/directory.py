"""A tokenizer's files on disk: read them, copy them beside a model, find the special ids. No torch here.

    tokenizer = load_tokenizer(directory)         # a tokenizers.Tokenizer
    roles = token_roles(directory)                # roles.mask, roles.cls, roles.sep, roles.pad, roles.sentinels: ids, or None
    roles.need("mask", "cls", why="...")          # or an error that names what is missing
    special_ids(directory)                        # {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
    gguf_pre(directory)                           # "qwen2": llama.cpp's name for the way the tokenizer splits text, or None

Reads tokenizer.json, tokenizer_config.json and special_tokens_map.json, ours or any that `transformers` wrote.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmpipe.data.files import atomic_write, read_json, write_json
from llmpipe.errors import InputError
from llmpipe.tokenizer.special import TURN_END, TURN_START

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")

# Qwen2's: contractions, words with one leading mark or space, single digits, punctuation with its line ends, spaces.
QWEN2_SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# Llama 3's: the same but for digits, which it takes by three.
LLAMA3_SPLIT = QWEN2_SPLIT.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
GGUF_SPLITS = {QWEN2_SPLIT: "qwen2", LLAMA3_SPLIT: "llama-bpe"}
"""What llama.cpp calls the patterns that it knows (`tokenizer.ggml.pre`), of those met here."""

SPELLINGS = {"mask": ("<|mask|>", "[MASK]", "<mask>"), "cls": ("<|cls|>", "[CLS]", "<s>"), "sep": ("<|sep|>", "[SEP]", "</s>")}
"""What is tried where a directory names no such token: old ones of BERT leave that to a class in `transformers`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Roles:
    """Ids of a tokenizer's special tokens by what they are for; None: it has no such token."""

    path: Path
    """The directory."""
    vocab_size: int
    """With added tokens."""
    bos: int | None
    """Without a begin token of its own a model takes the end token for it: in the token stream that is what stands before a document."""
    eos: int | None
    pad: int | None
    unk: int | None
    mask: int | None
    cls: int | None
    sep: int | None
    turn_start: int | None
    turn_end: int | None
    sentinels: tuple[int, ...]
    """`<extra_id_0>`, `<extra_id_1>`, …: what stands for the first removed span, the second, …"""
    all: frozenset[int]
    """Every special id: what a masked or random token must not be."""

    def need(self, *names: str, why: str) -> None:
        """Raise `InputError` if the tokenizer lacks one of these tokens."""
        if missing := [name for name in names if getattr(self, name) in (None, ())]:
            raise InputError(f"{self.path}: the tokenizer has no token for {', '.join(missing)}, and {why}", hint="llmpipe tokenizer reserves them; or name them in tokenizer_config.json")


def load_tokenizer(directory: Path) -> Tokenizer:
    """Read tokenizer.json. Special tokens written out in a text become their ids; set `encode_special_tokens` to keep them text."""
    from tokenizers import Tokenizer

    path = directory / "tokenizer.json"
    if not path.is_file():
        raise InputError(f"{directory}: no tokenizer.json", hint="llmpipe tokenizer --input DOCS --output DIR trains one")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception for whatever is wrong with the file
        raise InputError(f"{path}: not a tokenizer ({error})", hint=f"llmpipe verify {directory}") from None


def tokenizer_settings(directory: Path) -> dict[str, Any]:
    """Read tokenizer_config.json; tokens that only the older special_tokens_map.json names are added."""
    settings: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        path = directory / name
        read = read_json(path) if path.is_file() else {}
        if not isinstance(read, dict):
            raise InputError(f"{path}: expected an object")
        settings.update(read)
    return settings


def token_roles(directory: Path) -> Roles:
    """Find a tokenizer's special tokens: by role as its settings name them, those of turns and spans by their text, as are mask, cls and sep that no setting names."""
    tokenizer, settings = load_tokenizer(directory), tokenizer_settings(directory)
    added = tokenizer.get_added_tokens_decoder()
    ids: dict[str, int | None] = {"turn_start": tokenizer.token_to_id(TURN_START), "turn_end": tokenizer.token_to_id(TURN_END)}
    for role in ("bos", "eos", "pad", "unk", "mask", "cls", "sep"):
        token = settings.get(f"{role}_token")
        token = token.get("content") if isinstance(token, dict) else token
        ids[role] = next((n for t in (SPELLINGS.get(role, ()) if token is None else (token,)) if (n := tokenizer.token_to_id(t)) is not None), None)
    if ids["bos"] is None:
        ids["bos"] = ids["eos"]
    numbered = {int(match[1]): number for number, token in added.items() if (match := re.fullmatch(r"<extra_id_(\d+)>", token.content))}
    special = {number for number, token in added.items() if token.special} | {i for i in ids.values() if i is not None}
    return Roles(**ids, path=directory, vocab_size=tokenizer.get_vocab_size(with_added_tokens=True), sentinels=tuple(numbered[n] for n in sorted(numbered)), all=frozenset(special))


def special_ids(directory: Path) -> dict[str, int]:
    """Name the begin, end and padding ids as config.json does, those that the directory has."""
    roles = token_roles(directory)
    found = {"bos_token_id": roles.bos, "eos_token_id": roles.eos, "pad_token_id": roles.pad}
    return {key: number for key, number in found.items() if number is not None}


def gguf_pre(directory: Path) -> str | None:
    """Return llama.cpp's name for a byte-level BPE's split pattern; None for a pattern or a kind that it does not know by one."""
    raw = read_json(directory / "tokenizer.json")
    if raw.get("model", {}).get("type") != "BPE" or raw.get("pre_tokenizer") is None:
        return None
    steps = raw["pre_tokenizer"].get("pretokenizers") or [raw["pre_tokenizer"]]
    if [step.get("type") for step in steps] == ["Split", "ByteLevel"]:
        return GGUF_SPLITS.get(steps[0]["pattern"].get("Regex"))
    return "gpt-2" if len(steps) == 1 and steps[0].get("type") == "ByteLevel" and steps[0].get("use_regex", True) else None


def save_tokenizer(directory: Path, source: Path, *, model_max_length: int) -> list[Path]:
    """Copy a tokenizer's files, naming the class that takes the ids from tokenizer.json as they are.

    Left to itself, `transformers` infers a class from some model types, and that class changes the ids.
    """
    written = []
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            atomic_write(directory / name, (source / name).read_bytes())
            written.append(directory / name)
    settings = tokenizer_settings(source)
    settings.pop("auto_map", None)
    settings.update(tokenizer_class="PreTrainedTokenizerFast", model_max_length=model_max_length, clean_up_tokenization_spaces=False)
    write_json(directory / "tokenizer_config.json", settings)
    return written if directory / "tokenizer_config.json" in written else [*written, directory / "tokenizer_config.json"]
