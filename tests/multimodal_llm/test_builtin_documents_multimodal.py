from __future__ import annotations

import random

import numpy as np
import pytest

from shared.config import run_commands
from shared.errors import InputError

pytest.importorskip("PIL")

from multimodal_llm.builtin import documents as module  # noqa: E402
from multimodal_llm.builtin.documents import (  # noqa: E402
    FAMILIES,
    LABELS,
    UNSEEN,
    Document,
    chinese_font,
    documents,
    make_document,
)


def amount(text: str) -> float:
    return float(text.lstrip("$¥").replace(",", ""))


@pytest.fixture(scope="module")
def drawn() -> list[Document]:
    return [make_document(random.Random(f"{name} {seed}"), name) for name in FAMILIES for seed in range(3)]


def test_words_lie_on_the_page_over_ink(drawn: list[Document]) -> None:
    for one in drawn:
        gray = [np.asarray(page.convert("L"), dtype=int) for page in one.pages]
        for word in one.words:
            left, top, right, bottom = (int(edge) for edge in word.box)
            page = gray[word.page]
            assert 0 <= left < right <= page.shape[1] and 0 <= top < bottom <= page.shape[0], (one.family, word)
            assert np.ptp(page[top:bottom, left:right]) > 40, (one.family, word)


def test_words_do_not_cover_each_other(drawn: list[Document]) -> None:
    for one in drawn:
        for i, word in enumerate(one.words):
            for other in one.words[i + 1 :]:
                wide = min(word.box[2], other.box[2]) - max(word.box[0], other.box[0])
                high = min(word.box[3], other.box[3]) - max(word.box[1], other.box[1])
                assert word.page != other.page or wide <= 1 or high <= 1, (one.family, word, other)


def test_values_are_made_of_the_words_in_their_boxes(drawn: list[Document]) -> None:
    for one in drawn:
        assert len({found.key for found in one.fields}) == len(one.fields)
        for found in one.fields:
            left, top, right, bottom = found.box
            inside = [word.text for word in one.words if word.page == found.page and left <= word.box[0]
                      and word.box[2] <= right and top <= word.box[1] and word.box[3] <= bottom]  # fmt: skip
            assert " ".join(inside) == found.value, (one.family, found)
            assert not found.label or found.label in LABELS[found.key][0]


@pytest.mark.parametrize("seed", range(6))
def test_labels_end_before_the_rule_of_their_cell(seed: int) -> None:
    one = make_document(random.Random(seed), "invoice boxed")
    for found in one.fields:
        if found.key in ("customer", "invoice number", "date", "payment method"):
            [(top, right)] = [(w.box[1], w.box[2]) for w in one.words if w.text == found.label.split()[-1]
                              and 0 < found.box[0] - w.box[2] < 165 and abs(w.box[1] - found.box[1]) < 20]  # fmt: skip
            rule = int(found.box[0]) - 12
            pixels = np.asarray(one.pages[0].convert("L"))[int(top) : int(top) + 12, int(right) + 1 : rule + 4]
            assert pixels.min(axis=0).argmin() >= 4, found  # white, and then the rule


def test_sums_are_right(drawn: list[Document]) -> None:
    for one in drawn:
        values = {found.key: found.value for found in one.fields}
        if one.family.startswith("form"):
            assert not one.items
            continue
        goods = sum(amount(row[3]) for row in one.items)
        assert amount(values["total"]) == pytest.approx(goods + amount(values["tax"]))
        assert all(amount(row[3]) == pytest.approx(int(row[1]) * amount(row[2])) for row in one.items)
        if "change" in values:
            assert amount(values["cash"]) - amount(values["total"]) == pytest.approx(amount(values["change"]))


def test_questions_ask_for_what_is_there_and_what_is_not(drawn: list[Document]) -> None:
    for one in drawn:
        values = {found.key: found.value for found in one.fields}
        assert {q.key for q in one.questions if q.answer} == values.keys()
        assert all(q.answer == values.get(q.key, "") for q in one.questions)
        assert sum(not q.answer for q in one.questions) == max(1, len(values) // 2)
        assert len({q.question for q in one.questions}) == len(one.questions)


def test_the_test_split_has_layouts_of_its_own() -> None:
    seen = {one.family for split in ("train", "validation") for one in documents(split, 5)}  # type: ignore[arg-type]
    assert {one.family for one in documents("test", 3)} == set(UNSEEN)
    assert seen == set(FAMILIES) - set(UNSEEN)


def test_a_seed_draws_the_same_again() -> None:
    one, again, other = (next(documents("train", 1, seed, scan=True)) for seed in (0, 0, 1))
    assert one.words == again.words and one.pages[0].tobytes() == again.pages[0].tobytes()
    assert one.words != other.words


def test_long_invoices_have_pages() -> None:
    one = make_document(random.Random(0), "invoice classic", pages=3)
    assert len(one.pages) == 3
    found = {field.key: field.page for field in one.fields}
    assert found["company"] == 0 and found["total"] == 2
    assert {word.page for word in one.words} == {0, 1, 2}


@pytest.mark.parametrize("seed", range(4))
def test_boxes_follow_a_scan(seed: int) -> None:
    straight, scan = (make_document(random.Random(seed), "form lines", scan=scan) for scan in (False, True))
    pixels = np.asarray(scan.pages[0].convert("L"), dtype=int)
    assert [word.text for word in straight.words] == [word.text for word in scan.words]
    for word in scan.words:
        left, top, right, bottom = (int(edge) for edge in word.box)
        height = bottom - top
        ink = pixels[top - height // 2 : bottom + height // 2, left:right] < 150
        rows = np.flatnonzero(ink.any(axis=1)) + top - height // 2
        assert top - 2 <= rows[0], word  # nothing above: a box that had stayed or turned the wrong way cuts letters
        assert ink[height // 2 : -(height // 2)].sum() > 0.8 * ink.sum() * 0.9, word


def test_chinese_is_drawn_or_refused() -> None:
    if not chinese_font():
        with pytest.raises(InputError, match="No font here has Chinese letters"):
            make_document(random.Random(0), "form grid", "zh")
        assert {one.language for one in documents("train", 10)} == {"en"}
        return
    one = make_document(random.Random(0), "form grid", "zh")
    assert any(word.text == "员工登记表" for word in one.words)


def test_bad_input_is_refused() -> None:
    with pytest.raises(InputError, match="split must be one of train, validation, test. Got 'dev'"):
        documents("dev", 1)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="family must be one of invoice classic"):
        make_document(random.Random(0), "letter")
    with pytest.raises(InputError, match=r"pages must be in \[1, 20\]. Got 0"):
        make_document(random.Random(0), "form grid", pages=0)


def test_show_prints_and_saves(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["show", "--count", "1", "--language", "en", "--pages", "2", "--folder", str(tmp_path)]
    with pytest.raises(SystemExit) as done:
        run_commands({"show": module.show}, module=module.MODULE, argv=argv)
    assert done.value.code == 0
    assert '"invoice classic"' in capsys.readouterr().out
    assert len(list(tmp_path.glob("*.png"))) == 2
