"""Generation with a cache equals generation without, text comes in whole characters, and seeds fix every sample."""

from __future__ import annotations

from dataclasses import replace

import pyarrow.parquet as pq
import pytest
import torch

from llmpipe.cli import main
from llmpipe.errors import USAGE
from llmpipe.evaluate.generate import Config, generate_texts, stream_text
from llmpipe.evaluate.sampling import Sampler, choose
from tests.tiny import make_model

PROMPTS = ["床前明月光", "The quick 🦊", ""]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("model"), max_seq_len=48)


def test_greedy_with_cache_equals_greedy_without(directory):
    sampler = Sampler.load(directory)
    for prompt in PROMPTS:
        ids = sampler.tokenizer.encode(prompt).ids or [sampler.start]
        got = [t.item() for t in sampler.tokens(ids, Config(temperature=0, max_new_tokens=20))]
        plain = list(ids)
        with torch.no_grad():
            for _ in range(20):
                plain.append(sampler.model(torch.tensor([plain]))[0, -1].argmax().item())
        assert got == plain[len(ids) :]


def test_goes_on_beyond_the_length_of_the_model_and_takes_longer_prompts(directory):
    sampler = Sampler.load(directory)
    assert len(list(sampler.tokens([50] * 5, Config(temperature=0, max_new_tokens=100)))) == 100
    assert len(list(sampler.tokens([50] * 200, Config(max_new_tokens=60, num_samples=2)))) == 60


def test_a_sample_depends_on_seed_and_number_alone(directory):
    config = Config(max_new_tokens=12, num_samples=3)
    three = generate_texts(directory, "河水", config)
    assert generate_texts(directory, "河水", replace(config, num_samples=1)) == three[:1]
    assert generate_texts(directory, "河水", config) == three
    assert generate_texts(directory, "河水", replace(config, seed=2)) != three
    assert len(set(three)) == 3


def test_pieces_of_a_stream_are_whole_characters_and_add_up(directory):
    config = Config(max_new_tokens=60, temperature=1.0, top_k=None)
    for seed in range(4):
        pieces = list(stream_text(directory, "雨水", replace(config, seed=seed)))
        assert "".join(pieces) == generate_texts(directory, "雨水", replace(config, seed=seed))[0]
        assert all(p.encode() for p in pieces if p)


def test_a_character_of_several_tokens_is_not_shown_before_it_is_whole(directory):
    sampler = Sampler.load(directory)
    ids = sampler.tokenizer.encode("好😀ok").ids
    assert len(ids) > 5
    sampler.tokens = lambda *a, **k: (torch.tensor([i]) for i in ids)
    pieces = [p[0].text for p in sampler.stream("x", Config(max_new_tokens=len(ids)))]
    assert "".join(pieces) == "好😀ok"
    assert "�" not in "".join(pieces) and "😀" in pieces


def test_top_k_and_top_p_bound_what_is_drawn():
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]])).repeat(2000, 1)
    generators = [torch.Generator().manual_seed(i) for i in range(2000)]

    def drawn(**settings):
        return torch.bincount(choose(logits, Config(**{"temperature": 1.0, "top_k": None, **settings}), generators), minlength=4) / 2000

    assert drawn().tolist() == pytest.approx([0.5, 0.3, 0.15, 0.05], abs=0.04)
    assert drawn(top_k=2)[2:].sum() == 0
    assert drawn(top_p=0.6).tolist() == pytest.approx([0.625, 0.375, 0, 0], abs=0.04)  # the one that crosses stays
    assert drawn(top_p=0.01)[0] == 1
    assert drawn(temperature=0)[0] == 1
    assert drawn(temperature=0.01)[0] > 0.99


def test_stops_at_the_end_token(directory):
    sampler = Sampler.load(directory)
    sampler.tokens = lambda *a, **k: (torch.tensor([i]) for i in [60, sampler.stop, 61])
    made = sampler.continue_text("x", Config(max_new_tokens=3))[0]
    assert (made.num_tokens, made.finish) == (1, "stop")


def test_settings_out_of_range_are_named():
    with pytest.raises(ValueError, match="top_p 0"):
        Config(top_p=0)
    with pytest.raises(ValueError, match="num_samples 0"):
        Config(num_samples=0)


def test_stdout_is_the_continuation_alone_and_a_file_of_prompts_becomes_parquet(directory, tmp_path, capsys):
    assert main(["generate", "--model", str(directory), "--prompt", "小镇", "--set", "max_new_tokens=8"]) == 0
    alone = capsys.readouterr().out
    assert alone == generate_texts(directory, "小镇", Config(max_new_tokens=8))[0] + "\n"
    (tmp_path / "p.jsonl").write_text('{"prompt": "小镇"}\n{"prompt": "the wind"}\n', encoding="utf-8")
    arguments = ["--input", str(tmp_path / "p.jsonl"), "--output", str(tmp_path / "out"), "--set", "max_new_tokens=8", "--set", "num_samples=2"]
    assert main(["generate", "--model", str(directory), *arguments]) == 0
    table = pq.read_table(tmp_path / "out" / "continuations.parquet").to_pylist()
    assert [(r["prompt"], r["sample"]) for r in table] == [("小镇", 0), ("小镇", 1), ("the wind", 0), ("the wind", 1)]
    assert table[0]["continuation"] == alone[:-1]


def test_a_prompt_is_needed(directory, tmp_path, capsys):
    assert main(["generate", "--model", str(directory), "--output", str(tmp_path / "out")]) == USAGE
    assert "nothing to continue" in capsys.readouterr().err
