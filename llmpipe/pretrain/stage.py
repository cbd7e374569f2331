"""Train a language model on token shards, from scratch or from another's weights; the same command resumes, to the same bits.

    llmpipe pretrain --input tokens --output model --set depth=4 --set hours=0.5
    llmpipe pretrain --input tokens --output encoder --set model.kind=bert --set depth=4 --set hours=0.5
    llmpipe pretrain --input tokens --output further --set init=model --set tokens=1e8 --set lr=0.005

Reads tokens; writes a Hugging Face directory (config.json, model.safetensors, the tokenizer), `metrics.jsonl` (one line a
log step) and `checkpoints/` to go on from. `--dry-run` says parameters, memory, tokens, operations and time beforehand.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from llmpipe.config import cosmetic
from llmpipe.training.settings import CostConfig, LossConfig, MixtureConfig, NoiseConfig, OptimizerConfig, ScheduleConfig
from llmpipe.work import Counts, Work

HORIZONS = ("steps", "tokens", "tokens_per_param", "hours")
SHAPE = ("num_layers", "dim", "num_heads", "num_kv_heads", "ffn_dim", "rope_theta", "qk_norm", "tie_embeddings")
DEFAULT_DEPTH = 4
DEFAULT_TOKENS_PER_PARAM = 20.0  # Hoffmann et al. 2022


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSettings:
    kind: Literal["gpt", "llama", "gpt2", "bert", "modernbert", "t5"] = "gpt"
    """gpt: a decoder in the shape of Qwen3, which every tool for that family runs; llama, gpt2: older ones. bert, modernbert:
    encoders, for texts that are there. t5: an encoder-decoder, from text to text. `llmpipe list models` explains."""
    num_layers: int | None = None
    """Give num_layers and dim, or `depth`, which sets both. t5 has so many in its encoder and in its decoder."""
    dim: int | None = None
    num_heads: int | None = None
    """null: heads of 64 below dim 512, of 128 from there; bert, modernbert and t5 of 64."""
    num_kv_heads: int | None = None
    """gpt, llama: key and value heads; fewer than num_heads saves memory in generation. null: as many."""
    ffn_dim: int | None = None
    """Width of the feed-forward network; null: 4 x dim, and with a gate (all but gpt2 and bert) 8/3 of dim, which costs the same."""
    rope_theta: float | None = None
    """gpt, llama, modernbert: base of the rotary positions; null: 10,000 (modernbert's global blocks: 160,000)."""
    qk_norm: bool | None = None
    """gpt: norms on queries and keys, true unless turned off, which makes it a llama."""
    tie_embeddings: bool | None = None
    """One matrix for embedding and head: right while it is more than a quarter of the parameters. null: true, for t5 false."""
    dropout: float = 0.0
    """On embeddings and on what each block adds. Text that is read once or twice needs none."""
    attention_dropout: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    model: ModelSettings = field(default_factory=ModelSettings)
    depth: int | None = None
    """One knob for the size: depth layers of width 64 x depth. null and no sizes: 4, which is 4 M parameters at 4,096 ids."""
    mixture: MixtureConfig | None = None
    """How several inputs, sources or languages share the tokens of the run; null: all as one stream, each as large as it is."""
    init: Path | None = None
    """Start from the weights of this model directory, ours or one of a family that `llmpipe list models` names, instead of
    random ones; its shape is kept. Its tokenizer must be the tokens' own."""
    objective: Literal["clm", "mlm", "span"] | None = None
    """clm: predict the next token (decoders). mlm: hidden tokens (encoders). span: removed spans (t5). null: what fits the model."""
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    steps: int | None = None
    """How long to train: at most one of steps, tokens, tokens_per_param, hours; none: 20 tokens per parameter."""
    tokens: int | None = None
    tokens_per_param: float | None = None
    hours: float | None = None
    """Turned into steps by a probe before the first one, and stored, so that resuming is exact."""
    optimizer: Literal["muon", "adamw"] = "muon"
    """muon: Muon for the matrices of the blocks, AdamW for the rest."""
    lr: float | None = None
    """Peak rate. null: 0.02 for muon's matrices; for adamw by size, 6.5e-3 at 5 M parameters, 2.2e-3 at 124 M."""
    optim: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    batch_tokens: int | None = None
    """Tokens a step. null: by model size (37k at 4 M parameters, 360k at 124 M), less where that would leave under 500 steps."""
    seq_len: int | None = None
    """Tokens of context. null: 256 below dim 384, 512 below 768, 1,024 from there."""
    loss: LossConfig = field(default_factory=LossConfig)
    doc_mask: bool = False
    """Let no token see another document's. Costs speed; nanochat measured 0.0002 bits of gain."""
    micro_batch: int | Literal["auto"] = cosmetic(0)
    """Sequences a forward pass and process; 0: 4,096 tokens on a CPU, 32,768 on a GPU. Gradients are added up to batch_tokens,
    so it changes results by rounding alone. auto: as many as fit, tried out at the start and stored."""
    checkpoint_activations: bool = cosmetic(False)
    """Compute each block's activations again in the backward pass: a third more time, a fraction of the memory, the same results."""
    seed: int = 1
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["auto", "fp32", "bf16", "fp8"] = "auto"
    """auto: bf16 where the device computes in it, else fp32. Weights and optimizer are fp32 always. fp8: the blocks' products,
    on Hopper GPUs, with the extra llmpipe[fp8]."""
    threads: int = 0
    """Of a CPU. 0: one a physical core, which is not the same with torchrun: give a number where a run moves between the two."""
    compile: bool | None = None
    """torch.compile of each block. null: on a GPU with a C++ compiler beside it; on a CPU it takes half a minute and gained nothing."""
    eval_tokens: int = 200_000
    """Tokens of the valid split, from its start, that an evaluation reads."""
    eval_every: int = cosmetic(0)
    """Steps between evaluations; 0: ten over the run. There is always one at the end."""
    log_every: int = cosmetic(5)
    checkpoint_every: int = cosmetic(0)
    """Steps between checkpoints; 0: every two minutes, and never more than a twentieth of the time."""
    keep_checkpoints: int = cosmetic(2)
    max_hours: float | None = cosmetic(None)
    """Save and stop after this time; the same command goes on. For queues with a limit."""
    sample_prompts: list[str] = cosmetic(default_factory=lambda: [""])
    """Continued at each evaluation into samples/pretrain.jsonl; "" is the start of a document. []: none."""
    sample_tokens: int = cosmetic(64)
    track: list[Literal["tensorboard", "wandb"]] = cosmetic(default_factory=list)
    """Where metrics go beside metrics.jsonl; each needs its extra: pip install 'llmpipe[tensorboard]'."""
    cost: CostConfig = cosmetic(default_factory=CostConfig)
    """What --dry-run assumes of prices and power."""

    def __post_init__(self) -> None:
        given = [name for name in HORIZONS if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"two horizons: {' and '.join(given)}; give one of {', '.join(HORIZONS)}")
        sizes = [name for name in ("num_layers", "dim") if getattr(self.model, name) is not None]
        if self.depth is not None and sizes:
            raise ValueError(f"depth and model.{' and model.'.join(sizes)}: give the one or the others")
        if self.init is not None and (self.depth is not None or any(getattr(self.model, name) is not None for name in SHAPE)):
            raise ValueError("init brings its own shape: leave out depth and model's sizes")
        if self.init is not None and self.model.kind != "gpt":
            raise ValueError(f"init brings its own kind of model: leave out model.kind {self.model.kind}")
        if len(sizes) == 1:
            raise ValueError(f"model.{sizes[0]} needs model.{'dim' if sizes[0] == 'num_layers' else 'num_layers'} beside it; or give depth alone")
        for name in ("depth", *HORIZONS, "lr", "batch_tokens", "seq_len", "log_every", "eval_tokens"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise ValueError(f"{name} {getattr(self, name)} is not above 0")
        if self.micro_batch != "auto" and self.micro_batch < 0:
            raise ValueError(f"micro_batch {self.micro_batch} is below 0")
        for name in ("dropout", "attention_dropout"):
            if not 0 <= getattr(self.model, name) < 1:
                raise ValueError(f"model.{name} {getattr(self.model, name)} is not in [0, 1)")
        for name in ("num_layers", "dim", "num_heads", "num_kv_heads", "ffn_dim"):
            if getattr(self.model, name) is not None and getattr(self.model, name) < 1:
                raise ValueError(f"model.{name} {getattr(self.model, name)} is below 1")


def resolve(config: Config) -> Config:
    """Fill in the device, dtype and threads of this machine: they change results, so they are part of the recipe. So is the objective."""
    from llmpipe.models.device import bf16_is_fast, choose_device
    from llmpipe.pretrain.shape import fitting_objective
    from llmpipe.training.compute import can_compile, check_fp8, physical_cores
    from llmpipe.training.metrics import check_trackers

    check_trackers(config.track)
    device = choose_device(config.device)
    dtype = config.dtype if config.dtype != "auto" else "bf16" if bf16_is_fast(device) else "fp32"
    if dtype == "fp8":
        check_fp8(device)
    compiled = (config.compile if config.compile is not None else device == "cuda") and can_compile()
    # On a GPU threads change nothing, and torchrun sets OMP_NUM_THREADS: a run that moves to more GPUs must not look like another.
    threads = config.threads or (1 if device == "cuda" else physical_cores())
    return replace(config, device=device, dtype=dtype, threads=threads, compile=compiled, objective=fitting_objective(config))  # type: ignore[arg-type]


def run(config: Config, work: Work) -> Counts:
    from llmpipe.pretrain.job import pretrain

    return pretrain(config, work)


def plan(config: Config, work: Work) -> dict[str, Any]:
    """Say what the run would be: parameters, operations, memory, tokens, time by a short probe. Writes nothing."""
    from llmpipe.pretrain.plan import plan_run

    return plan_run(config, work)
