from collections import Counter

import pytest

from model_optimization.builtin.reviews import DOMAINS, LABELS, SIZES, reviews


@pytest.mark.parametrize("name", DOMAINS)
def test_every_split_is_balanced_and_no_text_comes_twice(name: str) -> None:
    splits = reviews(name)
    assert {split: len(rows) for split, rows in splits.items()} == SIZES
    for rows in splits.values():
        assert Counter(label for _, label in rows) == {label: len(rows) // 2 for label in LABELS}
    texts = [text for rows in splits.values() for text, _ in rows]
    assert len(set(texts)) == len(texts)


def test_the_same_seed_makes_the_same_texts_and_another_one_others() -> None:
    assert reviews("stays", 3) == reviews("stays", 3)
    assert reviews("stays", 3)["test"] != reviews("stays", 4)["test"]


def test_a_third_of_the_opinions_never_occurs_in_train() -> None:
    domain = DOMAINS["stays"]
    splits = reviews("stays")
    train = " ".join(text for text, _ in splits["train"])
    test = " ".join(text for text, _ in splits["test"])
    for words in (domain.blame, domain.praise):
        for word in words[len(words) * 2 // 3 :]:
            assert word not in train
            assert word in test


def test_no_placeholder_is_left() -> None:
    assert not any(mark in text for rows in reviews("apps").values() for text, _ in rows for mark in "{}")
