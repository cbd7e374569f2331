"""A tokenizer's files on disk: read them, copy them beside a model, find the special ids. No torch here.

    tokenizer = load_tokenizer(directory)         # a tokenizers.Tokenizer
    special_ids(directory)                        # {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}

Reads tokenizer.json and tokenizer_config.json, ours or any that `transformers` wrote.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmpipe.data.files import atomic_write, read_json, write_json
from llmpipe.errors import InputError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


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
    path = directory / "tokenizer_config.json"
    settings = read_json(path) if path.is_file() else {}
    if not isinstance(settings, dict):
        raise InputError(f"{path}: expected an object")
    return settings


def special_ids(directory: Path) -> dict[str, int]:
    """Find the ids of the begin, end and padding tokens: {bos,eos,pad}_token_id, those that the directory names.

    Without a begin token of its own a model takes the end token for it: in the token stream that is what stands before a document.
    """
    tokenizer, settings, ids = load_tokenizer(directory), tokenizer_settings(directory), {}
    for role in ("bos", "eos", "pad"):
        token = settings.get(f"{role}_token")
        token = token.get("content") if isinstance(token, dict) else token
        if token is not None and (number := tokenizer.token_to_id(token)) is not None:
            ids[f"{role}_token_id"] = number
    if "eos_token_id" in ids:
        ids.setdefault("bos_token_id", ids["eos_token_id"])
    return ids


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
