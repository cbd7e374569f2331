"""The baselines are strong and reproducible: a weak one would flatter the model."""

from __future__ import annotations

import lzma
import random

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.svm import LinearSVC

from llmpipe.evaluate.baselines import compressed_bits_per_byte, majority
from llmpipe.evaluate.linear import LinearClassifier, count_ngrams

TOPICS = {
    "sea": "ship harbour sail anchor 海 船 港口 航行 captain wind 水手 tide",
    "food": "bread rice soup spice 米饭 面包 厨房 味道 kitchen oven 菜谱 salt",
    "code": "function module import class 函数 模块 编译 变量 loop array 程序 error",
}
FILLER = "the a of 的 了 和 is was 在 有 this that".split()


def rows(seed: int, n: int) -> tuple[list[str], np.ndarray]:
    rng = random.Random(seed)
    texts, labels = [], []
    for _ in range(n):
        label = rng.randrange(3)
        own, other = (list(TOPICS.values())[i].split() for i in (label, (label + 1) % 3))
        texts.append(" ".join(rng.choices(FILLER, k=12) + rng.choices(own, k=2) + rng.choices(other, k=1)))
        labels.append(label)
    return texts, np.array(labels)


def test_linear_classifier_is_near_tfidf_svm_on_chinese_and_english():
    train, y = rows(1, 400)
    test, z = rows(2, 400)
    ours = LinearClassifier.fit(train, y, num_classes=3)
    vectorizer = TfidfVectorizer(analyzer="char_wb", ngram_range=(1, 3), sublinear_tf=True)
    svm = LinearSVC().fit(vectorizer.fit_transform(train), y)
    theirs = (svm.predict(vectorizer.transform(test)) == z).mean()
    probabilities = ours.predict(test)
    assert (probabilities.argmax(1) == z).mean() >= theirs - 0.02
    assert probabilities.sum(1) == pytest.approx(np.ones(400), abs=1e-5)


def test_linear_classifier_gives_the_same_answer_twice_and_reads_empty_texts():
    train, y = rows(1, 60)
    a, b = (LinearClassifier.fit(train, y, num_classes=4).predict([*train, "", "😀"]) for _ in range(2))
    assert (a == b).all()
    assert a.shape == (62, 4) and np.isfinite(a).all()


def test_ngrams_of_a_text_do_not_depend_on_its_neighbours():
    texts = ["海上的船 sailing ships", "a", "", "模块 function"]
    together = count_ngrams(texts)
    for number, text in enumerate(texts):
        alone = count_ngrams([text])
        mine = together.row == number
        assert (together.bucket[mine] == alone.bucket).all() and (together.count[mine] == alone.count).all()


def test_compressors_see_exactly_the_bytes_of_the_texts():
    texts = ["床前明月光，疑是地上霜。" * 20, "hello world\n" * 30]
    data = "".join(texts).encode()
    got = compressed_bits_per_byte(texts)
    assert got["uniform"] == 8.0
    assert got["xz"] == 8 * len(lzma.compress(data, preset=9)) / len(data)
    assert 0 < got["zstd"] < 2
    assert compressed_bits_per_byte([]) == {}


def test_majority_is_the_most_frequent_class():
    assert majority(np.array([2, 1, 2, 0]), num_classes=4) == 2
