"""Project 3 against its peers: python benchmarks/generation.py [--only ROW] [--quick], or make bench-generation."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

from gpt_text_generation.builtin import train_models
from gpt_text_generation.evaluation.perplexity_calculator import token_nats
from gpt_text_generation.text_generator import LanguageModel, Settings, TextGenerator, load_model
from shared.benchmark import Row, data_folder, interleaved_medians, run_benchmarks

THREADS = 1  # of both sides: such small models are no faster with 2


@functools.cache
def real_model() -> LanguageModel:
    """Return the pretrained model of the test data."""
    return load_model(str(data_folder() / "models/stories260K/hf"), "cpu", "float32")


def mixed_prompts() -> list[str]:
    """Return 16 prompts of 1 to 60 words."""
    words = (data_folder() / "wikitext2/valid.txt").read_text(encoding="utf-8").split()
    return [" ".join(words[i * 100 : i * 100 + 1 + 4 * i]) for i in range(16)]


def perplexity_rows(quick: bool) -> Row:
    """Hold strides 1, 7, 64 and context against one token at a time."""
    import torch

    model, context = real_model(), 128
    text = (data_folder() / "wikitext2/test.txt").read_text(encoding="utf-8")[: 1500 if quick else 12_000]
    ids = model.tokenizer(text)["input_ids"]
    nats = {}  # place, tokens before it → −log p
    worst = {}
    for stride in (1, 7, 64, context):
        from gpt_text_generation.evaluation.perplexity_calculator import windows

        exact = []
        for window in windows(len(ids), context, stride):
            for place in range(window.counted, window.end):
                key = place, place - window.begin
                if key not in nats:
                    row = torch.tensor([ids[window.begin : place]])
                    with torch.inference_mode():
                        nats[key] = -model.model(row).logits[0, -1].log_softmax(-1)[ids[place]].item()
                exact.append(nats[key])
        ours = token_nats(model, ids, stride, context=context)
        assert len(ours) == len(exact)
        one, other = (math.exp(sum(its) / len(its)) for its in (ours, exact))
        worst[stride] = abs(one / other - 1)
    shown = ", ".join(f"stride {stride}: {error:.1e}" for stride, error in worst.items())
    return Row(f"perplexity of {len(ids):,} tokens of wikitext2/test.txt, context {context}", "one token at a time", "0",
               shown, "≤ 1e-4 relative", max(worst.values()) <= 1e-4)  # fmt: skip


def batch(quick: bool) -> Row:
    """Decode 16 prompts together and one by one."""
    generator, prompts = TextGenerator(real_model()), mixed_prompts()
    how = Settings("greedy", max_new_tokens=64)
    together = generator.generate(prompts, how)
    alone = [generator.generate([prompt], how)[0] for prompt in prompts]
    same = sum(one.text == other.text for one, other in zip(together, alone, strict=True))
    fast, slow = interleaved_medians(
        lambda: generator.generate(prompts, how),
        lambda: [generator.generate([prompt], how) for prompt in prompts], repeats=2 if quick else 7,
    )  # fmt: skip
    tokens = sum(len(one.token_ids) for one in together)
    return Row("16 prompts of mixed lengths, greedy, float32", "one by one", f"{tokens / slow:,.0f} tokens/s",
               f"{same} of 16 texts the same, {tokens / fast:,.0f} tokens/s (×{slow / fast:.1f})", "16 the same, ×≥ 4",
               same == 16 and slow / fast >= 4)  # fmt: skip


def throughput(quick: bool) -> Row:
    """Decode as transformers does when called directly: greedy and nucleus."""
    import torch

    model, prompts = real_model(), mixed_prompts()
    generator = TextGenerator(model)
    input_ids, attention_mask = generator._padded([model.encode(prompt) for prompt in prompts])
    ratios = {}
    for strategy in ("greedy", "nucleus"):
        how = Settings(strategy, max_new_tokens=64)  # type: ignore[arg-type]
        config = how.generation_config()
        config.eos_token_id, config.pad_token_id = -1, 0  # so that both always make all 64

        def direct(config: Any = config) -> Any:
            with torch.inference_mode():
                return model.model.generate(input_ids, attention_mask=attention_mask, generation_config=config)

        def ours(how: Settings = how) -> Any:
            return generator.generate(prompts, how)

        made = sum(len(one.token_ids) for one in ours())
        ours_seconds, their_seconds = interleaved_medians(ours, direct, repeats=2 if quick else 9)
        ratios[strategy] = made / ours_seconds / (64 * len(prompts) / their_seconds)
    shown = ", ".join(f"{name} ×{ratio:.2f}" for name, ratio in ratios.items())
    return Row("tokens/s of TextGenerator, 16 prompts", "model.generate called directly", "×1", shown, "×≥ 0.95",
               min(ratios.values()) >= 0.95)  # fmt: skip


def stories(quick: bool) -> Row:
    """Measure the embedded story model."""
    its = train_models.held_out_figures("stories")
    share = its["perplexity"] / its["five_gram_perplexity"]
    return Row("builtin:stories: name and place kept to the end; held-out perplexity", "5-gram model",
               f"perplexity {its['five_gram_perplexity']:.2f}",
               f"{its['keeps_name_and_place']:.3f}; {its['perplexity']:.2f} ({share:.0%})", "≥ .95; ≤ 50 %",
               its["keeps_name_and_place"] >= 0.95 and share <= 0.5)  # fmt: skip


def python(quick: bool) -> Row:
    """Measure the embedded code model."""
    its = train_models.held_out_figures("python")
    return Row("builtin:python: pass@1, greedy, 300 tasks whose composition was never trained", "–", "–",
               f"{its['pass_at_1']:.3f}", "≥ .80; stretch .95", its["pass_at_1"] >= 0.8)  # fmt: skip


ROWS: dict[str, Callable[[bool], Row]] = {
    "perplexity": perplexity_rows, "batch": batch, "throughput": throughput, "stories": stories, "python": python,
}  # fmt: skip

if __name__ == "__main__":
    run_benchmarks("generation", ROWS)
