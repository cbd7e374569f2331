"""The kinds of tokenizer, on the `tokenizers` library: byte-level BPE, Unigram, WordPiece; and the files that make a directory.

    tokenizer = KINDS["bpe"](texts, vocab_size=4096, max_run_chars=64, num_sentinels=32)
    write_tokenizer(directory, tokenizer)

BPE and WordPiece depend on the texts alone, not on their order, on threads or on the machine. Unigram's training in the
library adds up floats in the order of threads and hash tables: two runs differ in a few pieces, and are as good.
"""

from __future__ import annotations

import json
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from llmpipe.data.files import atomic_write, write_json
from llmpipe.tokenizer.directory import QWEN2_SPLIT
from llmpipe.tokenizer.special import CHAT_TEMPLATE, ROLES, UNKNOWN, special_tokens

MAX_PIECE_CHARS = 16  # of a Unigram piece, as in SentencePiece
MAX_WORD_CHARS = 100  # WordPiece gives up on longer words, as BERT's does: they become the unknown token
COVERAGE = 0.9998  # of all characters are in the alphabet of Unigram and WordPiece, if half the vocabulary is enough for them
MARK = "ꙮ"  # a letter that one book of 1429 has
ASCII = "".join(map(chr, range(32, 127)))


def train_bpe(texts: Iterable[str], *, vocab_size: int, max_run_chars: int, num_sentinels: int) -> Tokenizer:
    """Byte-level BPE with Qwen2's split pattern: any text comes back as it was; llama.cpp knows the pattern.

    Special tokens take the first ids, then the 256 bytes, then merges in order of their gain.
    """
    split = pre_tokenizers.Split(Regex(QWEN2_SPLIT), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return _train_bpe(texts, pre_tokenizers.Sequence([split, byte_level]), vocab_size, max_run_chars, num_sentinels)


def train_gpt2_like(texts: Iterable[str], *, vocab_size: int, max_run_chars: int, num_sentinels: int) -> Tokenizer:
    """Byte-level BPE with GPT-2's split pattern, to compare with."""
    return _train_bpe(texts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True), vocab_size, max_run_chars, num_sentinels)


def _train_bpe(texts: Iterable[str], split: pre_tokenizers.PreTokenizer, vocab_size: int, max_run_chars: int, num_sentinels: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(byte_fallback=False, ignore_merges=False))
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=_added(num_sentinels),
    )
    _train(tokenizer, (piece for text in texts for piece in cut_runs(text, max_run_chars)), trainer)
    return tokenizer


def train_unigram(texts: Iterable[str], *, vocab_size: int, max_run_chars: int, num_sentinels: int) -> Tokenizer:
    """Unigram with byte fallback and Qwen2's split pattern: any text comes back as it was.

    Special tokens, then `<0x00>` to `<0xFF>` for characters that have no piece, then pieces by probability. Spaces stay
    spaces within pieces, so that a text's own `▁` survives. The split pattern cuts `<0x41>` and special tokens that a text
    spells out, so these never match. Reads `texts` three times.
    """
    reserved = special_tokens(num_sentinels)
    room = vocab_size - len(reserved) - 256
    alphabet = common_characters(texts, room // 2, always=ASCII + "\n\t")
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(QWEN2_SPLIT), behavior="isolated")
    trainer = trainers.UnigramTrainer(
        vocab_size=room + 1, special_tokens=[], unk_token=None, show_progress=False, max_piece_length=MAX_PIECE_CHARS, initial_alphabet=list(ASCII + "\n\t")
    )
    rare = re.compile(f"[^{''.join(map(re.escape, sorted(alphabet - {MARK})))}]+")

    def pieces_of_texts() -> Iterator[str]:
        for text in texts:
            for part in rare.split(text):
                if part:
                    yield from cut_runs(part, max_run_chars)

    # The trainer takes as candidates what occurs in two different words, however often one word occurs. So frequent words
    # are shown once more with a mark at their end: without it 16,384 pieces held 6 % less English.
    words = _frequent_words(pieces_of_texts(), tokenizer.pre_tokenizer, limit=4 * vocab_size)
    _train(tokenizer, (text for source in (pieces_of_texts(), (f"{word}{MARK}" for word in words)) for text in source), trainer)
    pieces = [(piece, score) for piece, score in json.loads(tokenizer.to_str())["model"]["vocab"] if piece not in reserved and MARK not in piece][:room]
    floor = min(score for _, score in pieces)
    vocab = [(t, 0.0) for t in reserved] + [(f"<0x{byte:02X}>", floor) for byte in range(256)] + pieces
    whole = Tokenizer(models.Unigram(vocab, unk_id=reserved.index(UNKNOWN), byte_fallback=True))
    whole.pre_tokenizer = tokenizer.pre_tokenizer
    whole.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    whole.add_special_tokens(_added(num_sentinels))
    return whole


def train_wordpiece(texts: Iterable[str], *, vocab_size: int, max_run_chars: int, num_sentinels: int) -> Tokenizer:
    """WordPiece as BERT's (cased; each Chinese character a word). Not lossless: it drops spaces, control characters and rare characters.

    Special tokens, then the alphabet as it stands within words (`##a`), then as it begins them, then merges. Reads `texts` twice.
    """
    reserved = special_tokens(num_sentinels)
    alphabet = sorted(c for c in common_characters(texts, (vocab_size - len(reserved)) // 4, always=ASCII) if not c.isspace() and unicodedata.category(c)[0] != "C")
    tokenizer = Tokenizer(models.WordPiece(unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False, strip_accents=False, handle_chinese_chars=True, clean_text=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    # The trainer numbers what it meets within words as its hash table has it; as special tokens they are numbered first, by us.
    inside = [f"##{c}" for c in alphabet if not _stands_alone(c)]
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size, min_frequency=2, show_progress=False, initial_alphabet=alphabet, limit_alphabet=len(alphabet),
        special_tokens=[AddedToken(t, special=True, normalized=False) for t in [*reserved, *inside]],
    )
    _train(tokenizer, (piece for text in texts for piece in cut_runs(text, max_run_chars)), trainer)
    vocab = json.loads(tokenizer.to_str())["model"]["vocab"]
    whole = Tokenizer(models.WordPiece(vocab, unk_token=UNKNOWN, max_input_chars_per_word=MAX_WORD_CHARS))
    whole.normalizer, whole.pre_tokenizer = tokenizer.normalizer, tokenizer.pre_tokenizer
    whole.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    whole.add_special_tokens(_added(num_sentinels))
    return whole


def _frequent_words(texts: Iterator[str], split: pre_tokenizers.PreTokenizer, *, limit: int) -> list[str]:
    counter = Tokenizer(models.WordLevel(unk_token=UNKNOWN))
    counter.pre_tokenizer = split
    _train(counter, texts, trainers.WordLevelTrainer(vocab_size=limit, min_frequency=2, show_progress=False))
    return sorted(word for word in counter.get_vocab() if 1 < len(word) <= MAX_PIECE_CHARS)


KINDS: dict[str, Callable[..., Tokenizer]] = {"bpe": train_bpe, "unigram": train_unigram, "wordpiece": train_wordpiece}


def _added(num_sentinels: int) -> list[AddedToken]:
    return [AddedToken(t, special=True, normalized=False) for t in special_tokens(num_sentinels)]


def _train(tokenizer: Tokenizer, pieces: Iterator[str], trainer: trainers.Trainer) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "true"  # encoding turns it off, see encode.py
    tokenizer.train_from_iterator(pieces, trainer=trainer)


def cut_runs(text: str, max_chars: int) -> list[str]:
    """Cut a text inside its runs of more than `max_chars` characters without a space; other text stays whole."""
    pieces, start = [], 0
    for run in re.finditer(rf"\S{{{max_chars + 1},}}", text):
        for cut in range(run.start() + max_chars, run.end(), max_chars):
            pieces.append(text[start:cut])
            start = cut
    return [*pieces, text[start:]]


def common_characters(texts: Iterable[str], limit: int, *, always: str) -> set[str]:
    """Find the most frequent characters, up to COVERAGE of the text or `limit` of them; those of `always` count as found."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    del counts["\0"]  # the Unigram trainer puts it between words
    missing, found = (1 - COVERAGE) * counts.total(), set(always)
    rest = counts.total() - sum(counts[c] for c in found)
    for character, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        if len(found) >= limit or rest <= missing:
            break
        if character not in found:
            found.add(character)
            rest -= count
    return found


def _stands_alone(character: str) -> bool:
    """Whether BERT's pre-tokenizer makes a word of this character by itself: Chinese ones and punctuation."""
    code = ord(character)
    chinese = 0x3400 <= code <= 0x4DBF or 0x4E00 <= code <= 0x9FFF or 0xF900 <= code <= 0xFAFF or 0x20000 <= code <= 0x2CEAF or 0x2F800 <= code <= 0x2FA1F
    return chinese or unicodedata.category(character)[0] == "P" or (character in ASCII and not character.isalnum())


def write_tokenizer(directory: Path, tokenizer: Tokenizer) -> list[Path]:
    """Write tokenizer.json, the settings with which `transformers` takes it as it is, and the template of conversations."""
    atomic_write(directory / "tokenizer.json", tokenizer.to_str(pretty=False) + "\n")
    others = [t.content for _, t in sorted(tokenizer.get_added_tokens_decoder().items()) if t.special and t.content not in ROLES.values()]
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{f"{role}_token": token for role, token in ROLES.items()},
        "additional_special_tokens": others,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1_000_000,
    }
    write_json(directory / "tokenizer_config.json", settings)
    atomic_write(directory / "chat_template.jinja", CHAT_TEMPLATE + "\n")
    return [directory / name for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")]
