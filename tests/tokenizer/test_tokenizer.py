"""The tokenizer stage: lossless, deterministic, with its special tokens in their places."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from llmpipe.data.manifest import read_manifest
from llmpipe.data.tokens import TokensDir
from llmpipe.tokenizer.directory import gguf_pre, load_tokenizer, special_ids, token_roles
from llmpipe.tokenizer.sample import Sample, language_shares
from llmpipe.tokenizer.special import END, MASK, PAD, TURN_END, TURN_START, special_tokens
from llmpipe.tokenizer.train import KINDS, cut_runs, train_bpe, write_tokenizer
from tests.material import bilingual_rows, chinese, english

TEXTS = [english(1, 60), chinese(2, 60), "naïve café 你好，世界！ 🙂👍🏽 e\u0301 \r\n\t  x=1234;\x00 ﷺ \u200b𠮷"]


def train(texts: list[str], vocab_size: int = 500):
    return train_bpe(texts, vocab_size=vocab_size, max_run_chars=64, num_sentinels=4)


def train_kind(kind: str, texts: list[str] = TEXTS) -> Tokenizer:
    return KINDS[kind](texts, vocab_size=800, max_run_chars=64, num_sentinels=4)


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_any_text_comes_back_as_it_was(kind: str) -> None:
    tokenizer = train_kind(kind, TEXTS[:2])
    for text in [*TEXTS, "".join(map(chr, range(1, 0x800))), "<0x41><0xE4> ▁▁ ##a [UNK]", "𠮷野家 ﷺ 👩‍👩‍👧‍👧 \ufeff"]:
        tokenizer.encode_special_tokens = True
        assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_wordpiece_drops_spaces_and_rare_characters_and_nothing_else() -> None:
    tokenizer = train_kind("wordpiece", TEXTS[:2])
    for text in TEXTS[:2]:
        back = tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False)
        assert back.replace(" ", "") == text.replace(" ", "")
    assert tokenizer.encode("罕見 read").tokens[:2] == ["<|unk|>"] * 2


@pytest.mark.parametrize("kind", list(KINDS))
def test_hostile_text_is_encoded_in_seconds(kind: str) -> None:
    hostile = ["a" * 1_000_000, "好" * 300_000, "QUJD0+/" * 140_000, " " * 1_000_000 + "x", "\n" * 500_000, "\x00" * 100_000, "e\u0301" * 200_000]
    tokenizer = train_kind(kind, [*TEXTS, *(h[:20_000] for h in hostile)])
    tokenizer.encode_special_tokens = True
    for text in hostile:
        start = time.monotonic()
        ids = tokenizer.encode(text).ids
        assert time.monotonic() - start < 20
        assert kind == "wordpiece" or tokenizer.decode(ids, skip_special_tokens=False) == text


def test_lone_surrogates_have_become_replacement_characters(tmp_path: Path, make_docs: Callable, run: Callable) -> None:
    make_docs(tmp_path / "docs", [*bilingual_rows(10), {"id": "f" * 32, "text": "half \ud83d of a pair 半\udc00 NUL \x00", "language": "zh"}])
    assert run("tokenizer", "--input", "docs", "--output", "tok", "--set", "vocab_size=400").returncode == 0
    assert run("tokenize", "--input", "docs", "--tokenizer", "tok", "--output", "t", "--set", "valid_fraction=0").returncode == 0
    last = list(TokensDir(tmp_path / "t").split("train").documents())[-1]
    assert load_tokenizer(tmp_path / "tok").decode(last.ids[:-1].tolist()) == "half ? of a pair 半? NUL \x00"


def test_special_tokens_have_the_first_ids_and_bytes_follow() -> None:
    tokenizer = train(TEXTS)
    assert [tokenizer.id_to_token(i) for i in range(12)] == special_tokens(4)
    assert len(tokenizer.encode("\x00").ids) == 1
    assert tokenizer.encode(f"a{END}").ids[-1] == 0


@pytest.mark.parametrize("kind", ["bpe", "wordpiece"])
def test_vocabulary_does_not_depend_on_order_or_threads(kind: str) -> None:
    script = "import sys; from tests.tokenizer.test_tokenizer import TEXTS, train_kind; sys.stdout.write(train_kind(sys.argv[2], TEXTS if sys.argv[1] == 'a' else TEXTS[::-1]).to_str())"
    outs = []
    for order, threads in (("a", "1"), ("b", "4")):
        environ = {**os.environ, "RAYON_NUM_THREADS": threads}
        outs.append(subprocess.run([sys.executable, "-c", script, order, kind], capture_output=True, text=True, check=True, env=environ).stdout)
    assert outs[0] == outs[1] and len(outs[0]) > 1000


def test_unigram_runs_compress_alike() -> None:
    """The library's training differs from run to run, so what is held is how well the result does."""
    long = [english(i, 40) for i in range(5)] + [chinese(i, 40) for i in range(5)]
    lengths = [sum(len(e.ids) for e in train_kind("unigram", long).encode_batch(long)) for _ in range(2)]
    assert abs(lengths[0] - lengths[1]) < 0.05 * lengths[0]
    assert lengths[0] < 1.5 * sum(len(e.ids) for e in train_kind("bpe", long).encode_batch(long))


def test_long_runs_are_cut_and_nothing_is_lost() -> None:
    text = "短 " + "QUJD" * 100 + " 你好" * 3 + "。" * 65
    pieces = cut_runs(text, 64)
    assert "".join(pieces) == text
    assert max(len(word) for piece in pieces for word in piece.split()) <= 64
    assert cut_runs("a b c", 64) == ["a b c"]


@pytest.mark.parametrize("kind", list(KINDS))
def test_stage_writes_what_transformers_reads(tmp_path: Path, make_docs: Callable, run: Callable, kind: str) -> None:
    from transformers import AutoTokenizer

    make_docs(tmp_path / "docs", bilingual_rows(20))
    done = run("tokenizer", "--input", "docs", "--output", "tok", "--set", f"kind={kind}", "--set", "vocab_size=700")
    assert done.returncode == 0, done.stderr
    theirs, ours = AutoTokenizer.from_pretrained(tmp_path / "tok"), load_tokenizer(tmp_path / "tok")
    for text in [*TEXTS, f"a{MASK}好 <extra_id_3>{END}"]:
        assert theirs(text).input_ids == ours.encode(text).ids
        assert kind == "wordpiece" or theirs.decode(theirs(text).input_ids) == text
    assert (theirs.eos_token, theirs.pad_token, theirs.mask_token) == (END, PAD, MASK)
    roles = token_roles(tmp_path / "tok")
    assert (theirs.mask_token_id, theirs.cls_token_id, theirs.sep_token_id, theirs.pad_token_id, theirs.unk_token_id) == (roles.mask, roles.cls, roles.sep, roles.pad, roles.unk)
    assert (theirs.convert_tokens_to_ids(TURN_START), theirs.convert_tokens_to_ids(TURN_END)) == (roles.turn_start, roles.turn_end) == (2, 3)
    assert [theirs.convert_ids_to_tokens(i) for i in roles.sentinels] == [f"<extra_id_{n}>" for n in range(32)]
    assert set(theirs.all_special_ids) == roles.all
    assert special_ids(tmp_path / "tok") == {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
    chat = theirs.apply_chat_template([{"role": "user", "content": "你好 hi"}], tokenize=False, add_generation_prompt=True)
    assert chat == f"{TURN_START}user\n你好 hi{TURN_END}\n{TURN_START}assistant\n"
    assert gguf_pre(tmp_path / "tok") == ("qwen2" if kind == "bpe" else None)
    info = read_manifest(tmp_path / "tok", kind="tokenizer").info
    assert set(info["bytes_per_token"]) == {"en", "zh"} and all(v > 1.5 for v in info["bytes_per_token"].values())


def test_fertility_is_told_by_language_and_source_beside_a_baseline(tmp_path: Path, make_docs: Callable, run: Callable) -> None:
    rows = [{**r, "source": ("web", "books")[n // 2 % 2]} for n, r in enumerate(bilingual_rows(20))]
    make_docs(tmp_path / "docs", rows)
    write_tokenizer(tmp_path / "small", train(TEXTS, 400))
    assert run("tokenizer", "--input", "docs", "--output", "tok", "--set", "vocab_size=500", "--set", 'compare=["small"]').returncode == 0
    fertility = json.loads(run("inspect", "tok", "--json").stdout)["info"]["fertility"]
    assert [(r["language"], r["source"]) for r in fertility] == [(tag, source) for tag in ("en", "zh") for source in (None, "books", "web")]
    tokenizer, small = load_tokenizer(tmp_path / "tok"), load_tokenizer(tmp_path / "small")
    for row in fertility:
        texts = [r["text"] for r in rows if r["language"] == row["language"] and row["source"] in (None, r["source"])]
        tokens = sum(len(tokenizer.encode(t).ids) for t in texts)
        assert row["bytes"] == sum(len(t.encode()) for t in texts) and row["lossless"] == 1.0
        assert row["bytes_per_token"] == pytest.approx(row["bytes"] / tokens, abs=1e-3)
        assert row["tokens_per_character"] == pytest.approx(tokens / sum(map(len, texts)), abs=1e-3)
        assert row["against"]["small"] == pytest.approx(sum(len(small.encode(t).ids) for t in texts) / tokens, abs=1e-3)
        assert row["against"]["gpt2_like"] > 0.8


def test_sample_is_bounded_and_chosen_by_hash_whatever_the_shards(tmp_path: Path, make_docs: Callable, run: Callable) -> None:
    outs = []
    for name, shards in (("a", 1), ("b", 7)):
        make_docs(tmp_path / f"docs-{name}", bilingual_rows(100, sentences=30), shards=shards)
        done = run("tokenizer", "--input", f"docs-{name}", "--output", name, "--set", "vocab_size=400", "--set", "sample_bytes=50_000", "--set", "baseline=false")
        assert done.returncode == 0, done.stderr
        outs.append((tmp_path / name / "tokenizer.json").read_bytes())
        assert 25_000 < read_manifest(tmp_path / name, kind="tokenizer").info["sample_bytes"] < 100_000
    assert outs[0] == outs[1]


def test_a_small_language_gets_room_in_the_sample(tmp_path: Path, make_docs: Callable) -> None:
    assert language_shares({"en": 100, "zh": 50}, 200) == {"en": 1.0, "zh": 1.0}
    shares = language_shares({"en": 9_900_000, "zh": 100_000}, 1_000_000)
    assert shares["zh"] * 100_000 == pytest.approx(91_325, abs=1) and shares["en"] * 9_900_000 == pytest.approx(908_675, abs=1)
    assert language_shares({"en": 9_900, "zh": 100}, 5_000) == {"en": 4_900 / 9_900, "zh": 1.0}
    rows = bilingual_rows(400)
    sample = Sample([make_docs(tmp_path / "docs", [r for n, r in enumerate(rows) if n % 2 == 0 or n % 40 == 1])], sample_bytes=40_000)
    texts = list(sample)
    assert list(sample) == texts and sample.used == len(texts) and 20_000 < sample.size < 80_000
    assert sum(t in {r["text"] for r in rows[1::2]} for t in texts) >= 5  # of 10; by bytes alone there would be 4


def test_small_vocabularies_keep_their_room(tmp_path: Path) -> None:
    from llmpipe.tokenizer.stage import Config

    assert [Config(vocab_size=n).sentinels for n in (500, 4_095, 4_096, 32_000)] == [32, 32, 100, 100]
    assert Config(vocab_size=500, num_sentinels=0).sentinels == 0


def test_too_small_a_vocabulary_is_refused(tmp_path: Path, make_docs: Callable, run: Callable) -> None:
    make_docs(tmp_path / "docs", bilingual_rows(2))
    done = run("tokenizer", "--input", "docs", "--output", "tok", "--set", "vocab_size=100")
    assert done.returncode == 2 and "vocab_size 100 is below" in done.stderr
    done = run("tokenizer", "--input", "docs", "--output", "tok", "--set", "kind=unigram", "--set", "vocab_size=400")
    assert done.returncode == 2 and "vocab_size 400 is below 672" in done.stderr
