"""Tiny causal language models with random weights, saved as a hub's would be."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

TEXTS = [
    "Maya lived by the sea. One morning she lost her red kite.", "Tom and his dog walked up the hill to the old mill.",
    "The wind was strong, and the bread was warm.", "你好，世界。今天天气很好。", "Who is there? It is only me!",
] * 3  # fmt: skip
END = "<|endoftext|>"


def make_tokenizer(chat: bool = False, sentencepiece: bool = False) -> Any:
    """Return a BPE of 330 tokens: of bytes, or of words that begin with a mark, the first of a text with none."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    if sentencepiece:
        tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=330, special_tokens=[END], show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())  # fmt: skip
    tokenizer.train_from_iterator(TEXTS, trainer)
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=END, eos_token=END)
    if chat:
        made.chat_template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}[assistant]"
    return made


def make_folder(folder: Path, kind: str = "gpt2", chat: bool = False, sentencepiece: bool = False) -> Path:
    """Save a model of 64 tokens of context whose random weights are large, so that its guesses are decided."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    tokenizer = make_tokenizer(chat, sentencepiece)
    size, end = len(tokenizer), tokenizer.eos_token_id
    torch.manual_seed(0)
    if kind == "gpt2":
        model: Any = GPT2LMHeadModel(GPT2Config(
            vocab_size=size, n_positions=64, n_embd=32, n_layer=2, n_head=4, bos_token_id=end, eos_token_id=end,
            initializer_range=0.3,
        ))  # fmt: skip
    else:
        model = LlamaForCausalLM(LlamaConfig(
            vocab_size=size, max_position_embeddings=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=4, bos_token_id=end, eos_token_id=end, initializer_range=0.3,
        ))  # fmt: skip
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("tiny") / "tiny-gpt2")


@pytest.fixture(scope="session")
def make_tiny() -> Callable[..., Path]:
    """Return what saves such a model: importlib's mode lets no test import this file."""
    return make_folder
