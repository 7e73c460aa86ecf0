"""Every promise of project 1, measured against PyTorch's own layers and nanoGPT's recipes.

make bench-transformer                  # everything; about 40 minutes, 26 of them for the preset `best`
make bench-transformer ARGS="--only parity --only step"
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from shared.benchmark import Row, data_folder, interleaved_medians, run_benchmarks
from shared.tracking import read_metrics
from transformer_from_scratch.attention import MultiHeadAttention, causal_mask, padding_mask
from transformer_from_scratch.train_simple_lm import CharacterLM, TrainConfig, generate, load_corpus, validation_loss
from transformer_from_scratch.transformer_block import EncoderConfig, TransformerEncoder, TransformerEncoderLayer

MODULE = "transformer_from_scratch.train_simple_lm"
PLAIN = {"norm": "layer", "qk_norm": False, "bias": True, "previous_tokens": 0, "position": "sinusoidal"}


# --- Parity with PyTorch's layers -------------------------------------------------------------------------------------


def copy_attention(ours: MultiHeadAttention, theirs: nn.MultiheadAttention) -> None:
    """Give our attention PyTorch's weights."""
    ours.in_proj.weight.data.copy_(theirs.in_proj_weight)
    ours.in_proj.bias.data.copy_(theirs.in_proj_bias)
    ours.out_proj.load_state_dict(theirs.out_proj.state_dict())


def copy_layer(ours: TransformerEncoderLayer, theirs: nn.TransformerEncoderLayer) -> None:
    """Give our layer PyTorch's weights."""
    copy_attention(ours.attention, theirs.self_attn)
    for mine, its in (
        (ours.feed_forward.linear1, theirs.linear1),
        (ours.feed_forward.linear2, theirs.linear2),
        (ours.norm1, theirs.norm1),
        (ours.norm2, theirs.norm2),
    ):
        mine.load_state_dict(its.state_dict())


def difference(ours: Tensor, theirs: Tensor, pairs: list[tuple[Tensor, Tensor]], valid: Tensor | None = None) -> float:
    """Return the largest difference of two outputs and of the gradients of ``pairs`` under the same random loss."""
    if valid is not None:
        ours, theirs = ours[valid], theirs[valid]
    worst = (ours - theirs).abs().max().item()
    direction = torch.randn_like(ours)
    mine = torch.autograd.grad(ours, [a for a, _ in pairs], direction)
    its = torch.autograd.grad(theirs, [b for _, b in pairs], direction)
    return max(worst, *((a - b).abs().max().item() for a, b in zip(mine, its, strict=True)))


def parity(quick: bool) -> Row:
    """Outputs, input gradients and weight gradients in float64, over every mask and form."""
    torch.manual_seed(0)
    worst, cases = 0.0, 0
    batch, queries, keys, width, heads = 3, 7, 7, 16, 4
    lengths = torch.tensor([7, 4, 5])
    pad = padding_mask(lengths, keys)
    causal = causal_mask(queries, keys)
    arbitrary = torch.rand(batch, heads, queries, keys) > 0.4
    arbitrary[..., 0] = True  # PyTorch's layer has no answer for rows that see nothing
    masks = {"none": None, "padding": pad, "causal": causal[None, None], "both": pad & causal, "arbitrary": arbitrary}
    for fused in (True, False):
        for cross in (False, True):
            for mask in masks.values():
                theirs = nn.MultiheadAttention(width, heads, batch_first=True, dtype=torch.float64)
                ours = MultiHeadAttention(width, heads, fused=fused).double()
                copy_attention(ours, theirs)
                x = torch.randn(batch, queries, width, dtype=torch.float64, requires_grad=True)
                memory = torch.randn(batch, keys, width, dtype=torch.float64, requires_grad=True) if cross else x
                mine, _ = ours(x, memory if cross else None, mask=mask)
                hidden = None if mask is None else ~mask.expand(batch, heads, queries, keys).flatten(0, 1)
                its, _ = theirs(x, memory, memory, attn_mask=hidden)
                pairs = [(x, x), *([(memory, memory)] if cross else [])]
                pairs += [(ours.in_proj.weight, theirs.in_proj_weight), (ours.in_proj.bias, theirs.in_proj_bias)]
                pairs += list(zip(ours.out_proj.parameters(), theirs.out_proj.parameters(), strict=True))
                worst, cases = max(worst, difference(mine, its, pairs)), cases + 1
    for norm_first in (True, False):
        for activation in ("relu", "gelu"):
            config = EncoderConfig(width, heads, 2, 32, keys, activation=activation, norm_first=norm_first, **PLAIN)
            layer = nn.TransformerEncoderLayer(
                width, heads, 32, 0.0, activation, batch_first=True, norm_first=norm_first, dtype=torch.float64
            )
            norm = nn.LayerNorm(width, dtype=torch.float64) if norm_first else None
            theirs = nn.TransformerEncoder(layer, 2, norm=norm, enable_nested_tensor=False)
            ours = TransformerEncoder(11, config).double()
            for mine, its in zip(ours.layers, theirs.layers, strict=True):
                copy_layer(mine, its)
            for name in ("none", "padding", "causal", "both"):
                is_causal, is_padded = name in ("causal", "both"), name in ("padding", "both")
                x = torch.randn(batch, keys, width, dtype=torch.float64, requires_grad=True)
                valid = torch.arange(keys) < (lengths[:, None] if is_padded else keys)
                hide = {"src_key_padding_mask": ~pad[:, 0, 0] if is_padded else None}
                its = theirs(x, mask=~causal if is_causal else None, **hide)
                mine = ours.encode(x, mask=pad if is_padded else None, causal=is_causal)
                last, its_last = ours.layers[0], theirs.layers[0]
                pairs = [
                    (x, x),
                    (last.attention.in_proj.weight, its_last.self_attn.in_proj_weight),
                    (last.feed_forward.linear1.weight, its_last.linear1.weight),
                    (last.norm1.weight, its_last.norm1.weight),
                ]
                worst, cases = max(worst, difference(mine, its, pairs, valid.expand(batch, keys))), cases + 1
                one = last(x, mask=pad if is_padded else None, causal=is_causal)[0]
                its_one = its_last(x, src_mask=~causal if is_causal else None, **hide)
                worst, cases = max(worst, difference(one, its_one, pairs, valid.expand(batch, keys))), cases + 1
    attention = MultiHeadAttention(4, 2, fused=False).double()
    small = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    gradcheck = torch.autograd.gradcheck(lambda x: attention(x, causal=True)[0], small)
    return Row(
        "outputs and gradients, float64: attention, layer, encoder",
        "PyTorch's layers",
        f"{cases} cases",
        f"max difference {worst:.1e}; gradcheck {'passes' if gradcheck else 'fails'}",
        "≤ 1e-10",
        worst <= 1e-10 and gradcheck,
    )


# --- Learning against nanoGPT -----------------------------------------------------------------------------------------


class ReferenceGPT(nn.Module):
    """A plain GPT of nanoGPT's CPU size (4 layers, 4 heads, width 128), from PyTorch's own layers.

    Args:
        vocab_size: V.
        context_length: T.
    """

    def __init__(self, vocab_size: int, context_length: int = 64) -> None:
        super().__init__()
        self.config = EncoderConfig(context_length=context_length)
        self.tokens = nn.Embedding(vocab_size, 128)
        self.positions = nn.Embedding(context_length, 128)
        layer = nn.TransformerEncoderLayer(128, 4, 512, 0.0, "gelu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 4, nn.LayerNorm(128), enable_nested_tensor=False)
        self.head = nn.Linear(128, vocab_size, bias=False)
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """Score the next characters: (B, T) → (B, T, V)."""
        length = tokens.shape[1]
        x = self.tokens(tokens) + self.positions.weight[:length]
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        return self.head(self.encoder(x, mask=mask, is_causal=True))


def train_reference(data: Path, steps: int) -> tuple[float, float]:
    """Train nanoGPT's CPU recipe: 12 × 64 characters a step, AdamW at 1e-3 with warm-up and cosine to 1e-4.

    Returns:
        Validation loss (whole text) and seconds, its validation included.
    """
    corpus = load_corpus(str(data), 0.1)
    torch.manual_seed(0)
    model = ReferenceGPT(len(corpus.vocabulary))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.SequentialLR(
        optimizer,
        [
            torch.optim.lr_scheduler.LinearLR(optimizer, 0.01, total_iters=100),
            torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps - 100, 1), 1e-4),
        ],
        milestones=[100],
    )
    started = time.monotonic()
    for _ in range(steps):
        starts = torch.randint(len(corpus.train) - 64, (12, 1))
        windows = corpus.train[starts + torch.arange(65)].long()
        loss = F.cross_entropy(model(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    seconds = time.monotonic() - started
    return validation_loss(model, corpus.validation), seconds


def run_training(folder: Path, *flags: str, launcher: tuple[str, ...] = ("-m",)) -> dict:
    """Run ``train`` in a process of its own, and return its results with its wall-clock as ``wall``."""
    started = time.monotonic()
    subprocess.run([sys.executable, *launcher, MODULE, "train", "--run", "bench", *flags], cwd=folder, check=True,
                   env=environment(), stdout=subprocess.DEVNULL)  # fmt: skip
    wall = time.monotonic() - started
    run = folder / "outputs" / "transformer_from_scratch" / "bench"
    return {**json.loads((run / "results.json").read_text(encoding="utf-8")), "wall": wall, "folder": run}


def environment() -> dict[str, str]:
    """Return the environment for a process that finds this repository's packages from any folder."""
    root = str(Path(__file__).parents[1])
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))}


def laptop(quick: bool) -> Row:
    """Tinyshakespeare with the preset ``laptop``, in no more time than the reference takes."""
    data = data_folder() / "tinyshakespeare" / "input.txt"
    steps = 20 if quick else 2000
    before, seconds_before = train_reference(data, steps)
    with tempfile.TemporaryDirectory() as folder:
        ours = run_training(Path(folder), "--data", str(data), *(["--steps", "20"] if quick else []))
    _, seconds_after = train_reference(data, steps)  # around ours, since the machine drifts
    seconds = (seconds_before + seconds_after) / 2
    loss, parameters = ours["metrics"]["validation_loss"], ours["metrics"]["parameters"]
    return Row(
        "tinyshakespeare, whole validation text, preset laptop",
        "nanoGPT's CPU recipe from PyTorch's layers, 2,000 steps",
        f"{before:.3f} in {seconds:.0f} s",
        f"{loss:.3f} in {ours['seconds']:.0f} s (×{ours['seconds'] / seconds:.2f}), {parameters:,} parameters",
        "≤ 1.65, ≤ 0.85 M parameters, time ×≤ 1; stretch 1.60",
        loss <= 1.65 and parameters <= 850_000 and ours["seconds"] <= seconds,
    )


def best(quick: bool) -> Row:
    """Tinyshakespeare with the preset ``best``."""
    data = data_folder() / "tinyshakespeare" / "input.txt"
    with tempfile.TemporaryDirectory() as folder:
        flags = ["--steps", "20"] if quick else []
        ours = run_training(Path(folder), "--preset", "best", "--data", str(data), *flags)
    loss, minutes = ours["metrics"]["validation_loss"], ours["wall"] / 60
    return Row(
        "tinyshakespeare, whole validation text, preset best",
        "nanoGPT's GPU recipe, published",
        "1.4697 (A100)",
        f"{loss:.4f} in {minutes:.1f} minutes",
        "≤ 1.4697 in ≤ 30 minutes; stretch 1.45",
        loss <= 1.4697 and minutes <= 30,
    )


def builtin(quick: bool) -> Row:
    """The embedded corpus, as ``make demo`` trains it."""
    with tempfile.TemporaryDirectory() as folder:
        ours = run_training(Path(folder), *(["--steps", "20"] if quick else []))
    bits = ours["metrics"]["bits_per_character"]
    return Row(
        "builtin:python-docs, preset laptop",
        "–",
        "",
        f"{bits:.3f} bits a character in {ours['wall']:.0f} s",
        "≤ 120 s",
        ours["wall"] <= 120,
    )


# --- Speed ------------------------------------------------------------------------------------------------------------


def step(quick: bool) -> Row:
    """A training step (forward, backward, AdamW) of our encoder against PyTorch's, same sizes and threads."""
    torch.manual_seed(0)
    ratios = []
    for batch, length in ((12, 64), (32, 128)):
        config = EncoderConfig(context_length=length, activation="gelu", norm_first=True, **PLAIN)
        ours = TransformerEncoder(65, config)
        layer = nn.TransformerEncoderLayer(128, 4, 512, 0.0, "gelu", batch_first=True, norm_first=True)
        theirs = nn.TransformerEncoder(layer, 4, nn.LayerNorm(128), enable_nested_tensor=False)
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        x = torch.randn(batch, length, 128)
        optimizers = [torch.optim.AdamW(model.layers.parameters(), fused=True) for model in (ours, theirs)]

        def take(forward, optimizer, x=x):  # noqa: ANN001, ANN202
            def run():  # noqa: ANN202
                optimizer.zero_grad()
                forward(x).square().mean().backward()
                optimizer.step()

            return run

        mine = take(lambda x, model=ours: model.encode(x, causal=True), optimizers[0])
        its = take(lambda x, model=theirs, mask=mask: model(x, mask=mask, is_causal=True), optimizers[1])
        interleaved_medians(mine, its, repeats=3)  # warm-up
        our_seconds, their_seconds = interleaved_medians(mine, its, repeats=5 if quick else 100)
        ratios.append((f"{batch}×{length}", their_seconds / our_seconds, their_seconds))
    return Row(
        "training step of the encoder, 4 layers × 128",
        "nn.TransformerEncoder",
        ", ".join(f"{seconds * 1e3:.1f} ms at {size}" for size, _, seconds in ratios),
        ", ".join(f"×{ratio:.2f} at {size}" for size, ratio, _ in ratios),
        "speed ×≥ 1.0",
        all(ratio >= 1.0 for _, ratio, _ in ratios),
    )


def cache(quick: bool) -> Row:
    """Greedy sampling of 500 characters with the key-value cache against without, at the sizes of preset ``best``."""
    torch.manual_seed(0)
    shape = {key: value for key, value in TrainConfig.PRESETS["best"].items() if key in EncoderConfig.__annotations__}
    model = CharacterLM(65, EncoderConfig(**shape))
    for parameter in model.parameters():  # zero-initialized layers would make every text the same
        if parameter.ndim > 1 and not parameter.any():
            nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
    texts: dict[bool, list[int]] = {}

    def draw(use_cache: bool) -> None:
        tokens = generate(model, torch.tensor([1]), 50 if quick else 500, temperature=0, use_cache=use_cache)
        texts[use_cache] = list(tokens)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # one character's products are too small to share
    with_cache, without = interleaved_medians(lambda: draw(True), lambda: draw(False), repeats=3)
    torch.set_num_threads(threads)
    same = texts[True] == texts[False]
    return Row(
        f"500 characters with cache, context {model.config.context_length}, one thread",
        "the same without",
        f"{without:.2f} s",
        f"×{without / with_cache:.1f}, {'same' if same else 'another'} text",
        "speed ×≥ 4, same greedy text",
        without / with_cache >= 4 and same,
    )


# --- Processes and kills ----------------------------------------------------------------------------------------------

SMALL = ("--num_layers=2", "--d_model=64", "--d_ff=128", "--steps=60", "--evaluate_every=10", "--warmup_steps=5",
         "--dropout=0.1", "--device=cpu", "--threads=1")  # fmt: skip


def losses(folder: Path) -> list[tuple[float, float]]:
    """Return training and validation loss of every measurement of a run."""
    rows = read_metrics(folder / "metrics.jsonl")
    return [(row["train_loss"], row["validation_loss"]) for row in rows if "validation_loss" in row]


def processes(quick: bool) -> Row:
    """Two processes against one with twice the accumulation."""
    # --multi_gpu is what starts several processes on one machine, with --device cpu on its processor.
    launcher = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--num_machines=1",
                "--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=0", "-m")  # fmt: skip
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
        single = losses(run_training(Path(one), *SMALL, "--accumulation=2")["folder"])
        double = losses(run_training(Path(two), *SMALL, launcher=launcher)["folder"])
    pairs = zip(single, double, strict=True)
    worst = max(abs(a - b) for row, other in pairs for a, b in zip(row, other, strict=True))
    return Row(
        "two processes (accelerate, gloo)",
        "one with accumulation 2",
        f"final loss {single[-1][1]:.4f}",
        f"loss curves differ by at most {worst:.1e}",
        "≤ 1e-4",
        worst <= 1e-4,
    )


def resume(quick: bool) -> Row:
    """Kill −9 in the middle, resume, and compare every weight with an uninterrupted run."""
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
        whole = run_training(Path(one), *SMALL)["folder"]
        process = subprocess.Popen([sys.executable, "-m", MODULE, "train", "--run", "bench", *SMALL], cwd=two,
                                   env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
        metrics = Path(two) / "outputs/transformer_from_scratch/bench/metrics.jsonl"
        while process.poll() is None and (not metrics.exists() or metrics.read_text().count("\n") < 3):
            time.sleep(0.02)
        time.sleep(torch.rand(()).item() * 0.5)
        process.send_signal(signal.SIGKILL)
        killed = process.wait() == -signal.SIGKILL
        resumed = run_training(Path(two), *SMALL, "--resume=true")["folder"]
        ours, theirs = (load_file(folder / "last.safetensors") for folder in (whole, resumed))
    same = ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    return Row(
        "resumed after kill −9 at a random moment",
        "an uninterrupted run",
        f"{len(ours)} tensors",
        f"{'identical' if same else 'different'} weights and moments{'' if killed else ' (was not killed in time)'}",
        "bit for bit",
        same and killed,
    )


ROWS = {
    "parity": parity,
    "step": step,
    "cache": cache,
    "processes": processes,
    "resume": resume,
    "builtin": builtin,
    "laptop": laptop,
    "best": best,
}

if __name__ == "__main__":
    run_benchmarks("transformer", ROWS)
