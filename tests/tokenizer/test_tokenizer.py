"""The tokenizer stage: lossless, deterministic, with its special tokens in their places."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from llmpipe.data.manifest import read_manifest
from llmpipe.tokenizer.directory import load_tokenizer, special_ids
from llmpipe.tokenizer.special import END, PAD, TURN_END, special_tokens
from llmpipe.tokenizer.train import cut_runs, train_bpe
from tests.material import bilingual_rows, chinese, english

TEXTS = [english(1, 60), chinese(2, 60), "naïve café 你好，世界！ 🙂👍🏽 e\u0301 \r\n\t  x=1234;\x00 ﷺ \u200b𠮷"]


def train(texts: list[str], vocab_size: int = 500):
    return train_bpe(texts, vocab_size=vocab_size, max_run_chars=64, num_sentinels=4)


def test_any_text_comes_back_as_it_was() -> None:
    tokenizer = train(TEXTS[:2])
    for text in [*TEXTS, "".join(map(chr, range(1, 0x800)))]:
        assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_special_tokens_have_the_first_ids_and_bytes_follow() -> None:
    tokenizer = train(TEXTS)
    assert [tokenizer.id_to_token(i) for i in range(12)] == special_tokens(4)
    assert len(tokenizer.encode("\x00").ids) == 1
    assert tokenizer.encode(f"a{END}").ids[-1] == 0


def test_vocabulary_does_not_depend_on_order_or_threads(tmp_path: Path) -> None:
    script = "import sys; from tests.tokenizer.test_tokenizer import TEXTS, train; sys.stdout.write(train(TEXTS if sys.argv[1] == 'a' else TEXTS[::-1]).to_str())"
    outs = []
    for order, threads in (("a", "1"), ("b", "4")):
        environ = {**os.environ, "RAYON_NUM_THREADS": threads}
        outs.append(subprocess.run([sys.executable, "-c", script, order], capture_output=True, text=True, check=True, env=environ).stdout)
    assert outs[0] == outs[1] and len(outs[0]) > 1000


def test_long_runs_are_cut_and_nothing_is_lost() -> None:
    text = "短 " + "QUJD" * 100 + " 你好" * 3 + "。" * 65
    pieces = cut_runs(text, 64)
    assert "".join(pieces) == text
    assert max(len(word) for piece in pieces for word in piece.split()) <= 64
    assert cut_runs("a b c", 64) == ["a b c"]


def test_stage_writes_what_transformers_reads(tmp_path: Path, make_docs: Callable, run: Callable) -> None:
    from transformers import AutoTokenizer

    make_docs(tmp_path / "docs", bilingual_rows(20))
    done = run("tokenizer", "--input", "docs", "--output", "tok", "--set", "vocab_size=400")
    assert done.returncode == 0, done.stderr
    theirs, ours = AutoTokenizer.from_pretrained(tmp_path / "tok"), load_tokenizer(tmp_path / "tok")
    for text in TEXTS:
        assert theirs(text).input_ids == ours.encode(text).ids
        assert theirs.decode(theirs(text).input_ids) == text
    assert (theirs.eos_token, theirs.pad_token) == (END, PAD)
    assert theirs.convert_tokens_to_ids(TURN_END) == 3
    assert special_ids(tmp_path / "tok") == {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
    info = read_manifest(tmp_path / "tok", kind="tokenizer").info
    assert set(info["bytes_per_token"]) == {"en", "zh"} and all(v > 1.5 for v in info["bytes_per_token"].values())


def test_sample_is_bounded_and_chosen_by_hash(tmp_path: Path, make_docs: Callable, run: Callable) -> None:
    make_docs(tmp_path / "docs", bilingual_rows(100, sentences=30))
    outs = []
    for name in ("a", "b"):
        done = run("tokenizer", "--input", "docs", "--output", name, "--set", "vocab_size=400", "--set", "sample_bytes=50_000")
        assert done.returncode == 0, done.stderr
        outs.append((tmp_path / name / "tokenizer.json").read_bytes())
        assert 25_000 < read_manifest(tmp_path / name, kind="tokenizer").info["sample_bytes"] < 100_000
    assert outs[0] == outs[1]


def test_too_small_a_vocabulary_is_refused(tmp_path: Path, make_docs: Callable, run: Callable) -> None:
    make_docs(tmp_path / "docs", bilingual_rows(2))
    done = run("tokenizer", "--input", "docs", "--output", "tok", "--set", "vocab_size=100")
    assert done.returncode == 2 and "vocab_size 100 is below" in done.stderr
