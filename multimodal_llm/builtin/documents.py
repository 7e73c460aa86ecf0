"""Invoices, receipts and forms made by code, with every word's box, every field's value, and questions.

Families are layouts. Those of ``UNSEEN`` are only in the test split, so that what was tuned on the others is measured
on layouts it never saw. A question can be about a field that a document lacks; then the right answer is "not found".

    python -m multimodal_llm.builtin.documents show --split test --count 3 --folder documents/

Latin letters are set in the fonts that come with Pillow and Matplotlib. Chinese ones need a font of the system, such as
Noto Sans CJK; where there is none, documents are in English, and asking for Chinese is an error that says so.
"""

from __future__ import annotations

import functools
import io
import json
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from shared.config import check_range, run_commands
from shared.errors import InputError
from shared.plots import CJK_FONTS
from shared.results import write_atomic

if TYPE_CHECKING:
    from PIL.Image import Image

MODULE = "multimodal_llm.builtin.documents"
Split = Literal["train", "validation", "test"]
Language = Literal["en", "zh"]
SPLITS = ("train", "validation", "test")
Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels
INK, FAINT = (25, 25, 30), (120, 120, 125)
ACCENTS = ((20, 70, 130), (130, 30, 40), (20, 100, 70), (60, 60, 60))
TILT, NOISE = 0.8, 6.0  # of a scan: degrees at most, and standard deviation of its grain, of 255


# --- What a document is made of ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DocumentWord:
    """Letters without a blank between them.

    Attributes:
        text: As printed.
        box: Pixels.
        page: From 0.
    """

    text: str
    box: Box
    page: int


@dataclass(frozen=True)
class DocumentField:
    """A field of a document.

    Attributes:
        key: A key of :data:`LABELS`.
        label: As printed; empty where the value stands alone, as a letterhead does.
        value: As printed, lines joined by a blank.
        box: Of the value, pixels.
        page: From 0.
    """

    key: str
    label: str
    value: str
    box: Box
    page: int


@dataclass(frozen=True)
class DocumentQuestion:
    """A question about a document.

    Attributes:
        question: Its text.
        key: Of the field it is about.
        answer: The value as printed; empty where the document lacks it.
    """

    question: str
    key: str
    answer: str


@dataclass(frozen=True)
class Document:
    """A rendered document.

    Attributes:
        family: Name of its layout, a key of :data:`FAMILIES`.
        language: Of its labels and values.
        pages: Pictures, RGB.
        words: Of all pages.
        fields: What is asked about.
        items: Of an invoice or receipt: name, quantity, price and amount as printed.
        questions: Half as many about what is not there as about what is.
    """

    family: str
    language: Language
    pages: tuple[Image, ...]
    words: tuple[DocumentWord, ...]
    fields: tuple[DocumentField, ...]
    items: tuple[tuple[str, str, str, str], ...]
    questions: tuple[DocumentQuestion, ...]


# --- Words ------------------------------------------------------------------------------------------------------------

# Key → labels in English and in Chinese, and what a question calls it.
LABELS: dict[str, tuple[tuple[str, ...], tuple[str, ...], str, str]] = {
    "company": (("Seller", "Vendor"), ("销售方", "商家"), "company", "公司名称"),
    "address": (("Address",), ("地址",), "address", "地址"),
    "phone": (("Phone", "Tel"), ("电话", "联系电话"), "phone number", "电话"),
    "customer": (("Bill to", "Customer"), ("客户", "购买方"), "customer", "客户"),
    "invoice number": (("Invoice No.", "Invoice number"), ("发票号码", "单号"), "invoice number", "发票号码"),
    "order number": (("Order No.", "Order number"), ("订单号", "订单编号"), "order number", "订单号"),
    "date": (("Date", "Issue date"), ("日期", "开票日期"), "date", "日期"),
    "due date": (("Due date", "Payment due"), ("到期日", "付款期限"), "due date", "到期日"),
    "subtotal": (("Subtotal",), ("小计",), "subtotal", "小计"),
    "tax": (("Tax", "VAT"), ("税额", "税金"), "tax amount", "税额"),
    "total": (("Total", "Total due", "Grand total"), ("合计", "总计"), "total", "总金额"),
    "cash": (("Cash",), ("现金", "实收"), "cash paid", "现金"),
    "change": (("Change",), ("找零",), "change", "找零"),
    "cashier": (("Cashier", "Served by"), ("收银员",), "cashier", "收银员"),
    "payment method": (("Payment method", "Paid by"), ("付款方式", "支付方式"), "payment method", "付款方式"),
    "name": (("Full name", "Name"), ("姓名",), "name", "姓名"),
    "birth date": (("Date of birth",), ("出生日期",), "date of birth", "出生日期"),
    "department": (("Department",), ("部门",), "department", "部门"),
    "position": (("Position", "Job title"), ("职位", "岗位"), "position", "职位"),
    "email": (("Email",), ("邮箱", "电子邮箱"), "email address", "邮箱"),
    "id number": (("ID number",), ("证件号码",), "ID number", "证件号码"),
}
ITEM_HEADS = {"en": ("Description", "Qty", "Price", "Amount"), "zh": ("名称", "数量", "单价", "金额")}
TITLES = {"invoice": ("INVOICE", "发票"), "receipt": ("RECEIPT", "收据"), "form": ("STAFF RECORD", "员工登记表")}
NAMES = {"en": ("Ada Moreno", "Ben Castle", "Clara Novak", "Dario Flint", "Emma Lindqvist", "Farid Haddad", "Grace Obi",
                "Henry Walsh", "Ines Duarte", "Jonas Keller"),
         "zh": ("王小明", "李静", "张伟", "陈晓红", "刘洋", "赵敏", "周杰", "孙丽")}  # fmt: skip
FIRMS = {"en": (("Northgate", "Bluebird", "Harbor", "Oakline", "Silverleaf", "Maple Street", "Granite", "Sunrise"),
                ("Hardware", "Books", "Foods", "Stationery", "Garden Supply", "Electronics", "Bakery"),
                ("Ltd.", "Inc.", "& Sons", "Company")),
         "zh": (("北京", "上海", "杭州", "成都"), ("新华", "明达", "绿叶", "晨光"),
                ("文具有限公司", "食品有限公司", "五金商店"))}  # fmt: skip
STREETS = {"en": (("Mill Road", "Station Street", "Park Avenue", "Harbor Lane", "King Street", "Elm Drive"),
                  ("Springfield", "Riverton", "Lakewood", "Brookfield", "Ashford")),
           "zh": (("中山路", "人民路", "解放大道", "建设街"), ("北京市", "上海市", "杭州市", "成都市"))}  # fmt: skip
GOODS = {"en": ("Notebook A5", "Ballpoint pen", "Desk lamp", "Paper clips", "Coffee beans", "Green tea", "Wood screws",
                "Paint brush", "Garden hose", "USB cable", "Whole bread", "Olive oil", "Hand soap", "Light bulb"),
         "zh": ("笔记本", "圆珠笔", "台灯", "咖啡豆", "绿茶", "木螺丝", "油漆刷", "数据线", "面包",
                "橄榄油")}  # fmt: skip
DEPARTMENTS = {"en": ("Finance", "Research", "Sales", "Logistics"), "zh": ("财务部", "研发部", "销售部", "物流部")}
POSITIONS = {"en": ("Accountant", "Engineer", "Manager", "Driver"), "zh": ("会计", "工程师", "经理", "司机")}
PAYMENTS = {"en": ("Credit card", "Bank transfer", "Cheque"), "zh": ("信用卡", "银行转账", "支票")}


def _date(rng: random.Random, language: str, years: tuple[int, int] = (2021, 2026)) -> str:
    year, month, day = rng.randint(*years), rng.randint(1, 12), rng.randint(1, 28)
    months = "Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split()
    forms = {"en": (f"{year}-{month:02}-{day:02}", f"{day:02}/{month:02}/{year}", f"{day} {months[month - 1]} {year}"),
             "zh": (f"{year}年{month}月{day}日", f"{year}-{month:02}-{day:02}")}  # fmt: skip
    return rng.choice(forms[language])


def _values(rng: random.Random, language: str, rows: int) -> tuple[dict[str, str], list[tuple[str, str, str, str]]]:
    """Draw what all fields say, whose sums are right, and the rows of the table."""
    unit = "" if language == "en" and rng.random() < 0.5 else {"en": "$", "zh": "¥"}[language]
    items, subtotal = [], 0
    for name in (
        rng.sample(GOODS[language], rows) if rows <= len(GOODS[language]) else rng.choices(GOODS[language], k=rows)
    ):
        quantity, price = rng.randint(1, 9), rng.randint(99, 4999)  # cents
        subtotal += quantity * price
        items.append((name, str(quantity), f"{price / 100:,.2f}", f"{quantity * price / 100:,.2f}"))
    tax = round(subtotal * rng.choice((0.05, 0.08, 0.13, 0.2)))
    total = subtotal + tax
    cash = (total // 5000 + 1) * 5000
    street, town = (rng.choice(part) for part in STREETS[language])
    number = rng.randint(2, 180)
    name = rng.choice(NAMES[language])
    values = {
        "company": (" " if language == "en" else "").join(rng.choice(part) for part in FIRMS[language]),
        "address": f"{number} {street}, {town}" if language == "en" else f"{town}{street}{number}号",
        "phone": f"{rng.randint(200, 989)}-{rng.randint(200, 999)}-{rng.randint(1000, 9999)}",
        "customer": rng.choice([one for one in NAMES[language] if one != name]),
        "invoice number": f"{rng.choice(('INV-', 'A', 'R-', ''))}{rng.randint(10000, 99999)}",
        "order number": f"PO-{rng.randint(1000, 9999)}",
        "date": _date(rng, language), "due date": _date(rng, language),
        "subtotal": f"{unit}{subtotal / 100:,.2f}", "tax": f"{unit}{tax / 100:,.2f}",
        "total": f"{unit}{total / 100:,.2f}", "cash": f"{unit}{cash / 100:,.2f}",
        "change": f"{unit}{(cash - total) / 100:,.2f}", "cashier": name, "name": name,
        "payment method": rng.choice(PAYMENTS[language]), "birth date": _date(rng, language, (1955, 2003)),
        "department": rng.choice(DEPARTMENTS[language]), "position": rng.choice(POSITIONS[language]),
        "email": f"staff{rng.randint(10, 99)}@example.com", "id number": f"{rng.randint(10**7, 10**8 - 1)}",
    }  # fmt: skip
    return values, items


# --- Pen and paper ----------------------------------------------------------------------------------------------------


@functools.cache
def chinese_font() -> str:
    """Return the file of an installed font with Chinese letters; empty if there is none."""
    from matplotlib import font_manager

    files = {font.name: font.fname for font in font_manager.fontManager.ttflist}
    return next((files[name] for name in CJK_FONTS if name in files), "")


@functools.cache
def _font(name: str, size: int) -> Any:
    """Return a font: ``plain`` is Pillow's own, ``zh`` a Chinese one, any other name a file of Matplotlib's."""
    from matplotlib import get_data_path
    from PIL import ImageFont

    if name == "plain":
        return ImageFont.load_default(size)
    file = chinese_font() if name == "zh" else Path(get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"
    return ImageFont.truetype(str(file), size)


@dataclass
class _Sheet:
    """Pages in the making; everything that is written is also written down."""

    rng: random.Random
    language: Language
    size: tuple[int, int]
    values: dict[str, str]
    items: list[tuple[str, str, str, str]]
    font: str
    accent: tuple[int, int, int]
    pages: list[Image] = field(default_factory=list)
    words: list[DocumentWord] = field(default_factory=list)
    fields: list[DocumentField] = field(default_factory=list)

    def new_page(self) -> None:
        from PIL import Image, ImageDraw

        self.pages.append(Image.new("RGB", self.size, (255, 255, 255)))
        self.pen = ImageDraw.Draw(self.pages[-1])

    def write(self, x: float, y: float, text: str, size: int = 20, align: str = "l", color: Any = INK,
              bold: bool = False) -> Box:  # fmt: skip
        """Write one line whose top is y; x is its left end, middle or right end, as ``align`` l, m or r says."""
        font = _font(self.font, size)
        stroke = 1 if bold and size >= 16 else 0  # Pillow's own font has no bold face
        x -= font.getlength(text) * {"l": 0, "m": 0.5, "r": 1}[align]
        boxes: list[Box] = []
        start = 0
        for word in text.split(" "):
            at = x + font.getlength(text[:start])
            self.pen.text((at, y), word, color, font, stroke_width=stroke, stroke_fill=color)
            boxes.append(tuple(map(float, self.pen.textbbox((at, y), word, font, stroke_width=stroke))))  # type: ignore[arg-type]
            self.words.append(DocumentWord(word, boxes[-1], len(self.pages) - 1))
            start += len(word) + 1
        return _around(boxes)

    def label(self, key: str) -> str:
        """Draw how a field is called here."""
        return self.rng.choice(LABELS[key][0 if self.language == "en" else 1])

    def value(self, key: str, x: float, y: float, size: int = 20, align: str = "l", label: str = "",
              **style: Any) -> None:  # fmt: skip
        """Write a field's value and note where it is."""
        box = self.write(x, y, self.values[key], size, align, **style)
        self.fields.append(DocumentField(key, label, self.values[key], box, len(self.pages) - 1))

    def pair(self, key: str, x: float, y: float, gap: float, size: int = 20, align: str = "l", colon: bool = True,
             **style: Any) -> None:  # fmt: skip
        """Write a label, and its value ``gap`` pixels to the right of where the label begins."""
        label = self.label(key)
        self.write(x, y, label + (":" if colon else ""), size, color=style.pop("label_color", INK), **style)
        self.value(key, x + gap, y, size, align, label, **style)

    def stacked(self, key: str, x: float, y: float, size: int = 20) -> None:
        """Write a label in small letters and its value below."""
        label = self.label(key)
        self.write(x, y, label, size - 5, color=FAINT)
        self.value(key, x, y + size + 2, size, label=label)

    def rule(self, x: float, y: float, right: float, width: int = 1, color: Any = INK) -> None:
        self.pen.line((x, y, right, y), color, width)

    def table(self, items: list[tuple[str, str, str, str]], y: float, filled: bool, ruled: bool) -> float:
        """Write rows of goods under a head; return where the next thing can begin."""
        left, right = 70.0, self.size[0] - 70.0
        ends = (left + 12, right - 300, right - 150, right - 12)
        if filled:
            self.pen.rectangle((left, y - 8, right, y + 30), self.accent)
        for i, (head, x) in enumerate(zip(ITEM_HEADS[self.language], ends, strict=True)):
            self.write(x, y, head, 18, "r" if i else "l", (255, 255, 255) if filled else INK, True)
        for row in items:
            y += 38
            self.rule(left, y - 8, right, 1, INK if ruled else (205, 205, 205))
            for i, (cell, x) in enumerate(zip(row, ends, strict=True)):
                self.write(x, y, cell, 18, "r" if i else "l")
        self.rule(left, y + 30, right, 1 if ruled else 2)
        return y + 50


def _around(boxes: list[Box]) -> Box:
    lefts, tops, rights, bottoms = zip(*boxes, strict=True)
    return min(lefts), min(tops), max(rights), max(bottoms)


# --- Families ---------------------------------------------------------------------------------------------------------


def _goods(sheet: _Sheet, y: float, pages: int, filled: bool, ruled: bool) -> float:
    """Write the table, over several pages if need be."""
    each = -(-len(sheet.items) // pages)
    for page in range(pages):
        if page:
            sheet.write(sheet.size[0] / 2, sheet.size[1] - 60, f"{page} / {pages}", 16, "m", FAINT)
            sheet.new_page()
            y = 90.0
        y = sheet.table(sheet.items[page * each : (page + 1) * each], y, filled, ruled)
    return y


def _sums(sheet: _Sheet, y: float, left: float, right: float) -> None:
    for key in ("subtotal", "tax", "total"):
        if key == "total":
            sheet.rule(left, y - 4, right, 2)
            y += 6
        sheet.pair(key, left, y, right - left, 24 if key == "total" else 20, "r", bold=key == "total")
        y += 34


def _invoice_classic(sheet: _Sheet, pages: int) -> None:
    sheet.value("company", 70, 70, 32, color=sheet.accent, bold=True)
    sheet.value("address", 70, 118, 18)
    sheet.pair("phone", 70, 146, 90, 18)
    sheet.write(830, 70, TITLES["invoice"][sheet.language == "zh"], 36, "r", FAINT)
    for i, key in enumerate(("invoice number", "date", "due date")):
        sheet.pair(key, 540, 215 + 32 * i, 290, 20, "r")
    sheet.pair("customer", 70, 215, 130)
    _sums(sheet, _goods(sheet, 350, pages, True, False), 540, 818)


def _invoice_stacked(sheet: _Sheet, pages: int) -> None:
    sheet.rule(70, 60, 830, 6, sheet.accent)
    sheet.write(70, 84, TITLES["invoice"][sheet.language == "zh"], 40, bold=True)
    sheet.value("company", 830, 84, 24, "r", bold=True)
    sheet.value("address", 830, 120, 17, "r")
    for i, key in enumerate(("invoice number", "date", "order number", "customer")):
        sheet.stacked(key, 70 + 195 * i, 205, 20)
    y = _goods(sheet, 310, pages, False, False)
    _sums(sheet, y, 540, 818)
    sheet.pair("payment method", 70, y + 10, 190, 18)


def _invoice_boxed(sheet: _Sheet, pages: int) -> None:
    sheet.write(450, 60, TITLES["invoice"][sheet.language == "zh"], 34, "m", bold=True)
    sheet.value("company", 450, 112, 24, "m", color=sheet.accent)
    for i, key in enumerate(("customer", "invoice number", "date", "payment method")):
        x, y = 70 + 380 * (i % 2), 180 + 52 * (i // 2)
        sheet.pen.rectangle((x, y, x + 380, y + 52), outline=INK)
        sheet.pen.line((x + 180, y, x + 180, y + 52), INK)
        sheet.pair(key, x + 12, y + 16, 180, 18, colon=False)
    _sums(sheet, _goods(sheet, 330, pages, False, True), 520, 818)
    sheet.pair("address", 70, sheet.size[1] - 120, 110, 17)


def _receipt_head(sheet: _Sheet, middle: float) -> None:
    sheet.value("company", middle, 36, 25, "m", bold=True)
    sheet.value("address", middle, 76, 17, "m")


def _receipt_narrow(sheet: _Sheet, pages: int) -> None:
    right = sheet.size[0] - 30.0
    _receipt_head(sheet, sheet.size[0] / 2)
    for i, key in enumerate(("invoice number", "date", "cashier")):
        sheet.pair(key, 30, 120 + 28 * i, 215, 18)
    y = 218.0
    for name, quantity, price, amount in sheet.items:
        sheet.write(30, y, name, 18)
        sheet.write(30, y + 25, f"{quantity} x {price}", 17)
        sheet.write(right, y + 25, amount, 18, "r")
        y += 56
    sheet.rule(30, y, right)
    for key in ("subtotal", "tax", "total", "cash", "change"):
        sheet.pair(key, 30, y + 14, right - 30, 24 if key == "total" else 18, "r", False, bold=key == "total")
        y += 36
    sheet.write(sheet.size[0] / 2, y + 40, {"en": "Thank you!", "zh": "谢谢惠顾"}[sheet.language], 18, "m")


def _receipt_columns(sheet: _Sheet, pages: int) -> None:
    right = sheet.size[0] - 30.0
    sheet.write(30, 34, TITLES["receipt"][sheet.language == "zh"], 22, bold=True)
    sheet.value("date", right, 36, 17, "r")
    sheet.rule(30, 70, right, 2)
    y = 86.0
    for name, quantity, _, amount in sheet.items:
        sheet.write(30, y, quantity, 18)
        sheet.write(70, y, name, 18)
        sheet.write(right, y, amount, 18, "r")
        y += 32
    sheet.rule(30, y + 4, right, 2)
    for key in ("total", "tax", "payment method"):
        sheet.pair(key, 30, y + 20, right - 30, 20, "r", bold=key == "total")
        y += 34
    sheet.value("company", 30, y + 60, 22, bold=True)
    sheet.value("address", 30, y + 94, 16)
    sheet.pair("phone", 30, y + 120, 80, 16)


STAFF = ("name", "birth date", "id number", "department", "position", "phone", "email", "date")


def _form_grid(sheet: _Sheet, pages: int) -> None:
    sheet.write(450, 80, TITLES["form"][sheet.language == "zh"], 32, "m", bold=True)
    keys = sheet.rng.sample(STAFF, 6)
    for i, key in enumerate(keys):
        y = 170 + 64 * i
        sheet.pen.rectangle((90, y, 330, y + 64), (238, 240, 244), INK)
        sheet.pen.rectangle((330, y, 810, y + 64), None, INK)
        sheet.pair(key, 108, y + 20, 240, 21, colon=False)


def _form_lines(sheet: _Sheet, pages: int) -> None:
    sheet.write(90, 80, TITLES["form"][sheet.language == "zh"], 30, color=sheet.accent, bold=True)
    for i, key in enumerate(sheet.rng.sample(STAFF, 6)):
        y = 170 + 62 * i
        sheet.pair(key, 90, y, 220)
        sheet.rule(300, y + 28, 760, 1, FAINT)


def _form_cards(sheet: _Sheet, pages: int) -> None:
    sheet.pen.rectangle((0, 0, sheet.size[0], 110), sheet.accent)
    sheet.write(70, 38, TITLES["form"][sheet.language == "zh"], 32, color=(255, 255, 255))
    for i, key in enumerate(sheet.rng.sample(STAFF, 6)):
        x, y = 70 + 390 * (i % 2), 160 + 110 * (i // 2)
        sheet.pen.rounded_rectangle((x, y, x + 370, y + 90), 10, outline=(190, 190, 195), width=2)
        sheet.stacked(key, x + 18, y + 16, 21)


A4, SLIP, HALF = (900, 1272), (460, 1000), (900, 640)
FAMILIES: dict[str, tuple[tuple[int, int], Callable[[_Sheet, int], None]]] = {
    "invoice classic": (A4, _invoice_classic), "invoice stacked": (A4, _invoice_stacked),
    "receipt narrow": (SLIP, _receipt_narrow), "form grid": (HALF, _form_grid), "form lines": (HALF, _form_lines),
    "invoice boxed": (A4, _invoice_boxed), "receipt columns": (SLIP, _receipt_columns),
    "form cards": (HALF, _form_cards),
}  # fmt: skip
UNSEEN = ("invoice boxed", "receipt columns", "form cards")  # only in the test split, which has no others


# --- Documents --------------------------------------------------------------------------------------------------------


def make_document(rng: random.Random, family: str, language: Language = "en", pages: int = 1,
                  scan: bool = False) -> Document:  # fmt: skip
    """Draw one document.

    Args:
        rng: What it draws from.
        family: A key of :data:`FAMILIES`.
        language: Of labels and values.
        pages: Of an invoice, >= 1; receipts and forms have one.
        scan: Whether it is turned a little, blurred and noisy.

    Raises:
        InputError: There is no such family, no font for the language, or the pages are too few.
    """
    if family not in FAMILIES:
        raise InputError(f"family must be one of {', '.join(FAMILIES)}. Got {family!r}.")
    check_range("pages", pages, 1, 20)
    if language == "zh" and not chinese_font():
        raise InputError("No font here has Chinese letters.", hint="install Noto Sans CJK, or take --language en")
    size, draw = FAMILIES[family]
    rows = rng.randint(3, 7) * pages if family.startswith("invoice") else rng.randint(2, 6)
    values, items = _values(rng, language, rows)
    faces = ("DejaVuSansMono", "plain") if family.startswith("receipt") else ("plain", "DejaVuSans", "DejaVuSerif")
    face = rng.choice(faces) if language == "en" else "zh"
    sheet = _Sheet(rng, language, size, values, items, face, rng.choice(ACCENTS))
    sheet.new_page()
    draw(sheet, pages)
    images, words, fields = sheet.pages, sheet.words, sheet.fields
    if scan:
        images, words, fields = _scanned(images, words, fields, rng)
    shown = () if family.startswith("form") else tuple(items)
    asked = _questions(fields, language, rng)
    return Document(family, language, tuple(images), tuple(words), tuple(fields), shown, tuple(asked))


def _questions(fields: list[DocumentField], language: str, rng: random.Random) -> list[DocumentQuestion]:
    there = {one.key: one.value for one in fields}
    absent = rng.sample(sorted(LABELS.keys() - there.keys()), max(1, len(there) // 2))
    return [DocumentQuestion(f"What is the {LABELS[key][2]}?" if language == "en" else f"{LABELS[key][3]}是什么？",
                             key, there.get(key, "")) for key in [*there, *absent]]  # fmt: skip


def _scanned(
    pages: list[Image], words: list[DocumentWord], fields: list[DocumentField], rng: random.Random
) -> tuple[list[Image], list[DocumentWord], list[DocumentField]]:
    """Turn pages by up to :data:`TILT` degrees, blur them and add grain; boxes follow."""
    import math
    from dataclasses import replace

    import numpy as np
    from PIL import Image, ImageFilter

    noise = np.random.default_rng(rng.getrandbits(32))
    degrees = [rng.uniform(-TILT, TILT) for _ in pages]
    width, height = pages[0].size

    def turned(box: Box, page: int) -> Box:
        angle = -math.radians(degrees[page])  # Pillow turns against the clock, and y goes down
        corners = [(x - width / 2, y - height / 2) for x in (box[0], box[2]) for y in (box[1], box[3])]
        xs = [x * math.cos(angle) - y * math.sin(angle) + width / 2 for x, y in corners]
        ys = [x * math.sin(angle) + y * math.cos(angle) + height / 2 for x, y in corners]
        return min(xs), min(ys), max(xs), max(ys)

    scans = []
    for page, angle in zip(pages, degrees, strict=True):
        turned_page = page.rotate(angle, Image.Resampling.BICUBIC, fillcolor=(255, 255, 255))
        pixels = np.asarray(turned_page.filter(ImageFilter.GaussianBlur(0.5)), dtype=np.float32) * 0.97
        grain = noise.normal(0, NOISE, pixels.shape[:2])[..., None]  # the same in all colors
        scans.append(Image.fromarray((pixels + grain).clip(0, 255).astype(np.uint8)))
    return (scans, [replace(one, box=turned(one.box, one.page)) for one in words],
            [replace(one, box=turned(one.box, one.page)) for one in fields])  # fmt: skip


def documents(split: Split, count: int, seed: int = 0, *, languages: tuple[Language, ...] | None = None,
              pages: int = 1, scan: bool = False) -> Iterator[Document]:  # fmt: skip
    """Draw documents of a split, one family after the other.

    Args:
        split: ``test`` has the layouts that no other split has.
        count: How many, >= 0.
        seed: Another one draws others.
        languages: In turn; by default English and, where there is a font for it, Chinese.
        pages: Of invoices, >= 1.
        scan: Whether they look scanned.

    Raises:
        InputError: There is no such split, or the count is negative.
    """
    if split not in SPLITS:
        raise InputError(f"split must be one of {', '.join(SPLITS)}. Got {split!r}.")
    check_range("count", count, 0)
    check_range("pages", pages, 1, 20)
    spoken: tuple[Language, ...] = languages or (("en", "zh") if chinese_font() else ("en",))
    families = UNSEEN if split == "test" else tuple(name for name in FAMILIES if name not in UNSEEN)
    rng = random.Random(f"documents {split} {seed}")
    return (make_document(rng, families[i % len(families)], spoken[i // len(families) % len(spoken)], pages, scan)
            for i in range(count))  # fmt: skip


# --- Commands ---------------------------------------------------------------------------------------------------------


@dataclass
class ShowConfig:
    """Print the fields and questions of documents, and save their pages."""

    split: Split = "train"
    """Of which split."""
    count: int = 3
    """How many, >= 1."""
    seed: int = 0
    """Another one draws others."""
    language: Literal["any", "en", "zh"] = "any"
    """Of labels and values; any: English, and Chinese where there is a font for it."""
    pages: int = 1
    """Of an invoice, >= 1."""
    scan: bool = False
    """Turn pages a little and make them noisy."""
    folder: str = ""
    """Where pages go as PNG; by default none is saved."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_range("count", self.count, 1)
        check_range("pages", self.pages, 1, 20)


def show(config: ShowConfig) -> None:
    """Print documents; see :class:`ShowConfig`."""
    languages = None if config.language == "any" else (config.language,)
    its = documents(config.split, config.count, config.seed, languages=languages, pages=config.pages, scan=config.scan)
    for number, one in enumerate(its):
        row = {"family": one.family, "fields": {found.key: found.value for found in one.fields},
               "questions": [asdict(question) for question in one.questions]}  # fmt: skip
        sys.stdout.write(json.dumps(row, ensure_ascii=False, indent=2) + "\n")
        for page, picture in enumerate(one.pages if config.folder else ()):
            file = io.BytesIO()
            picture.save(file, "PNG")
            write_atomic(Path(config.folder) / f"{config.split}-{number}-{page + 1}.png", file.getvalue())


if __name__ == "__main__":
    run_commands({"show": show}, module=MODULE, extra="multimodal")
