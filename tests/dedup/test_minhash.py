"""Signatures equal datasketch's bit by bit; candidates and verification equal brute force."""

from __future__ import annotations

import unicodedata

import numpy as np
import pytest
from datasketch import MinHash

from llmpipe.dedup.candidates import Sorted, find_runs, sort_bands
from llmpipe.dedup.minhash import CHUNK, EMPTY, band_keys, hashes32, signatures, to_datasketch
from llmpipe.dedup.settings import MinHashConfig
from llmpipe.dedup.shingles import block_of, shingles, text_hashes
from llmpipe.dedup.verify import jaccard
from tests.material import chinese, english

NEAR = MinHashConfig()
TEXTS = [english(1, 40), chinese(2, 40), "hello world", "短文", "", "!!! ???", "한국어 문장을 여기에 적습니다 그리고 더 적습니다", english(3, 4000), chinese(4, 3) + english(5, 3)]


def signed(texts: list[str], seed: int = 1, num_perm: int = 112) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    block = block_of(texts)
    hashes, docs = shingles(block, block.tables.folded, words=5, characters=8)
    return hashes, docs, signatures(hashes, docs, len(texts), num_perm=num_perm, seed=seed)


@pytest.mark.parametrize(("num_perm", "seed"), [(112, 1), (16, 7)])
def test_signatures_are_datasketchs_bit_by_bit(num_perm: int, seed: int):
    hashes, docs, sigs = signed(TEXTS, seed, num_perm)
    assert (docs == 7).sum() > 2 * CHUNK  # one document spans several chunks
    for i in range(len(TEXTS)):
        reference = MinHash(num_perm=num_perm, seed=seed, scheme="affine32", hashfunc=int)
        reference.update_batch(hashes32(hashes[docs == i]).tolist())
        assert (sigs[i] == reference.hashvalues).all(), TEXTS[i][:30]
        assert to_datasketch(sigs[i], seed=seed).jaccard(reference) == 1.0


def test_a_document_has_one_signature_wherever_it_stands():
    _, _, together = signed(TEXTS)
    for i, text in enumerate(TEXTS):
        assert (signed([text])[2][0] == together[i]).all()
    assert (together[4] == EMPTY).all() and (together[5] == EMPTY).all()


def slow_shingles(words: list[str], n: int) -> set[tuple[str, ...]]:
    return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)} or {tuple(words)}


def slow_jaccard(a: set, b: set) -> float:
    return len(a & b) / len(a | b)


def test_exact_jaccard_equals_brute_force_in_both_languages():
    for i in range(8):
        a, b = english(i, 20), english(i, 14) + " " + english(50 + i, 6)
        expected = slow_jaccard(*(slow_shingles(t.lower().replace(".", "").split(), 5) for t in (a, b)))
        assert jaccard(a, b, NEAR) == pytest.approx(expected)
        a, b = chinese(i, 20), chinese(i, 14) + chinese(50 + i, 6)
        expected = slow_jaccard(*(slow_shingles(list(t.replace("。", "")), 8) for t in (a, b)))
        assert jaccard(a, b, NEAR) == pytest.approx(expected)


def test_digits_are_folded_for_candidates_and_not_for_verification():
    a = " ".join(f"On day {i} the river rose by {i * 3} inches and fell." for i in range(30))
    b = " ".join(f"On day {i + 40} the river rose by {i * 7} inches and fell." for i in range(30))
    sigs = signed([a, b])[2]
    assert (sigs[0] == sigs[1]).mean() > 0.5
    assert jaccard(a, b, NEAR) < 0.1


def test_case_accents_width_and_composition_are_folded():
    pairs = [("Café au lait and a naïve smile here", "CAFE AU LAIT, and a naive smile here"), ("ＡＢＣ１２３ full width letters here now", "abc123 full-width letters here now")]
    korean = "한국어 문장을 여기에 적습니다 그리고"
    pairs.append((korean, unicodedata.normalize("NFD", korean)))
    for a, b in pairs:
        sigs = signed([a, b])[2]
        assert (sigs[0] == sigs[1]).all(), a
    other = signed(["한국어 문장을 저기에 적습니다 그리고", korean])[2]
    assert (other[0] != other[1]).all()


def test_text_hashes_ignore_case_punctuation_and_spacing_only():
    same = ["Hello, world! 你好。", "hello world 你好", "HELLO  WORLD\n你，好"]
    other = ["hello world 您好", "hello word 你好", "hello world 1 你好", "hello world 2 你好", "world hello 你好", ""]
    rows = [r.tobytes() for r in text_hashes(block_of([*same, *other]))]
    assert len(set(rows[:3])) == 1 and len(set(rows)) == 1 + len(other)


def test_estimates_are_unbiased():
    errors = []
    for i in range(60):
        a, b = english(i, 30), english(i, 10 + i // 3) + " " + english(200 + i, 20 - i // 3)
        sigs = signed([a, b])[2]
        errors.append((sigs[0] == sigs[1]).mean() - jaccard(a, b, NEAR))
    assert abs(np.mean(errors)) < 0.02 and np.std(errors) < 0.07  # theory: 0.047 at worst


def test_runs_are_the_documents_with_equal_band_keys_old_and_new():
    rng = np.random.default_rng(0)
    sigs = rng.integers(0, 3, (60, 8), dtype=np.uint32)
    keys = band_keys(sigs, num_bands=4, num_rows=2)
    old_keys, new_keys = keys[:, :25], keys[:, 25:]
    first = Sorted(*sort_bands(old_keys[:, :10], np.arange(10)), 0)
    second = Sorted(*sort_bands(old_keys[:, 10:], np.arange(15)), 10)
    valid = np.ones(35, bool)
    valid[3] = False
    runs = find_runs(new_keys, valid, [first, second])
    for i in range(35):
        mine = {(run, row) for run in runs.runs_of(i) for row in runs.old_of(run)}
        expected = {row for row in range(25) if valid[i] and (old_keys[:, row] == new_keys[:, i]).any()}
        assert {row for _, row in mine} == expected
        together = {j for j in range(35) if set(runs.runs_of(i)) & set(runs.runs_of(j))} - {i}
        assert together == {j for j in range(35) if j != i and valid[i] and valid[j] and (new_keys[:, j] == new_keys[:, i]).any()}
