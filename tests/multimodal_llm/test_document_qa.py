"""Answers come from the right place or not at all; metrics follow their definitions; both hub classes answer."""

import gc
import importlib.util
import json
import random
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image, ImageDraw, ImageFont

from multimodal_llm.builtin.documents import documents, make_document
from multimodal_llm.document_understanding import document_qa as module
from multimodal_llm.document_understanding.document_qa import (
    MODULE,
    Answer,
    DocumentQA,
    LayoutAnswerer,
    anls,
    ask,
    evaluate,
    evaluate_documents,
    evaluate_receipts,
    field_f1,
    field_of,
    find_total,
    levenshtein,
    linked,
    of_kind,
    read_forms,
    read_receipts,
    same_value,
    thousandths,
    wanted,
    word_recall,
)
from multimodal_llm.document_understanding.layout_analysis import Page, Word, analyze_words, iou, split_box
from shared.benchmark import Skip, data_folder
from shared.config import run_commands
from shared.errors import InputError

spec = importlib.util.spec_from_file_location("tiny_models", Path(__file__).with_name("tiny_models.py"))
assert spec is not None and spec.loader is not None
tiny_models = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tiny_models)
tiny_clip, tiny_donut, tiny_layoutlmv3 = tiny_models.tiny_clip, tiny_models.tiny_donut, tiny_models.tiny_layoutlmv3

RECEIPT = [
    (100, 0, "LAKESIDE BOOKS SDN BHD (881234-X)"),
    (120, 40, "12, JALAN BUKIT 3/4, TAMAN INDAH,"),
    (120, 65, "47400 PETALING JAYA"),
    (120, 90, "TEL: 03-7731 8169"),
    (160, 140, "TAX INVOICE"),
    (0, 190, "Invoice no: A-1077"), (500, 190, "Date: 06/03/2018 12:06"),
    (0, 260, "Blue pen"), (600, 260, "14.00"),
    (0, 290, "Sub Total"), (600, 290, "14.00"),
    (0, 320, "GST 6%"), (600, 320, "0.84"),
    (0, 350, "Total Rounded"), (600, 350, "14.85"),
    (0, 380, "Cash"), (600, 380, "20.00"),
    (0, 410, "Change"), (600, 410, "5.15"),
]  # fmt: skip
CHINESE = [
    (300, 0, "湖畔书店有限公司"),
    (0, 60, "发票号码：00123456"), (500, 60, "开票日期：2024年3月5日"),
    (0, 120, "客户："), (200, 120, "王小明"),
    (0, 400, "价税合计"), (500, 400, "¥1,280.00"),
]  # fmt: skip
FORM = [
    (0, 0, "Project Supervisor:"), (300, 0, "J. S. Wigand"),
    (0, 60, "Due date: 5 June 1993"), (500, 60, "Department"), (500, 85, "R&D Library"),
]  # fmt: skip


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def page_of(lines: list[tuple[int, int, str]], number: int = 1) -> Page:
    words: list[Word] = []
    for left, top, text in lines:
        width = 10 * sum(2 if letter > "\u2e80" else 1 for letter in text)
        words += split_box(text, (left, top, left + width, top + 20))
    return analyze_words(words, 1000, 700, number=number)


def cli(*arguments: str) -> int:
    with pytest.raises(SystemExit) as exit_:
        run_commands({"ask": ask, "evaluate": evaluate}, module=MODULE, argv=arguments)
    return exit_.value.code


@pytest.mark.parametrize(
    ("lines", "question", "answer"),
    [
        (RECEIPT, "What is the name of the company?", "LAKESIDE BOOKS SDN BHD"),
        (RECEIPT, "What is the address of the company?", "12, JALAN BUKIT 3/4, TAMAN INDAH, 47400 PETALING JAYA"),
        (RECEIPT, "When was this receipt issued?", "06/03/2018"),
        (RECEIPT, "What is the company's phone number?", "03-7731 8169"),
        (RECEIPT, "How much was the total?", "14.85"),
        (RECEIPT, "How much change was given?", "5.15"),
        (RECEIPT, "What is the subtotal?", "14.00"),
        (RECEIPT, "What is the invoice number?", "A-1077"),
        (RECEIPT, "总金额是多少？", "14.85"),
        (RECEIPT, "日期是什么？", "06/03/2018"),
        (CHINESE, "这张发票的号码是什么？", "00123456"),
        (CHINESE, "发票号码是什么？", "00123456"),
        (CHINESE, "开票日期是哪天？", "2024年3月5日"),
        (CHINESE, "公司名称是什么？", "湖畔书店有限公司"),
        (CHINESE, "客户是谁？", "王小明"),
        (CHINESE, "What is the total amount?", "¥1,280.00"),
        (CHINESE, "What is the customer name?", "王小明"),
        (FORM, "Who is the project supervisor?", "J. S. Wigand"),
        (FORM, "What is the due date?", "5 June 1993"),
        (FORM, "Which department is it?", "R&D Library"),
    ],
)
def test_answers(lines: list[tuple[int, int, str]], question: str, answer: str) -> None:
    page = page_of(lines)
    got = DocumentQA().ask(question, [(page, None)])
    assert got.text == answer
    assert got.found and got.page == 1 and got.box is not None and 0.5 <= got.score <= 1
    inside = "".join(word.text for word in page.words if iou(word.box, got.box) > 0)
    assert all(text in inside for text in answer.split())


@pytest.mark.parametrize(
    ("lines", "question"),
    [
        (RECEIPT, "What is the due date?"), (RECEIPT, "What is the date of birth?"), (RECEIPT, "Who is the customer?"),
        (RECEIPT, "What is the customer's email address?"), (RECEIPT, "What is the delivery date?"),
        (RECEIPT, "What is the capital of France?"), (RECEIPT, "到期日是哪天？"), (RECEIPT, "收银员是谁？"),
        (FORM, "What is the total?"), (FORM, "What is the date?"), (FORM, "What is the invoice number?"),
        (CHINESE, "电话号码是多少？"), (CHINESE, "税额是多少？"), (FORM, "¿Qué hora es?"), (FORM, "?!"),
    ],
)  # fmt: skip
def test_what_is_not_there_is_not_found(lines: list[tuple[int, int, str]], question: str) -> None:
    answer = DocumentQA().ask(question, [(page_of(lines), None)])
    assert not answer.found and answer == Answer(question, score=answer.score)


def test_of_several_pages_the_best_one_answers() -> None:
    document = [(page_of(FORM), None), (page_of(RECEIPT, 2), None), (page_of([], 3), None)]
    assert DocumentQA().ask("What is the total?", document).page == 2
    assert DocumentQA().ask("What is the due date?", document).page == 1
    assert not DocumentQA(min_score=1.0).ask("What is the address?", document).found


def test_tables_answer_by_row_and_column() -> None:
    rows = [("Item", "Quantity", "Price"), ("Pen", "3", "4.50"), ("Paper", "1", "9.00"), ("Black ink", "2", "7.25")]
    page = page_of([((0, 300, 600)[x], 40 * y, text) for y, row in enumerate(rows) for x, text in enumerate(row)])
    qa = DocumentQA()
    assert qa.ask("What is the price of the paper?", [(page, None)]).text == "9.00"
    assert qa.ask("What is the quantity of black ink?", [(page, None)]).text == "2"


@pytest.mark.parametrize(
    ("question", "name"),
    [
        ("What is the address of the store?", "address"), ("the company's phone", "phone"),
        ("When is the payment due?", "due date"),
        ("What is the total on this invoice?", "total"), ("What number does the invoice have?", "invoice number"),
        ("公司的地址是什么？", "address"), ("这张收据的总金额是多少？", "total"), ("Who painted it?", ""),
    ],
)  # fmt: skip
def test_the_field_a_question_asks_for(question: str, name: str) -> None:
    assert wanted(question)[0] == name


def test_labels_are_known_with_small_errors_of_reading_only() -> None:
    assert field_of("T0TAL AMOUNT")[0] == "total" and field_of("Invoice No.")[0] == "invoice number"
    assert field_of("日 期：") == ("date", 1.0) and field_of("TOTAL (RM)") == ("total", 1.0)
    assert field_of("rate")[0] == field_of("Blue pen")[0] == field_of("")[0] == ""
    assert field_of("fax")[0] == "fax" and field_of("tax")[0] == "tax"


@pytest.mark.parametrize(
    ("kind", "value", "text"),
    [
        ("date", "25/12/2018 8:13 PM", "25/12/2018"), ("date", "on 2024-03-05", "2024-03-05"), ("date", "x", ""),
        ("date", "Mar 5, 2024", "Mar 5, 2024"), ("date", "03 MAR 2018 18:22", "03 MAR 2018"), ("amount", "none", ""),
        ("date", "2024 年 3 月 5 日", "2024 年 3 月 5 日"), ("amount", "RM5.00", "RM5.00"),
        ("amount", "RM 33.90", "33.90"), ("amount", "1,234.50 USD", "1,234.50"), ("amount", "€12", "€12"),
        ("address", "1 Main St,\nBath,", "1 Main St, Bath"), ("text", "北京市\n朝阳区", "北京市朝阳区"),
    ],
)  # fmt: skip
def test_values_of_a_kind(kind: str, value: str, text: str) -> None:
    assert of_kind(kind, value)[0] == text


@pytest.mark.parametrize(
    ("rows", "total"),
    [
        ([("Total", "14.85"), ("Cash", "20.00"), ("Change", "5.15")], "14.85"),
        ([("Total incl. GST", "28.31"), ("Total", "28.30"), ("Cash", "50.00"), ("Change", "21.70")], "28.30"),
        ([("Total (excluding GST)", "51.42"), ("Total (inclusive of GST)", "54.50")], "54.50"),
        ([("Amount incl. GST", "5.00 RM"), ("Accepted total", "10.00 RM")], "5.00"),
        ([("Total qty", "7"), ("Sub total", "9.00"), ("TOTA1", "9.50")], "9.50"),
        ([("Cash", "170.00")], "170.00"),
        ([("合计", "¥88.00"), ("找零", "¥12.00")], "¥88.00"),
    ],
)
def test_the_total_of_a_receipt(rows: list[tuple[str, str]], total: str) -> None:
    lines = [(left, 40 * y, text) for y, row in enumerate(rows) for left, text in zip((0, 600), row, strict=True)]
    found = find_total(page_of(lines))
    assert found is not None and found[0] == total
    assert found[1][0] == 600


def test_no_total_among_other_amounts() -> None:
    assert find_total(page_of([(0, 0, "Blue pen"), (600, 0, "14.00"), (0, 40, "Discount"), (600, 40, "1.00")])) is None


def test_anls_follows_its_definition() -> None:
    assert levenshtein("kitten", "sitting") == 3 and levenshtein("", "abc") == 3 and levenshtein("same", "same") == 0
    assert anls(["Ten Dollars"], [["ten  dollars", "10"]]) == 1
    assert anls(["kitten"], [["sitting"]]) == pytest.approx(1 - 3 / 7)
    assert anls(["ab"], [["ax"]]) == 0  # a distance of a half is too far
    assert anls(["", "x"], [[], []]) == 0.5
    assert anls(["ab"], [["ax"]], threshold=0.6) == 0.5
    with pytest.raises(InputError, match="as many answers as references"):
        anls([], [])


def test_metrics_equal_a_plain_implementation() -> None:
    rng = random.Random(0)

    def text() -> str:
        return "".join(rng.choices("abAB 1", k=rng.randint(0, 7)))

    def distance(one: str, other: str) -> int:
        if not one or not other:
            return len(one) + len(other)
        same = one[0] == other[0]
        return min(
            distance(one[1:], other) + 1, distance(one, other[1:]) + 1, distance(one[1:], other[1:]) + (not same)
        )

    total, answers, references = 0.0, [], []
    for _ in range(60):
        answer, accepted = text(), [text() for _ in range(rng.randint(1, 2))]
        answers.append(answer)
        references.append(accepted)
        scores = [0.0]
        for reference in accepted:
            one, other = (" ".join(part.lower().split()) for part in (answer, reference))
            far = distance(one, other) / max(len(one), len(other), 1)
            scores.append(1 - far if far < 0.5 else 0)
        total += max(scores)
    assert anls(answers, references) == pytest.approx(total / 60, abs=1e-6)

    ours = [{key: rng.choice(("x", "y", "")) for key in "abcd"} for _ in range(50)]
    gold = [{key: rng.choice(("x", "y", "")) for key in "abcd"} for _ in range(50)]
    one = {(i, k, v) for i, row in enumerate(ours) for k, v in row.items() if v}
    other = {(i, k, v) for i, row in enumerate(gold) for k, v in row.items() if v}
    precision, recall = len(one & other) / len(one), len(one & other) / len(other)
    assert field_f1(ours, gold) == pytest.approx(2 * precision * recall / (precision + recall), abs=1e-6)


def test_rendered_documents_are_measured() -> None:
    """On families seen in tuning and words as printed, so that only matching is asked for."""
    steps: list[int] = []
    drawn = list(documents("validation", 10, languages=("en",)))
    figures = evaluate_documents(DocumentQA(), drawn, "given", lambda: steps.append(1))
    assert len(steps) == 10 and figures["questions"] == len(figures["rows"]) == sum(len(d.questions) for d in drawn)
    assert figures["anls"] >= 0.97 and figures["not_found_right"] >= 0.97 and figures["found"] >= 0.97
    assert figures["form_grid_anls"] >= 0.97


def test_evaluate_without_a_folder_takes_rendered_documents() -> None:
    assert cli("evaluate", "--words", "given", "--limit", "6", "--run", "r") == 0
    results = json.loads(Path("outputs/multimodal_llm/r/results.json").read_text())
    assert results["data"] == "builtin:documents" and results["metrics"]["documents"] == 6
    assert {"anls", "not_found_right", "found", "field_f1", "form_cards_anls"} <= results["metrics"].keys()


def test_a_label_that_ends_at_its_rule_is_answered() -> None:
    invoice = next(documents("test", 1, languages=("en",)))
    words = [Word(word.text, word.box) for word in invoice.words]
    [value] = [found for found in invoice.fields if found.key == "payment method"]
    near = value.box[0] - 12 - max(w.box[2] for w in words if w.box[2] < value.box[0] and w.text == "method")
    moved = [Word(w.text, (w.box[0] + near, w.box[1], w.box[2] + near, w.box[3])) if w.text in ("Payment", "method")
             else w for w in words]  # fmt: skip
    page = analyze_words(moved, *invoice.pages[0].size, picture=invoice.pages[0])
    answer = DocumentQA().ask("What is the payment method?", [(page, None)])
    assert (answer.text, answer.box) == (value.value, value.box)


def test_a_title_is_no_label_of_what_stands_below() -> None:
    page = page_of([(0, 0, "INVOICE"), (600, 0, "Harbor Hardware & Sons"), (600, 24, "12 Mill Road, Ashford"),
                    (0, 100, "Invoice No.: R-97885"), (0, 140, "Total: 9.00")])  # fmt: skip
    qa = DocumentQA()
    assert qa.ask("What is the invoice number?", [(page, None)]).text == "R-97885"
    assert qa.ask("What is the company?", [(page, None)]).text == "Harbor Hardware & Sons"


def test_a_pdf_of_several_pages_answers_from_the_right_one() -> None:
    pytest.importorskip("rapidocr")
    invoice = make_document(random.Random(1), "invoice classic", pages=2)
    invoice.pages[0].save("long.pdf", save_all=True, append_images=invoice.pages[1:], resolution=144)
    qa = DocumentQA()
    document = qa.read(Path("long.pdf"))
    values = {found.key: found for found in invoice.fields}
    for key, question in (("total", "What is the total?"), ("customer", "Who is the customer?")):
        answer = qa.ask(question, document)
        assert (answer.text, answer.page) == (values[key].value, values[key].page + 1)


def test_field_f1_counts_wrong_and_missing_fields() -> None:
    gold = [{"total": "9.00", "date": "1/2/24"}, {"total": "5.00", "date": ""}]
    assert field_f1(gold, gold) == 1
    # One right of two given and of three there are
    assert field_f1([{"total": "9.00", "date": "x"}, {"total": ""}], gold) == pytest.approx(2 * 1 / (2 + 3))
    assert field_f1([{}, {}], gold) == 0 == field_f1([], [])
    assert same_value("RM 9.00", "rm9.00") and same_value("Sdn. Bhd", "SDN BHD") and not same_value("9.00", "9.01")


def write_receipts(folder: Path) -> Path:
    """Write two receipts as SROIE has them."""
    for name in ("img", "box", "key"):
        (folder / name).mkdir(parents=True)
    fields = {"company": "LAKESIDE BOOKS SDN BHD", "date": "06/03/2018", "total": "14.85",
              "address": "12, JALAN BUKIT 3/4, TAMAN INDAH, 47400 PETALING JAYA"}  # fmt: skip
    for stem in ("000", "001"):
        Image.new("RGB", (1000, 700), "white").save(folder / "img" / f"{stem}.jpg")
        rows = []
        for left, top, text in RECEIPT:
            right, bottom = left + 10 * len(text), top + 20
            rows.append(f"{left},{top},{right},{top},{right},{bottom},{left},{bottom},{text}")
        (folder / "box" / f"{stem}.csv").write_text("\n".join(rows))
        known = fields | ({"total": "1.00"} if stem == "001" else {})
        (folder / "key" / f"{stem}.json").write_text(json.dumps(known))
    return folder


def write_form(folder: Path) -> Path:
    """Write one form as FUNSD has them: a question with its answer, and a question without."""
    for name in ("images", "annotations"):
        (folder / name).mkdir(parents=True)
    Image.new("L", (400, 100), 255).save(folder / "images" / "a.png")
    parts = [
        {"id": 5, "label": "question", "box": [0, 0, 50, 20], "text": "Date:", "linking": [[5, 9]],
         "words": [{"text": "Date:", "box": [0, 0, 50, 20]}]},
        {"id": 9, "label": "answer", "box": [200, 0, 280, 20], "text": "3/4/1992", "linking": [[5, 9]],
         "words": [{"text": "3/", "box": [200, 0, 220, 20]}, {"text": "4/", "box": [220, 0, 240, 20]},
                   {"text": "1992", "box": [240, 0, 280, 20]}]},
        {"id": 2, "label": "question", "box": [0, 60, 50, 80], "text": "Name:", "linking": [],
         "words": [{"text": "Name:", "box": [0, 60, 50, 80]}, {"text": "", "box": [60, 60, 60, 80]}]},
    ]  # fmt: skip
    (folder / "annotations" / "a.json").write_text(json.dumps({"form": parts}))
    return folder


def test_receipts_are_read_and_measured() -> None:
    receipts = list(read_receipts(write_receipts(Path("sroie"))))
    assert [receipt.picture.name for receipt in receipts] == ["000.jpg", "001.jpg"]
    assert receipts[0].words[0] == Word("LAKESIDE", (100, 0, 180, 20))
    steps: list[int] = []
    figures = evaluate_receipts(DocumentQA(), receipts, "given", lambda: steps.append(1))
    assert len(steps) == 2 and len(figures["rows"]) == 8
    assert figures["field_f1"] == pytest.approx(7 / 8) and figures["total_f1"] == 0.5
    assert figures["date_f1"] == figures["company_f1"] == figures["address_f1"] == 1


def test_forms_are_read_and_measured() -> None:
    [form] = read_forms(write_form(Path("funsd")))
    assert [entity.label for entity in form.entities] == ["question", "answer", "question"]
    assert form.links == [(0, 1)] and len(form.entities[2].words) == 1
    words = [word for entity in form.entities for word in entity.words]
    page = analyze_words(words, 400, 100)
    assert linked(page.pairs, form) == (1, 1, 1)
    assert word_recall([Word("date", (0, 0, 50, 20)), Word("3/4/1992", (200, 0, 280, 20))], words) == (5, 4, 4)
    assert word_recall([Word("dale", (0, 0, 50, 20))], words) == (5, 1, 0)
    assert word_recall([], words) == (5, 0, 0)


@pytest.mark.parametrize("data", ["empty", "sroie", "funsd"])
def test_damaged_data_is_one_line(data: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("empty").mkdir()
    (write_receipts(Path("sroie")) / "key" / "001.json").write_text("{")
    (write_form(Path("funsd")) / "annotations" / "a.json").write_text('{"form": [{"id": 1}]}')
    assert cli("evaluate", "--data", data) == 2
    error = capsys.readouterr().err
    assert ("no forms" if data == "empty" else "can't be read") in error and "Traceback" not in error


@pytest.mark.parametrize("key", ["[1]", "[" * 100_000 + "]" * 100_000, '{"total": ' * 100_000])
def test_a_receipt_with_other_json_is_one_error(key: str) -> None:
    (write_receipts(Path("sroie")) / "key" / "001.json").write_text(key)
    with pytest.raises(InputError, match="receipt 001 can't be read"):
        list(read_receipts(Path("sroie")))


@pytest.mark.parametrize("edge", ["nan", "inf", "1e300"])
def test_boxes_that_are_on_no_page_are_one_error(edge: str) -> None:
    with (write_receipts(Path("sroie")) / "box" / "001.csv").open("a") as file:
        file.write(f"\n{edge},0,50,0,50,20,{edge},20,Total")
    with pytest.raises(InputError, match="receipt 001 can't be read: .* is no box"):
        list(read_receipts(Path("sroie")))
    form = write_form(Path("funsd")) / "annotations" / "a.json"
    form.write_text(form.read_text().replace("[0, 0, 50, 20]", f"[{edge.replace('nan', 'NaN')}, 0, 50, 20]"))
    with pytest.raises(InputError, match="a.json can't be read"):
        list(read_forms(Path("funsd")))


@pytest.mark.parametrize("change", [('"text": "Date:"', '"text": 5'), ('{"form": ', '{"form": ' + "[" * 100_000)])
def test_a_form_with_other_json_is_one_error(change: tuple[str, str]) -> None:
    form = write_form(Path("funsd")) / "annotations" / "a.json"
    form.write_text(form.read_text().replace(*change))
    with pytest.raises(InputError, match="a.json can't be read"):
        list(read_forms(Path("funsd")))


def test_the_evaluate_command() -> None:
    write_receipts(Path("sroie"))
    assert cli("evaluate", "--data", "sroie", "--words", "given", "--run", "r", "--limit", "1") == 0
    run = Path("outputs/multimodal_llm/r")
    results = json.loads((run / "results.json").read_text())
    assert results["model"] == "builtin:layout" and results["metrics"]["documents"] == 1
    assert results["metrics"]["field_f1"] == results["metrics"]["anls"] == 1
    rows = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    assert {row["text"] for row in rows} == {row["reference"] for row in rows}
    write_form(Path("funsd"))
    assert cli("evaluate", "--data", "funsd", "--words", "given", "--run", "f") == 0
    metrics = json.loads((run.parent / "f" / "results.json").read_text())["metrics"]
    assert metrics == {"documents": 1, "linking_f1": 1}


def test_the_ask_command_reads_a_picture(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rapidocr")
    picture = Image.new("RGB", (700, 260), "white")
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(26)
    for top, text in ((30, "Lakeside Books Ltd"), (100, "Date: 12/03/2024"), (150, "Total: 48.50")):
        pen.text((40, top), text, "black", font)
    picture.save("invoice.png")
    questions = ["What is the total?", "What is the due date?"]
    assert cli("ask", "--input", "invoice.png", "--question", json.dumps(questions), "--run", "r") == 0
    printed = capsys.readouterr()
    assert "saved in outputs/multimodal_llm/r; drawn are words gray" in printed.err
    total, due = map(json.loads, printed.out.splitlines())
    assert (total["text"], total["found"], total["page"]) == ("48.50", True, 1) and due["found"] is False
    assert Image.open("outputs/multimodal_llm/r/page-1.png").size == (700, 260)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("evaluate", "--data", "nowhere/else.txt"), "No such"),
        (("ask", "--input", "a.png"), "neither a picture"),
        (("ask", "--input", "b.png", "--question", "[' ']"), "question must have"),
        (("ask", "--input", "b.png", "--model", "builtin:other"), "no 'builtin:other'"),
        (("evaluate", "--data", "x", "--min_score", "2"), "min_score"),
    ],
)  # fmt: skip
def test_wrong_input_is_one_line(arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("a.png").write_text("text")
    Image.new("RGB", (4, 4)).save("b.png")
    assert cli(*arguments) in (1, 2)  # 1 where a file is missing
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def test_a_page_that_is_gone_leaves_nothing_behind() -> None:
    page = page_of(FORM)
    DocumentQA().ask("What is the total?", [(page, None)])
    alive = weakref.ref(page)
    del page
    gc.collect()
    assert alive() is None


def test_wrong_questions_and_documents() -> None:
    qa = DocumentQA()
    for question in ("", "x" * 1_001):
        with pytest.raises(InputError, match="question must have"):
            qa.ask(question, [(page_of(FORM), None)])
    with pytest.raises(InputError, match="no pages"):
        qa.ask("What is the total?", [])
    assert not LayoutAnswerer().answer("What is the total?", page_of([])).found


def test_a_layoutlmv3_answers_with_the_words_of_its_best_span(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    qa = DocumentQA(tiny_layoutlmv3(tmp_path / "layoutlm"), device="cpu", min_score=0.0)
    picture = Image.new("RGB", (1000, 700), "white")
    for lines in (FORM, RECEIPT):  # one window, and several
        page = page_of(lines)
        answer = qa.ask("What is the total?", [(page, picture)])
        assert not answer.found or (answer.page == 1 and answer.text.split()[0] in [word.text for word in page.words])
        assert 0 <= answer.score <= 1
    assert not qa.ask("What?", [(page_of([]), picture)]).found
    with pytest.raises(InputError, match=r"question has \d+ tokens; this model reads at most \d+"):
        qa.ask("what " * 150, [(page_of(FORM), picture)])
    assert thousandths((-5, 0, 500, 700), page_of([])) == [0, 0, 500, 1000]


def test_a_donut_writes_its_answer(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    Image.new("RGB", (200, 300), "white").save("page.png")
    qa = DocumentQA(tiny_donut(tmp_path / "donut"), device="cpu", min_score=0.0)
    document = qa.read(Path("page.png"))
    assert [(page.engine, page.words) for page, _ in document] == [("none", [])]  # it reads the picture itself
    answer = qa.ask("what total ?", document)
    assert answer == qa.ask("what total ?", document) and answer.box is None
    assert 0 <= answer.score <= 1 and not set("<>") & set(answer.text.replace("<unk>", ""))
    assert qa.ask("what " * 20, document).score >= 0  # room for fewer tokens than an answer may have
    with pytest.raises(InputError, match=r"question has \d+ tokens; this model reads at most \d+"):
        qa.ask("what " * 150, document)


@pytest.mark.parametrize("tiny", [tiny_layoutlmv3, tiny_donut])
def test_hub_classes_run_by_command(tiny: Callable[[Path], str], tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    folder = tiny(tmp_path / "model")
    flags = ("--words", "given", "--limit", "1", "--min_score", "0", "--device", "cpu", "--run", "r")
    assert cli("evaluate", "--model", folder, *flags) == 0
    results = json.loads(Path("outputs/multimodal_llm/r/results.json").read_text())
    assert results["model"] == folder and results["data"] == "builtin:documents"
    assert 0 <= results["metrics"]["anls"] <= 1


def test_a_model_of_another_class_is_refused(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    transformers.BertConfig().save_pretrained(tmp_path / "bert")
    tiny_clip(tmp_path / "clip")
    for kind in ("bert", "clip"):
        with pytest.raises(InputError, match=f"is a {kind}, which does not answer") as error:
            DocumentQA(str(tmp_path / kind))
        assert "a LayoutLMv3 or a Donut" in error.value.hint and "hub" not in str(error.value)
    layout = transformers.AutoConfig.from_pretrained(tiny_layoutlmv3(tmp_path / "layoutlm"))
    transformers.LayoutLMv3Model(layout).save_pretrained(tmp_path / "layoutlm")  # without a head that answers
    with pytest.raises(InputError, match="is a LayoutLMv3Model, which does not answer"):
        DocumentQA(str(tmp_path / "layoutlm"))
    (tmp_path / "nothing").mkdir()
    with pytest.raises(InputError, match="nothing holds no model for this"):
        DocumentQA(str(tmp_path / "nothing"))


@pytest.mark.slow
def test_fields_of_real_receipts() -> None:
    try:
        folder = data_folder() / "vision" / "sroie"
    except Skip as reason:
        pytest.skip(str(reason))
    figures = evaluate_receipts(DocumentQA(), list(read_receipts(folder)), "given", lambda: None)
    assert figures["date_f1"] >= 0.85 and figures["total_f1"] >= 0.85 and figures["field_f1"] >= 0.65


def test_vocabulary_names_each_label_once() -> None:
    labels = [module.plain(label) for entry in module.FIELDS.values() for label in entry.labels]
    assert len(labels) == len(set(labels)) and all(labels)
