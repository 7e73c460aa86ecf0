"""Questions about forms, receipts and invoices: an answer with its place and score, or "not found".

    python -m multimodal_llm.document_understanding.document_qa ask --input receipt.jpg --question "What is the total?"
    python -m multimodal_llm.document_understanding.document_qa evaluate
    python -m multimodal_llm.document_understanding.document_qa evaluate --data sroie/

``builtin:layout`` matches the question with the labels on the page, through a small vocabulary in English and Chinese,
and answers with the value beside or below. Any LayoutLMv3 (Huang et al., 2022, arXiv:2204.08387) or Donut (Kim et al.,
2022, arXiv:2111.15664) that was tuned to answer questions takes its place by hub id or folder. The metric of the field
is ANLS (Biten et al., 2019, arXiv:1905.13648).
"""

from __future__ import annotations

import csv
import functools
import io
import json
import logging
import math
import re
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from difflib import SequenceMatcher
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakKeyDictionary

from multimodal_llm.builtin.documents import Document as Rendered
from multimodal_llm.builtin.documents import documents
from multimodal_llm.document_understanding.layout_analysis import (
    BUILTIN_DATA,
    LEGEND,
    Box,
    Line,
    Page,
    Pair,
    Word,
    analyze_file,
    analyze_words,
    around,
    draw_page,
    find_pairs,
    group_rows,
    iou,
    is_wide,
    join_words,
    read_pages,
    recognize,
    rendered_file,
    split_box,
)
from shared.config import check_range, run_commands
from shared.errors import InputError
from shared.logs import progress_bar
from shared.results import Run, write_atomic
from shared.runtime import pick_device, set_threads
from shared.sources import Source, loading_errors, resolve

if TYPE_CHECKING:
    from PIL.Image import Image

PROJECT = "multimodal_llm"
MODULE = f"{PROJECT}.document_understanding.document_qa"
NOT_RECIPE = {"recipe": False}
BUILTIN = "builtin:layout"
RENDERED = 24  # documents of it: half a minute of OCR on one core
LONGEST_QUESTION = 1_000  # letters
logger = logging.getLogger(MODULE)


@dataclass(frozen=True)
class Answer:
    """What was found for a question.

    Attributes:
        question: As it was asked.
        text: The answer as it stands on the page; empty where nothing was found.
        score: In [0, 1]; of the best guess, even where it was too low to answer.
        page: From 1; None where nothing was found.
        box: Around the answer, in pixels of the page; None where nothing was found, or the model does not say where.
    """

    question: str
    text: str = ""
    score: float = 0.0
    page: int | None = None
    box: Box | None = None

    @property
    def found(self) -> bool:
        """Whether there is an answer."""
        return self.page is not None


# --- The vocabulary ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Field:
    """Something people ask for: what kind of value it has, and the labels that stand beside it."""

    kind: Literal["text", "date", "amount", "address"]
    labels: tuple[str, ...]


def _field(kind: Any, labels: str) -> Field:
    return Field(kind, tuple(label.strip() for label in labels.split(",")))


FIELDS = {
    "company": _field(
        "text",
        "company, company name, seller, seller name, vendor, vendor name, merchant, merchant name, "
        "store, store name, shop, shop name, business name, supplier, issuer, restaurant, sold by, "
        "issued by, "
        "公司, 公司名称, 商家, 商户, 商户名称, 商店, 店名, 门店, 销售方, 销售方名称, 卖方, 开票单位, "
        "供应商",
    ),
    "customer": _field(
        "text",
        "customer, customer name, client, client name, buyer, bill to, billed to, sold to, invoice to, "
        "购买方, 购买方名称, 客户, 客户名称, 买方, 购方, 收票方",
    ),
    "name": _field("text", "name, full name, applicant, applicant name, 姓名, 名字, 申请人"),
    "date": _field(
        "date",
        "date, invoice date, issue date, date of issue, date issued, receipt date, bill date, "
        "transaction date, purchase date, "
        "日期, 开票日期, 开具日期, 发票日期, 交易日期, 消费日期",
    ),
    "due date": _field(
        "date",
        "due date, payment due, date due, due by, pay by, due on, 到期日, 到期日期, 付款期限, 付款截止日期, 截止日期",
    ),
    "delivery date": _field(
        "date",
        "delivery date, ship date, shipping date, date of delivery, 交货日期, 发货日期, 送货日期",
    ),
    "birth date": _field("date", "date of birth, birth date, birthday, dob, born, 出生日期, 生日, 出生年月"),
    "expiry date": _field("date", "expiry date, expiration date, date of expiry, valid until, 有效期, 有效期至"),
    "time": _field("text", "time, transaction time, 时间, 交易时间"),
    "total": _field(
        "amount",
        "total, total amount, grand total, amount due, total due, balance due, total payable, "
        "amount payable, nett total, net total, total price, "
        "合计, 总计, 总额, 总金额, 合计金额, 价税合计, 应付, 应付金额, 金额合计",
    ),
    "subtotal": _field("amount", "subtotal, sub total, total before tax, 小计"),
    "tax": _field("amount", "tax, tax amount, sales tax, vat, vat amount, gst, gst amount, 税额, 税金, 税费, 增值税"),
    "tax rate": _field("text", "tax rate, vat rate, gst rate, 税率"),
    "discount": _field("amount", "discount, rebate, 折扣, 优惠, 折扣金额"),
    "cash": _field("amount", "cash, cash paid, amount paid, amount tendered, tendered, 现金, 实收, 实付, 付款金额"),
    "change": _field("amount", "change, change due, 找零, 找赎"),
    "invoice number": _field(
        "text",
        "invoice number, invoice, invoice id, receipt number, receipt, receipt id, bill number, "
        "document number, doc number, "
        "发票号码, 发票号, 发票编号, 单号, 小票号, 收据号, 收据编号, 票号",
    ),
    "order number": _field(
        "text",
        "order number, order, order id, purchase order, po number, 订单号, 订单编号, 采购单号",
    ),
    "reference": _field(
        "text",
        "reference, reference number, ref, ref number, case number, form number, 编号, 参考号, 申请编号, 表格编号",
    ),
    "tax number": _field(
        "text",
        "tax id, tax number, vat number, gst id, gst number, gst registration number, 税号, 纳税人识别号",
    ),
    "phone": _field(
        "text",
        "phone, phone number, telephone, telephone number, tel, mobile, mobile number, contact number, "
        "电话, 联系电话, 手机, 手机号, 电话号码, 手机号码",
    ),
    "fax": _field("text", "fax, fax number, 传真"),
    "email": _field("text", "email, email address, e mail, mail, 邮箱, 电子邮件, 电子邮箱"),
    "website": _field("text", "website, web, homepage, url, 网址, 网站"),
    "address": _field(
        "address",
        "address, street address, company address, store address, 地址, 公司地址, 店址, 商家地址",
    ),
    "home address": _field("address", "home address, customer address, residence, 住址, 家庭住址, 客户地址, 通讯地址"),
    "cashier": _field("text", "cashier, served by, operator, clerk, 收银员, 收款人, 经办人"),
    "payment method": _field(
        "text",
        "payment method, paid by, payment, payment type, payment mode, method of payment, 付款方式, 支付方式, 结算方式",
    ),
    "department": _field("text", "department, dept, division, 部门, 所属部门"),
    "position": _field("text", "position, job title, occupation, title, 职位, 职务, 职业, 岗位"),
    "gender": _field("text", "gender, sex, 性别"),
    "nationality": _field("text", "nationality, 国籍"),
    "id number": _field("text", "id number, identity number, passport number, 身份证号, 身份证号码, 证件号码, 护照号"),
    "quantity": _field("text", "quantity, qty, 数量"),
    "price": _field("amount", "unit price, price, 单价, 价格"),
    "signature": _field("text", "signature, signed by, 签名, 签字"),
}
# Words that name a field without a label's help
ASKED_BY = {"date": ("when", "何时", "什么时候", "哪天", "哪一天"), "address": ("where", "哪里", "在哪"),
            "total": ("how much", "多少钱"), "company": ("which company", "哪家", "谁开")}  # fmt: skip
OF_THE_PAGE = ("invoice", "receipt", "order")  # labels that often say only where to look, as in "on this receipt"
# What a question may say beside the label and still mean the page's own date, total, company or address
EMPTY_WORDS = frozenset(
    "a an the of on in at to for from by with is are was were be been do does did has have what which who whose when "
    "where how much many can could you please tell me find give show i it its this that there and name number value "
    "field written stated listed shown given printed document page receipt invoice bill form paper letter store shop "
    "company seller vendor merchant issued issue made paid pay purchase date total amount address full final cost "
    "price located location here s bought".split()
)
CHINESE_FILL = re.compile(
    "请问|请告诉我|是什么时候|什么时候|是什么|是多少|多少钱|是谁|是哪家|是哪里|在哪里|是哪天|什么|多少|哪里|哪家|在哪|这张|这份|这个|这家|该|"
    "票据上|发票上|收据上|小票上|表格上|上面|上的|里的|中的|的|吗|呢|是"
)


@functools.lru_cache(maxsize=4096)
def plain(text: str) -> str:
    """Bring a label or a question to plain form: lower case, no marks, no brackets and what is in them."""
    text = unicodedata.normalize("NFKC", text).casefold()
    outside = re.sub(r"\(.*?\)|\[.*?\]|【.*?】", " ", text)
    text = outside if outside.strip() else text
    text = re.sub(r"\bno\b\.?|#|№", " number ", text)
    text = re.sub(r"e-mail", "email", text)
    text = re.sub(r"[^\w%]+|_+", " ", text)
    # Forms spread the letters of Chinese labels over the line
    return re.sub(r"(?<=[\u2e80-\u9fff]) (?=[\u2e80-\u9fff])", "", " ".join(text.split()))


def similarity(one: str, other: str) -> float:
    """Return how alike two plain texts are, in [0, 1]: twice the letters in common over all; blanks are free."""
    one, other = one.replace(" ", ""), other.replace(" ", "")
    if not one or not other:
        return 0.0
    matcher = SequenceMatcher(None, one, other, autojunk=False)
    return 1.0 if one == other else min(matcher.ratio(), 0.99)


@functools.cache
def _labels() -> list[tuple[str, str, frozenset[str]]]:
    """Return every label of the vocabulary: plain without blanks, its field, its letters."""
    plains = [(plain(label).replace(" ", ""), name) for name, entry in FIELDS.items() for label in entry.labels]
    return [(label, name, frozenset(label)) for label, name in plains]


@functools.lru_cache(maxsize=4096)
def field_of(label: str, least: float = 0.86) -> tuple[str, float]:
    """Return the field that a label on a page names, and how surely; ``("", 0)`` where it is none of them."""
    text = plain(label).replace(" ", "")
    letters = set(text)
    best = (0.0, 0, "")
    if len(text) > 40:
        return "", 0.0
    for known, name, known_letters in _labels():
        # Most labels are told apart by their lengths and letters alone; to compare letter by letter takes long
        alike = 2 * min(len(known), len(text)) >= least * (len(known) + len(text))
        if alike and len(letters & known_letters) >= 0.6 * max(len(letters), len(known_letters)):
            best = max(best, (similarity(text, known), len(known), name))
    return (best[2], best[0]) if best[0] >= least else ("", 0.0)


@functools.lru_cache(maxsize=1024)
def wanted(question: str) -> tuple[str, str, bool]:
    """Read a question.

    Returns:
        The field it asks for, empty if the vocabulary has none; its words without the empty ones, to be looked for
        among the page's labels; and whether it says nothing beside the field, so that the page's own one is meant.
    """
    text = plain(question)
    name, label = _asked_label(text)
    # "When is the payment due?": a label says more than the word of the question, unless it names the page itself
    asked = next((entry for entry, words in ASKED_BY.items() if any(word in text for word in words)), "")
    if asked and (not name or label in OF_THE_PAGE):
        name = asked
    rest = [word for word in CHINESE_FILL.sub(" ", text).split()]
    phrase = " ".join(word for word in rest if word not in EMPTY_WORDS or word in ("number", "date", "name", "address"))
    outside = CHINESE_FILL.sub(" ", text.replace(label, " ") if label else text).split()
    known = {word for entry in FIELDS.values() for known in entry.labels for word in plain(known).split()}
    alone = not [w for w in outside if w not in EMPTY_WORDS and (is_wide(w[0]) or not w.isdigit())
                 and not (is_wide(w[0]) and w in known and field_of(w)[0] == name)]  # fmt: skip
    return name, phrase, alone


def _asked_label(text: str) -> tuple[str, str]:
    """Return the field and label that a plain question is about, such as phone of "the company's phone"."""
    found = []
    for name, entry in FIELDS.items():
        for label in map(plain, entry.labels):
            pattern = re.escape(label) if is_wide(label[0]) else rf"\b{re.escape(label)}\b"
            found += [(match.start(), match.end(), name, label) for match in re.finditer(pattern, text)]
    longest = [one for one in found if not any(_within(one, other) for other in found)]
    rest = [one for one in longest if one[3] not in (*OF_THE_PAGE, "name")]
    chosen = sorted(rest or longest)
    if not chosen:
        return "", ""
    best = chosen[0]
    for one in chosen[1:]:  # of nouns in a row the last one counts
        if text[best[1] : one[0]].strip() in ("", "s", "的"):
            best = one
    return best[2], best[3]


def _within(one: tuple[int, int, str, str], other: tuple[int, int, str, str]) -> bool:
    return other[0] <= one[0] and one[1] <= other[1] and other[1] - other[0] > one[1] - one[0]


# --- Values of a kind -------------------------------------------------------------------------------------------------

MONTH = r"(?:jan|feb|mar|apr|may|jun|jul|aug|sep|sept|oct|nov|dec)[a-z]*\.?"
DATE = re.compile(
    # A product's code such as 03-7 - 15 is no date: no blanks around the marks
    rf"\d{{4}}\s?年\s?\d{{1,2}}\s?月\s?\d{{1,2}}\s?日?|(?<!\d)\d{{4}}[-/.]\d{{1,2}}[-/.]\d{{1,2}}(?!\d)"
    rf"|(?<![\w.-])\d{{1,2}}([-/.])\d{{1,2}}\1(?:\d{{4}}|\d{{2}})(?!\d)"
    rf"|(?<!\d)\d{{1,2}}(?:st|nd|rd|th)?[\s./-]*{MONTH}[\s,./'-]*(?:\d{{4}}|\d{{2}})(?!\d)"
    rf"|\b{MONTH}\s?\d{{1,2}}(?:st|nd|rd|th)?,?\s?\d{{4}}(?!\d)",
    re.IGNORECASE,
)
CURRENCY = r"(?:RM|USD|US\$|SGD|HKD|HK\$|CNY|RMB|EUR|GBP|MYR|[$€£¥￥])"
AMOUNT = re.compile(
    rf"(?:{CURRENCY}|(?<![\w.,/-]))-?(?:\d{{1,3}}(?:,\s?\d{{3}})+|\d+)[.,]\s?\d{{2}}(?![\d%]|[.,/-]\d)"
    rf"|{CURRENCY}\s?-?\d[\d,]*(?![\d.])",
    re.IGNORECASE,
)
NUMBER = re.compile(r"(?<![\w.,-])-?\d{1,3}(?:,\d{3})+(?![\d.])|(?<![\w.,-])-?\d+(?:[.,]\d+)?(?![\w.,])")


def of_kind(kind: str, text: str) -> tuple[str, float]:
    """Take the date or the amount out of a value; other kinds are the whole value, its lines joined.

    Returns:
        The text, empty if there is no such thing in the value, and how well it fits, in [0, 1].
    """
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    joined = lines[0] if lines else ""
    for before, line in zip(lines, lines[1:], strict=False):
        joined += ("" if is_wide(line[0]) and is_wide(before[-1]) else " ") + line
    if kind == "date":
        match = DATE.search(joined)
        return (match[0].strip(), 1.0) if match else (joined, 0.6) if re.search(r"\d", joined) else ("", 0.0)
    if kind == "amount":
        matches = list(AMOUNT.finditer(lines[0])) or list(NUMBER.finditer(lines[0])) if lines else []
        return (matches[-1][0].strip(), 1.0) if matches else ("", 0.0)
    return joined.strip(" ,;、") if kind == "address" else joined.strip(), 1.0


def amount_of(text: str) -> float | None:
    """Return the number in an amount; None if there is none."""
    digits = re.sub(r"[^\d.,-]", "", text)
    digits = re.sub(r"[.,](?=\d{3}(?:\D|$))", "", digits).replace(",", ".")
    try:
        return float(digits)
    except ValueError:
        return None


# --- What stands at its usual place, without a label ------------------------------------------------------------------

LEGAL_FORM = re.compile(
    r"\b(?:sdn\.?\s?b[hn]d|bhd|pte\.?\s?ltd|ltd|limited|inc|incorporated|llc|llp|corp|corporation|plc|gmbh|co)\b\.?|"
    r"公司|商行|商店|超市|餐厅|酒店|集团|\benterprise\b",
    re.IGNORECASE,
)
REGISTRATION = re.compile(
    r"^[(\[]?\s*(?:co\.?\s?(?:reg|no)|company\s?(?:reg|no)|roc|reg)?\b[\s.:no#]*\d{4,}[\d\s]*[-–]?\s?\w?\s*[)\]]?$",
    re.IGNORECASE,
)
HEADER_END = re.compile(
    r"\b(?:tel|telephone|phone|fax|h/?p|hotline|gst|sst|vat|tax|invoice|receipt|bill|cash|cashier|doc|document|date|"
    r"e-?mail|www|http|order|table|slip|item|qty|description)\b|[@＠]\w+\.|taxinvoice|电话|传真|发票|收据|小票|日期|单号|税号",
    re.IGNORECASE,
)
REGISTERED = re.compile(
    r"\b(?:co\.?\s?reg|co\.?\s?no|company\s?(?:reg|no)|roc|reg\.?\s?no|registration)\b", re.IGNORECASE
)
STREET = re.compile(
    r"\bno\.?\s?\d{1,4}\b|\b(?:lot|jalan|jln|jl|lorong|street|st|road|rd|avenue|ave|lane|drive|blvd|boulevard|suite|unit|floor|level|"
    r"block|blk|building|plaza|menara|taman|persiaran|p\.?o\.?\s?box)\b|[省市区县镇路街道号楼室]",
    re.IGNORECASE,
)
NOT_TOTAL = re.compile(
    r"\bsub\s?total|\bsubtotal|discount|saving|\bqty\b|quantity|\bitems?\b|\bexcl|exclud|before|\bcash\b|\bchange\b|tender|"
    r"\bpaid\b|received|accepted|points?\b|member|小计|找零|实收|税额|数量|折扣|(?:gst|tax|vat)\s?total|"
    r"total\s?(?:gst|tax|vat)\b|\btotal\s?(?:rm\s?)?0?%",
    re.IGNORECASE,
)
FINAL = re.compile(r"round|\bgrand\b|\bnett?\b|payable|\bdue\b|\bincl|inclu|应付|价税合计|总计", re.IGNORECASE)
Found = tuple[str, Box, float]  # text, box in pixels, score


def _header(page: Page) -> list[Line]:
    """Return the lines at the top of the page up to its title, its first date label or contact."""
    rows = group_rows(page.lines)
    header: list[Line] = []
    for row in rows[:14]:
        text = " ".join(line.text for line in row)
        ends = HEADER_END.search(DATE.sub("", text))
        if ends and not REGISTERED.search(text) and not (LEGAL_FORM.search(text) and len(header) < 4):
            if any(map(_is_street, header)):
                break
            if not header:  # a title above the name, or beside it
                header += [line for line in row if not HEADER_END.search(DATE.sub("", line.text))]
            continue
        header += row
    return header


def find_company(page: Page) -> Found | None:
    """Find the name at the top: a line with a legal form such as Ltd, else the first one or one in larger letters."""
    header = [line for line in _header(page) if re.search(r"[^\W\d_]{2}", line.text)]
    street = next((i for i, line in enumerate(header) if _is_street(line)), len(header))
    names = [line for line in header[: max(street, 1)] if not REGISTERED.search(_before_bracket(line.text))]
    if not names:
        return None
    best = next((line for line in names if LEGAL_FORM.search(line.text)), None)
    score = 0.8 if best is not None else 0.6
    if best is None:
        if street == len(header) and not any(AMOUNT.search(line.text) for line in page.lines):
            return None  # of a form the first line is its title
        best = names[0]
        for line in names[1:5]:
            if line.height > 1.3 * best.height and not DATE.search(line.text):
                best = line
    lines = [best]
    index = names.index(best)
    if index and LEGAL_FORM.search(best.text):  # a long name fills the line above, in the same letters
        above = names[index - 1]
        gap, wide = best.box[1] - above.box[3], [line.box[2] - line.box[0] for line in (above, best)]
        alike = max(above.height, best.height) < 1.3 * min(above.height, best.height)
        if gap < 0.35 * best.height and alike and 0.75 * wide[1] < wide[0] < 1.5 * wide[1]:
            lines.insert(0, above)
    text = _before_bracket(" ".join(line.text for line in lines))
    return text, around(line.box for line in lines), score


def _before_bracket(name: str) -> str:
    """Drop the number of the register behind a name, in brackets or bare."""
    return re.sub(r"\s*[(\[](?=[^)\]]*\d{3})[^)\]]*[)\]]?\s*$|\s+\d{4,}\s?-\s?\w$", "", name).strip() or name


def _is_street(line: Line) -> bool:
    text = line.text
    if DATE.search(text) or REGISTERED.search(text) or REGISTRATION.match(text) or LEGAL_FORM.search(text):
        return False
    return bool(re.search(r"\d", text) and re.search(r"[^\W\d_]{2}", text) and (STREET.search(text) or "," in text))


def find_address(page: Page) -> Found | None:
    """Find the address at the top: from the first line like a street's to the end of the header."""
    header = _header(page)
    start = next((i for i, line in enumerate(header) if _is_street(line)), None)
    if start is None:
        return None
    lines: list[Line] = []
    for line in header[start : start + 7]:
        number = re.search(r"(?:^|[:：])\s*[+(]?\d[\d\s()+/-]{6,}$", line.text)  # of a telephone
        if number or REGISTERED.search(line.text) or REGISTRATION.match(line.text) or DATE.search(line.text):
            break
        if lines and line.box[1] - lines[-1].box[3] > 1.5 * line.height:
            break
        lines.append(line)
    text, _ = of_kind("address", "\n".join(line.text for line in lines))
    return (text, around(line.box for line in lines), 0.7) if lines else None


def find_date(page: Page, pairs: Sequence[Pair]) -> Found | None:
    """Find the first date on the page whose label, if it has one, is not that of another field."""
    other = [pair.value_box for pair in pairs if _is_other_date(pair.key)]
    for row in group_rows(page.lines):
        for line in row:
            match = DATE.search(line.text)
            if match and not any(_share(box, line.box) for box in other):
                return match[0].strip(), line.box, 0.6
    return None


def _is_other_date(key: str) -> bool:
    name = field_of(key)[0]
    return FIELDS[name].kind == "date" and name != "date" if name else bool(re.search("date|日期", plain(key)))


def _share(one: Box, other: Box) -> bool:
    return min(one[2], other[2]) > max(one[0], other[0]) and min(one[3], other[3]) > max(one[1], other[1]) + 1


def find_total(page: Page) -> Found | None:
    """Find what was to be paid: the amount whose row names it best; paid less change tells which of several it is."""
    options: list[tuple[float, int, str, Box]] = []
    named: dict[str, float] = {}
    above = ""  # a row's label without an amount, which may stand in the next row
    for index, row in enumerate(group_rows(page.lines)):
        text = " ".join(line.text for line in row)
        matches = list(AMOUNT.finditer(text))
        if not matches and field_of(NUMBER.sub("", text))[0] == "total":  # a round sum without decimals
            matches = list(NUMBER.finditer(text))
        label = re.sub(r"\s*[:：]\s*", " ", text[: matches[0].start()] if matches else text)
        label = re.sub(CURRENCY, "", label).strip()
        if not matches:
            above = label
            continue
        label, above = label or above, ""
        amount = matches[-1][0].strip()
        value = amount_of(amount)
        box = next((line.box for line in reversed(row) if amount in line.text), around(line.box for line in row))
        field_name = field_of(label)[0]
        if field_name in ("cash", "change") and value is not None:
            named.setdefault(field_name, abs(value))
            if field_name == "cash":
                options.append((0.5, index, amount.lstrip("-"), box))
        rank = _total_rank(label)
        if rank:
            options.append((rank, index, amount, box))
    if not options:
        return None
    paid = named["cash"] - named["change"] if named.keys() >= {"cash", "change"} else named.get("cash")
    if paid is None or len(named) < 2:
        rank, _, amount, box = max(options, key=lambda option: option[:2])
    else:
        # An item's price can equal what was paid by chance, so only rows that name a total are asked
        def key(option: tuple[float, int, str, Box]) -> tuple[float, int]:
            value = amount_of(option[2])
            right = value is not None and abs(value - paid) < 0.005
            return option[0] + (1.5 if right and option[0] >= 1 else 0), option[1]

        rank, _, amount, box = max(options, key=key)
        if rank < 1 and paid > 0:
            return None
    return amount, box, 0.5 if rank < 1 else 0.8


def _total_rank(label: str) -> float:
    """Rank what a row says of its amount: 3 the final total, 2 a total, 1 an amount, 0 something else."""
    if NOT_TOTAL.search(label):
        return 0
    words = plain(label).split()
    total = any(word in ("total", "totals") or similarity(word, "total") >= 0.8 for word in words)
    total |= bool(re.search("合计|总计|总额|总金额|应付", label))
    amount = any(similarity(word, known) >= 0.8 for word in words for known in ("amount", "amt", "balance", "sales"))
    amount &= bool(FINAL.search(label)) or not re.search(r"\b(?:gst|sst|vat|tax)\b", label, re.IGNORECASE)
    if FINAL.search(label) and (total or (amount and "round" not in label.lower())):
        return 3
    return 2 if total else 1 if amount else 0


# --- The embedded answerer --------------------------------------------------------------------------------------------


_PAIRS: WeakKeyDictionary[Page, list[Pair]] = WeakKeyDictionary()  # gone with their page, which may be a visitor's


def labelled_pairs(page: Page) -> list[Pair]:
    """Return the keys and values of a page, where the vocabulary's labels are keys without a colon too."""
    if page not in _PAIRS:
        _PAIRS[page] = find_pairs(page.lines, is_label=lambda text: bool(field_of(text, 0.9)[0]))
    return _PAIRS[page]


class LayoutAnswerer:
    """Answers from keys and values, tables, and what stands at its usual place; see the head of this module."""

    needs_words = True

    def answer(self, question: str, page: Page, picture: Image | None = None) -> Answer:
        """Answer from one page; the answer may be far below a sensible threshold."""
        name, phrase, alone = wanted(question)
        kind = FIELDS[name].kind if name else "text"
        pairs = labelled_pairs(page)
        options: list[Found] = []
        for pair in pairs:
            match = _match(name, phrase, pair.key)
            text, fits = of_kind(kind, pair.value)
            if plain(pair.key) in OF_THE_PAGE and not re.fullmatch(r"\S*\d\S*", text):
                continue  # a title, such as "INVOICE", with what stands below it
            if match and text and not (kind == "date" and not re.search(r"\d", text)):
                box = _place(text, page, pair.value_box)
                options.append((text, box, match * fits * (0.5 + 0.5 * pair.score)))
        if alone or not phrase:
            options += [found for found in [self._unlabelled(name, page, pairs)] if found is not None]
        options += _in_table(question, name, page)
        if not options:
            return Answer(question)
        text, box, score = max(options, key=lambda option: option[2])
        return Answer(question, text, round(score, 4), page.number, box)

    @staticmethod
    def _unlabelled(name: str, page: Page, pairs: Sequence[Pair]) -> Found | None:
        if name == "total":
            found = find_total(page)
            return found and (found[0], found[1], 0.97 if found[2] > 0.5 else 0.6)  # it has weighed all pairs
        if name == "date":
            return find_date(page, pairs)
        if name == "company":
            return find_company(page)
        return find_address(page) if name == "address" else None


def _match(name: str, phrase: str, key: str) -> float:
    """Return how well a key on the page is what a question wants, in [0, 1]; 0 below a doubtful likeness."""
    text = plain(key)
    exact = similarity(phrase, text) if phrase else 0.0
    key_field, sure = field_of(key)
    if name and key_field == name:
        return max(exact, 0.9 * sure)
    if key_field and name and exact < 0.95:
        return 0.0
    if exact < 0.8 and phrase and f" {text} " in f" {phrase} " and len(text) >= 4:
        exact = 0.8 * len(text) / len(phrase)  # "the supervisor of this project" asks for "supervisor"
    return exact if exact >= 0.75 else 0.0


def _place(text: str, page: Page, box: Box) -> Box:
    """Return the box around an answer's words within the box of the whole value."""
    letters = plain(text)
    inside = [w for w in page.words if _share(w.box, box) and plain(w.text) and plain(w.text) in letters]
    return around(word.box for word in inside) if inside else box


def _in_table(question: str, name: str, page: Page) -> list[Found]:
    """Look a question up that names a table's column and the first cell of a row."""
    text = f" {plain(question)} "
    found: list[Found] = []
    for table in page.tables:
        heads = {cell.column: plain(cell.text) for cell in table.cells if cell.row == 0 and cell.text}
        rows = {cell.row: plain(cell.text) for cell in table.cells if cell.row and cell.text and cell.column == 0}
        for cell in table.cells:
            row, head = rows.get(cell.row, ""), heads.get(cell.column, "")
            if not row or not head or not cell.column or row not in text or row.isdigit():
                continue
            if head in text.replace(row, " ") or (name and field_of(head)[0] == name):
                found.append((cell.text.replace("\n", " "), cell.box, 0.98))
    return found


# --- LayoutLMv3 and Donut ---------------------------------------------------------------------------------------------


class LayoutLMAnswerer:
    """An extractive model of the LayoutLMv3 classes: the likeliest span of the page's words, window by window."""

    needs_words = True

    def __init__(self, source: Source, device: str) -> None:
        from transformers import AutoModelForDocumentQuestionAnswering, AutoTokenizer, LayoutLMv3ImageProcessorPil

        self.device = pick_device(device)
        load = {"revision": source.revision}
        self.model = AutoModelForDocumentQuestionAnswering.from_pretrained(source.name, **load).to(self.device).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(source.name, **load)
        # The page's words are known already, so the processor must not look for tesseract
        self.images = LayoutLMv3ImageProcessorPil.from_pretrained(source.name, apply_ocr=False, **load)

    def answer(self, question: str, page: Page, picture: Image | None = None) -> Answer:
        """Answer from one page: the best span, or none where the first token, which stands for "no answer", wins."""
        import torch

        words = page.words
        if not words or picture is None:
            return Answer(question)
        length = min(self.tokenizer.model_max_length, self.model.config.max_position_embeddings - 2)
        asked = len(self.tokenizer([question], boxes=[[0] * 4], truncation=False, verbose=False)["input_ids"])
        if asked > length // 2:
            raise InputError(f"question has {asked} tokens; this model reads at most {length // 2} beside a page.")
        encoded = self.tokenizer(
            [question], [[word.text for word in words]], boxes=[[thousandths(word.box, page) for word in words]],
            truncation="only_second", max_length=length, stride=length // 4, return_overflowing_tokens=True,
            padding=True, return_tensors="pt",
        )  # fmt: skip
        encoded.pop("overflow_to_sample_mapping", None)
        windows = len(encoded["input_ids"])
        pixels = self.images(picture, return_tensors="pt")["pixel_values"].to(self.device)
        best = Answer(question)
        for index in range(windows):  # one at a time: a long page has dozens
            row = {name: tensor[index : index + 1].to(self.device) for name, tensor in encoded.items()}
            with torch.inference_mode():
                output = self.model(**row, pixel_values=pixels)
            of_page = torch.tensor([part == 1 for part in encoded.sequence_ids(index)])
            places = encoded.word_ids(index)
            count = len(places)
            start, end = (x[0, :count].float().softmax(-1).cpu() for x in (output.start_logits, output.end_logits))
            spans = torch.triu(start[:, None] * end[None]).tril(30)  # (T, T); an answer has at most 31 tokens
            spans = spans * of_page[:, None] * of_page[None]
            first, last = divmod(int(spans.argmax()), count)
            score = float(spans[first, last])
            if score > best.score and score > float(start[0] * end[0]):
                chosen = words[places[first] : places[last] + 1]
                box = around(word.box for word in chosen)
                best = Answer(question, join_words(chosen), round(score, 4), page.number, box)
        return best


def thousandths(box: Box, page: Page) -> list[int]:
    """Bring a box to thousandths of the page, within [0, 1000], as LayoutLM wants it."""
    sizes = (page.width, page.height, page.width, page.height)
    return [min(max(int(1000 * value / size), 0), 1000) for value, size in zip(box, sizes, strict=True)]


class DonutAnswerer:
    """A generative model of the Donut classes: it reads the picture itself and writes the answer."""

    needs_words = False

    def __init__(self, source: Source, device: str) -> None:
        from transformers import AutoTokenizer, DonutImageProcessorPil, VisionEncoderDecoderModel

        self.device = pick_device(device)
        load = {"revision": source.revision}
        self.model = VisionEncoderDecoderModel.from_pretrained(source.name, **load).to(self.device).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(source.name, **load)
        self.images = DonutImageProcessorPil.from_pretrained(source.name, **load)

    def answer(self, question: str, page: Page, picture: Image | None = None) -> Answer:
        """Answer from one page; the score is the geometric mean of the tokens' probabilities."""
        import torch

        if picture is None:
            return Answer(question)
        prompt = f"<s_docvqa><s_question>{question}</s_question><s_answer>"
        start = self.tokenizer(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"].to(self.device)
        room = self.model.config.decoder.max_position_embeddings - start.shape[1]
        if room < 1:
            raise InputError(f"question has {start.shape[1]} tokens; this model reads at most "
                             f"{start.shape[1] + room - 1}.")  # fmt: skip
        pixels = self.images(picture, return_tensors="pt")["pixel_values"].to(self.device)
        with torch.inference_mode():
            output = self.model.generate(
                pixel_values=pixels, decoder_input_ids=start, max_new_tokens=min(64, room), num_beams=1,
                do_sample=False, pad_token_id=self.tokenizer.pad_token_id, eos_token_id=self.tokenizer.eos_token_id,
                output_scores=True, return_dict_in_generate=True,
            )  # fmt: skip
        steps = self.model.compute_transition_scores(output.sequences, output.scores, normalize_logits=True)
        written = output.sequences[0, start.shape[1] :]
        text = self.tokenizer.decode(written, skip_special_tokens=False).partition("</s_answer>")[0]
        text = re.sub(r"<.*?>", "", text).strip()
        score = math.exp(float(steps[0][torch.isfinite(steps[0])].mean()))
        return Answer(question, text, round(score, 4), page.number) if text else Answer(question)


# --- Documents of several pages ---------------------------------------------------------------------------------------

Document = list[tuple[Page, "Image | None"]]


class DocumentQA:
    """Answers questions about documents.

    Args:
        model: ``builtin:layout``, or the hub id or folder of a LayoutLMv3 or Donut tuned to answer questions.
        engine: What reads pages without text of their own: ``rapidocr`` or ``tesseract``.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``; the builtin needs none.
        min_score: "Not found" below this score, in [0, 1].

    Raises:
        InputError: There is no such model, or it is of another class.
    """

    def __init__(
        self, model: str = BUILTIN, engine: str = "rapidocr", device: str = "auto", min_score: float = 0.5
    ) -> None:
        check_range("min_score", min_score, 0, 1)
        self.engine, self.min_score = engine, min_score
        source = resolve(model, ["layout"])
        self.name = str(source)
        self.answerer: LayoutAnswerer | LayoutLMAnswerer | DonutAnswerer = LayoutAnswerer()
        if source.origin != "builtin":
            from transformers import AutoConfig

            with loading_errors(source, BUILTIN):
                known = AutoConfig.from_pretrained(source.name, revision=source.revision)
            kind, saved_as = known.model_type, known.architectures or []
            if kind == "layoutlmv3" and saved_as and not any(name.endswith("QuestionAnswering") for name in saved_as):
                kind = saved_as[0]  # its head would be made of random weights
            if kind not in ("layoutlmv3", "vision-encoder-decoder"):
                raise InputError(f"{model} is a {kind}, which does not answer questions about documents.",
                                 hint=f"a LayoutLMv3 or a Donut that was tuned to, or {BUILTIN}")  # fmt: skip
            with loading_errors(source, BUILTIN):
                self.answerer = (LayoutLMAnswerer if kind == "layoutlmv3" else DonutAnswerer)(source, device)

    def read(self, path: Path, max_pages: int = 50) -> Document:
        """Read a picture or PDF once, for any number of questions.

        Raises:
            InputError: It can't be read.
            OSError: It can't be opened.
        """
        if self.answerer.needs_words:
            return list(analyze_file(path, self.engine, max_pages))
        pictures = (picture for picture, _ in read_pages(path, max_pages))
        return [
            (Page(str(path), number, picture.width, picture.height, "none", ()), picture)
            for number, picture in enumerate(pictures, start=1)
        ]

    def ask(self, question: str, document: Document) -> Answer:
        """Answer a question from the page that answers it best.

        Raises:
            InputError: The question is empty or too long, or the document has no pages.
        """
        if not question.strip() or len(question) > LONGEST_QUESTION:
            raise InputError(f"question must have 1 to {LONGEST_QUESTION:,} letters. Got {len(question.strip()):,}.")
        if not document:
            raise InputError("The document has no pages.")
        answers = [self.answerer.answer(question, page, picture) for page, picture in document]
        best = max(answers, key=lambda answer: answer.score)
        return best if best.found and best.score >= self.min_score else Answer(question, score=best.score)


# --- Metrics ----------------------------------------------------------------------------------------------------------


def levenshtein(one: str, other: str) -> int:
    """Return the least number of letters to insert, delete or replace that makes one text the other."""
    row = list(range(len(other) + 1))
    for i, letter in enumerate(one, start=1):
        diagonal, row[0] = row[0], i
        for j, wanted_letter in enumerate(other, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (letter != wanted_letter))
    return row[-1]


def anls(predictions: Sequence[str], references: Sequence[Sequence[str]], threshold: float = 0.5) -> float:
    """Return the average normalized Levenshtein similarity (Biten et al., 2019, arXiv:1905.13648).

    Of an answer: the best 1 − d / max(length) over its references, in lower case and with single blanks, and 0 where
    d / max(length) is the threshold or more. Without references the right answer is an empty one.

    Args:
        predictions: Answers, empty for "not found".
        references: Of each answer the accepted ones.
        threshold: Of the normalized distance, in [0, 1].

    Returns:
        The mean, in [0, 1].
    """
    if len(predictions) != len(references) or not predictions:
        raise InputError(f"anls needs as many answers as references, one at least. Got {len(predictions)} and "
                         f"{len(references)}.")  # fmt: skip
    return sum(_similarity_of(p, r, threshold) for p, r in zip(predictions, references, strict=True)) / len(predictions)


def _similarity_of(prediction: str, references: Sequence[str], threshold: float) -> float:
    best = 0.0
    ours = " ".join(prediction.lower().split())
    for reference in references or [""]:
        theirs = " ".join(reference.lower().split())
        longest = max(len(ours), len(theirs))
        distance = levenshtein(ours, theirs) / longest if longest else 0.0
        best = max(best, 1 - distance if distance < threshold else 0.0)
    return best


def field_f1(
    predictions: Sequence[Mapping[str, str]], references: Sequence[Mapping[str, str]],
    same: Callable[[str, str], bool] | None = None,
) -> float:  # fmt: skip
    """Return the F1 of extracted fields: right ones over those given and over those there are, all documents together.

    Args:
        predictions: Of each document field → value; empty values are none.
        references: The same.
        same: Tells whether a value is right; by default it must be equal but for case and the number of blanks.
    """
    equal = same or (lambda one, other: " ".join(one.lower().split()) == " ".join(other.lower().split()))
    pairs = list(zip(predictions, references, strict=True))
    right = sum(
        bool(value) and bool(ours.get(name)) and equal(ours[name], value)
        for ours, theirs in pairs
        for name, value in theirs.items()
    )
    given = sum(bool(value) for ours, _ in pairs for value in ours.values())
    there = sum(bool(value) for _, theirs in pairs for value in theirs.values())
    return 2 * right / (given + there) if given + there else 0.0


def same_value(one: str, other: str) -> bool:
    """Compare two values without case, blanks and marks, amounts as numbers."""
    letters = [re.sub(r"[\W_]+", "", unicodedata.normalize("NFKC", text).casefold()) for text in (one, other)]
    if all(AMOUNT.fullmatch(text.strip()) for text in (one, other)):
        return amount_of(one) == amount_of(other)
    return letters[0] == letters[1]


# --- Readers of test data ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Receipt:
    """A receipt of SROIE (Huang et al., 2019, arXiv:2103.10213): its picture, given words, and four fields."""

    picture: Path
    words: list[Word]
    fields: dict[str, str]


@dataclass(frozen=True)
class Entity:
    """A part of a form: its text, label (question, answer, header or other), box in pixels, and words."""

    text: str
    label: str
    box: Box
    words: list[Word]


@dataclass(frozen=True)
class Form:
    """A form of FUNSD (Jaume et al., 2019, arXiv:1905.13538): picture, entities, and links between their indices."""

    picture: Path
    entities: list[Entity]
    links: list[tuple[int, int]]


def read_receipts(folder: Path) -> Iterator[Receipt]:
    """Yield the receipts of a folder with ``img/*.jpg``, ``box/*.csv`` (eight coordinates, text) and ``key/*.json``.

    Raises:
        InputError: There are none, or a file is damaged.
    """
    keys = sorted((folder / "key").glob("*.json"))
    if not keys:
        raise InputError(f"There are no receipts in {folder}.", hint="a folder with img/, box/ and key/")
    for key in keys:
        words: list[Word] = []
        box_file = folder / "box" / f"{key.stem}.csv"
        try:
            fields = {name: str(value) for name, value in json.loads(key.read_text(encoding="utf-8-sig")).items()}
            text = box_file.read_text(encoding="utf-8-sig", errors="replace")
            for row in csv.reader(io.StringIO(text), quoting=csv.QUOTE_NONE):
                if len(row) < 9:
                    continue
                numbers = [float(value) for value in row[:8]]
                box = min(numbers[::2]), min(numbers[1::2]), max(numbers[::2]), max(numbers[1::2])
                words += split_box(",".join(row[8:]), _checked(box))
        except (ValueError, AttributeError, RecursionError, csv.Error) as error:
            raise InputError(f"The files of receipt {key.stem} can't be read: {error}.") from None
        yield Receipt(folder / "img" / f"{key.stem}.jpg", words, fields)


def read_forms(folder: Path) -> Iterator[Form]:
    """Yield the forms of a folder with ``images/*.png`` and ``annotations/*.json``.

    Raises:
        InputError: There are none, or a file is damaged.
    """
    files = sorted((folder / "annotations").glob("*.json"))
    if not files:
        raise InputError(f"There are no forms in {folder}.", hint="a folder with images/ and annotations/")
    for file in files:
        try:
            parts = json.loads(file.read_text(encoding="utf-8"))["form"]
            places = {part["id"]: index for index, part in enumerate(parts)}
            links = {(places[a], places[b]) for part in parts for a, b in part["linking"] if {a, b} <= places.keys()}
            entities = [
                Entity(part["text"], part["label"], _checked(part["box"]),
                       [Word(word["text"], _checked(word["box"])) for word in part["words"] if word["text"].strip()])
                for part in parts
            ]  # fmt: skip
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise InputError(f"The form {file} can't be read: {error!r}.") from None
        yield Form(folder / "images" / f"{file.stem}.png", entities, sorted(links))


def _checked(box: Sequence[float]) -> Box:
    """Return a box that can be on a page: the json module takes NaN for a number, and no page is so wide as 1e300."""
    if not all(abs(edge) < 1e6 for edge in box):
        raise ValueError(f"{list(box)} is no box in pixels")
    left, top, right, bottom = map(float, box)
    return left, top, right, bottom


# --- Evaluation -------------------------------------------------------------------------------------------------------

RECEIPT_QUESTIONS = {
    "company": "What is the name of the company?",
    "date": "What is the date?",
    "address": "What is the address of the company?",
    "total": "What is the total amount?",
}


def letters_of(text: str) -> str:
    """Return the letters and digits of a text in lower case: what two readings of a word must share."""
    return re.sub(r"[\W_]+", "", text.casefold())


def word_recall(read: Sequence[Word], there: Sequence[Word]) -> tuple[int, int, int]:
    """Count which words were found.

    FUNSD divides words behind hyphens and slashes, so what was read is divided there too before they are compared.

    Args:
        read: By OCR.
        there: In truth; those without a letter or digit don't count.

    Returns:
        How many are there; of these, how many share half the union with a word that was read; and with one of the same
        letters.
    """
    parts = [part for word in read for part in _halves(word)]
    gold = [word for word in there if letters_of(word.text)]
    found = right = 0
    for word in gold:
        near = [part for part in parts if iou(part.box, word.box) >= 0.5]
        found += bool(near)
        right += any(letters_of(part.text) == letters_of(word.text) for part in near)
    return len(gold), found, right


def _halves(word: Word) -> list[Word]:
    left, top, right, bottom = word.box
    step = (right - left) / len(word.text)
    return [
        Word(match[0], (left + step * match.start(), top, left + step * match.end(), bottom), word.confidence)
        for match in re.finditer(r"[^-/]*[-/]|[^-/]+", word.text)
    ]


def linked(pairs: Sequence[Pair], form: Form) -> tuple[int, int, int]:
    """Count which links from question to answer were found.

    Returns:
        Links that are right (both boxes share half their union with the entities'), found in all, and there in truth.
    """
    gold = [(form.entities[a], form.entities[b]) for a, b in form.links]
    gold = [(one, other) for one, other in gold if (one.label, other.label) == ("question", "answer")]
    right = sum(
        any(iou(pair.key_box, one.box) >= 0.5 and iou(pair.value_box, other.box) >= 0.5 for pair in pairs)
        for one, other in gold
    )
    return right, len(pairs), len(gold)


def evaluate_receipts(
    qa: DocumentQA, receipts: Sequence[Receipt], words: str, step: Callable[[], object]
) -> dict[str, Any]:
    """Extract the fields of receipts, from what OCR reads or from the given words.

    Returns:
        Figures, and ``rows`` with every answer beside the reference.
    """
    ours: list[dict[str, str]] = []
    rows: list[dict[str, Any]] = []
    for receipt in receipts:
        if words == "ocr":
            document = qa.read(receipt.picture)
        else:
            picture, _ = next(read_pages(receipt.picture))
            page = analyze_words(receipt.words, *picture.size, source=str(receipt.picture), picture=picture)
            document = [(page, picture)]
        asked = [name for name in RECEIPT_QUESTIONS if name in receipt.fields]
        answers = {name: qa.ask(RECEIPT_QUESTIONS[name], document) for name in asked}
        ours.append({name: answer.text for name, answer in answers.items()})
        rows += [asdict(a) | {"file": receipt.picture.name, "reference": receipt.fields[n]} for n, a in answers.items()]
        step()
    theirs = [{name: receipt.fields[name] for name in ours[i]} for i, receipt in enumerate(receipts)]
    figures: dict[str, Any] = {
        "field_f1": field_f1(ours, theirs),
        "field_f1_normalized": field_f1(ours, theirs, same_value),
    }
    for name in RECEIPT_QUESTIONS:
        parts = [[{k: v for k, v in row.items() if k == name} for row in side] for side in (ours, theirs)]
        figures[f"{name}_f1"] = field_f1(*parts)
        figures[f"{name}_f1_normalized"] = field_f1(*parts, same_value)
    figures["anls"] = anls([row["text"] for row in rows], [[row["reference"]] for row in rows])
    return figures | {"rows": rows}


def evaluate_forms(qa: DocumentQA, forms: Sequence[Form], words: str, step: Callable[[], object]) -> dict[str, Any]:
    """Measure reading, where OCR reads, and key–value linking on forms.

    Returns:
        Figures, and ``rows`` with the counts of every form.
    """
    rows: list[dict[str, Any]] = []
    for form in forms:
        picture, _ = next(read_pages(form.picture))
        gold = [word for entity in form.entities for word in entity.words]
        read = recognize(picture, qa.engine) if words == "ocr" else gold
        page = analyze_words(read, *picture.size, source=str(form.picture), picture=picture)
        there, found, right = word_recall(read, gold)
        linking = linked(page.pairs, form)
        rows.append({"file": form.picture.name, "words": there, "detected": found, "read": right,
                     "links_right": linking[0], "links_found": linking[1], "links": linking[2]})  # fmt: skip
        step()
    total = {name: sum(row[name] for row in rows) for name in rows[0] if name != "file"}
    figures: dict[str, Any] = {"linking_f1": 2 * total["links_right"] / max(total["links_found"] + total["links"], 1)}
    if words == "ocr":
        figures["word_recall"] = total["read"] / max(total["words"], 1)
        figures["word_detection"] = total["detected"] / max(total["words"], 1)
    return figures | {"rows": rows}


def evaluate_documents(
    qa: DocumentQA, documents: Iterable[Rendered], words: str, step: Callable[[], object]
) -> dict[str, Any]:
    """Ask rendered documents for fields that they have and for fields that they lack.

    Returns:
        Figures, and ``rows`` with every answer beside the reference. ``found`` is the share of answerable questions
        that got an answer, ``not_found_right`` the share of the others that got none. ANLS is over both kinds.
    """
    rows: list[dict[str, Any]] = []
    ours: list[dict[str, str]] = []
    theirs: list[dict[str, str]] = []
    for index, one in enumerate(documents):
        document: Document = []
        for number, picture in enumerate(one.pages, start=1):
            printed = [Word(word.text, word.box) for word in one.words if word.page == number - 1]
            read = printed if words == "given" else recognize(picture, qa.engine) if qa.answerer.needs_words else []
            page = analyze_words(read, *picture.size, number=number, engine=qa.engine, picture=picture)
            document.append((page, picture))
        answers = [qa.ask(asked.question, document) for asked in one.questions]
        rows += [
            asdict(answer) | {"document": index, "family": one.family, "key": asked.key, "reference": asked.answer}
            for answer, asked in zip(answers, one.questions, strict=True)
        ]
        ours.append({asked.key: answer.text for answer, asked in zip(answers, one.questions, strict=True)})
        theirs.append({asked.key: asked.answer for asked in one.questions})
        step()
    there, absent = [row for row in rows if row["reference"]], [row for row in rows if not row["reference"]]
    figures: dict[str, Any] = {
        "anls": _anls_of(rows),
        "anls_answerable": _anls_of(there),
        "not_found_right": sum(row["page"] is None for row in absent) / len(absent),
        "found": sum(row["page"] is not None for row in there) / len(there),
        "field_f1": field_f1(ours, theirs),
        "questions": len(rows),
    }
    for family in dict.fromkeys(row["family"] for row in rows):
        its = [row for row in rows if row["family"] == family]
        missing = [row for row in its if not row["reference"]]
        name = family.replace(" ", "_")
        figures[f"{name}_anls"] = _anls_of(its)
        figures[f"{name}_not_found_right"] = sum(row["page"] is None for row in missing) / len(missing)
    return figures | {"rows": rows}


def _anls_of(rows: Sequence[Mapping[str, Any]]) -> float:
    return anls([row["text"] for row in rows], [[row["reference"]] for row in rows])


# --- The commands -----------------------------------------------------------------------------------------------------


@dataclass
class DocumentQAConfig:
    """What every command here needs."""

    model: str = BUILTIN
    """builtin:layout, or the hub id or folder of a LayoutLMv3 or Donut tuned to answer questions."""
    engine: Literal["rapidocr", "tesseract"] = "rapidocr"
    """What reads pages without text of their own."""
    min_score: float = 0.5
    """"Not found" below this score, in [0, 1]."""
    device: str = field(default="auto", metadata=NOT_RECIPE)
    """auto, cpu, cuda or mps."""
    threads: int = field(default=0, metadata=NOT_RECIPE)
    """CPU threads; 0 leaves it to PyTorch."""
    run: str = field(default="", metadata=NOT_RECIPE)
    """Name of this run's own folder; by default the time."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_range("min_score", self.min_score, 0, 1)
        check_range("threads", self.threads, 0)


@dataclass
class AskConfig(DocumentQAConfig):
    """Ask about one document; one JSON object a question goes to stdout, and the pages are drawn with the answers.

    Drawn are words gray, blocks blue, tables green, keys orange with a line to their values, and answers red.
    """

    input: str = BUILTIN_DATA
    """A picture or a PDF; builtin:documents is a rendered invoice."""
    question: list[str] = field(default_factory=lambda: list(RECEIPT_QUESTIONS.values()), metadata={"whole": True})
    """What to ask, in English or Chinese, each with a flag of its own."""
    max_pages: int = 50
    """Pages of the document; later ones are left out."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        check_range("max_pages", self.max_pages, 1)
        if not self.question:
            raise InputError("question must have one entry at least. Got none.")


def ask(config: AskConfig) -> None:
    """Ask about a document; see :class:`AskConfig`."""
    set_threads(config.threads)
    qa = DocumentQA(config.model, config.engine, config.device, config.min_score)
    if config.input == BUILTIN_DATA:
        run = Run(PROJECT, MODULE, "ask", config, name=config.run)
        document = qa.read(rendered_file(run.folder))
    else:
        document = qa.read(Path(config.input).expanduser(), config.max_pages)
        run = Run(PROJECT, MODULE, "ask", config, name=config.run)
    answers = [qa.ask(question, document) for question in config.question]
    for answer in answers:
        sys.stdout.write(json.dumps(asdict(answer) | {"found": answer.found}, ensure_ascii=False) + "\n")
    for page, picture in document:
        marked = [answer.box for answer in answers if answer.page == page.number and answer.box is not None]
        if picture is not None and marked:
            image = io.BytesIO()
            draw_page(page, picture, marked).save(image, "PNG")
            write_atomic(run.folder / f"page-{page.number}.png", image.getvalue())
    metrics = {"questions": len(answers), "found": sum(answer.found for answer in answers), "pages": len(document)}
    run.finish(model=qa.name, data=config.input, seed=0, metrics=metrics)
    logger.info("saved in %s; drawn are %s", run.folder, LEGEND)


@dataclass
class EvaluateConfig(DocumentQAConfig):
    """Measure on rendered documents, receipts of SROIE or forms of FUNSD; the answers go to predictions.jsonl."""

    data: str = BUILTIN_DATA
    """builtin:documents, or a folder with img/, box/ and key/ (receipts), or with images/ and annotations/ (forms)."""
    split: Literal["train", "validation", "test"] = "test"
    """Of builtin:documents; the test split has layouts that no other split has."""
    seed: int = field(default=0, metadata=NOT_RECIPE)
    """Of builtin:documents; another one draws others."""
    words: Literal["ocr", "given"] = "ocr"
    """Read the pictures, or take the words that come with them."""
    limit: int = 0
    """Take only the first so many; 0 takes all of a folder, 24 of builtin:documents."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        check_range("limit", self.limit, 0)


def evaluate(config: EvaluateConfig) -> None:
    """Measure; see :class:`EvaluateConfig`."""
    set_threads(config.threads)
    source = resolve(config.data, ["documents"])
    if source.origin == "hub":
        raise FileNotFoundError(f"No such folder: {config.data!r}.")
    folder = Path(source.name)
    measure: Callable[..., dict[str, Any]]
    items: Iterable[Any]
    if source.origin == "builtin":
        count = config.limit or RENDERED
        measure, items = evaluate_documents, documents(config.split, count, config.seed, languages=("en",))
    else:
        receipts = (folder / "key").is_dir()
        measure = evaluate_receipts if receipts else evaluate_forms
        items = list(read_receipts(folder) if receipts else read_forms(folder))[: config.limit or None]
        count = len(items)
    qa = DocumentQA(config.model, config.engine, config.device, config.min_score)
    run = Run(PROJECT, MODULE, "evaluate", config, name=config.run)
    with progress_bar(disable=count < 2) as bar:
        task = bar.add_task("evaluate", total=count, figures="")
        results = measure(qa, items, config.words, lambda: bar.advance(task))
    rows = results.pop("rows")
    write_atomic(run.folder / "predictions.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    metrics = {"documents": count} | {name: round(value, 4) for name, value in results.items()}
    run.finish(model=qa.name, data=config.data, seed=config.seed, metrics=metrics)
    logger.info(", ".join(f"{name} {value:g}" for name, value in metrics.items()))


if __name__ == "__main__":
    run_commands({"ask": ask, "evaluate": evaluate}, module=MODULE, extra="multimodal")
