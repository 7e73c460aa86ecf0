"""Quotes stand where they are said to stand, marks are never guessed, and evidence is what it was fitted to be."""

import hashlib
import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.embeddings import Embeddings

from qa_system.document_processor.pdf_reader import Document, Page
from qa_system.document_processor.text_splitter import Chunk
from qa_system.generation.citation_handler import (
    MARKS,
    Citation,
    CitationStream,
    Evidence,
    as_text,
    candidates,
    doubts,
    highlighted_html,
    in_context,
    locate,
    matching_spans,
    places,
    signs,
    supporting_span,
    verify,
    weigh,
)
from qa_system.retrieval.sparse_retrieval import Hit

FARES = "An adult pays £9.40 for a single ticket. Children under five travel free. Dogs need a ticket, too."
RULES = "Boarding closes ten minutes before\ndeparture. Luggage is limited to two pieces of 23 kg."


def document(text: str, name: str = "fares.pdf", cut: int = 0) -> Document:
    """Make a document of one page, or of two that are cut at a place."""
    pages = [Page(1, "iv", 0, cut or len(text), 0, 0, "txt")]
    if cut:
        pages.append(Page(2, "5", cut + 2, len(text), 0, 0, "txt"))
    return Document(hashlib.sha256(text.encode()).hexdigest(), name, text, tuple(pages), {})


def hit(one: Document, start: int = 0, end: int | None = None, **scores: float) -> Hit:
    end = len(one.text) if end is None else end
    return Hit(Chunk(one.id, one.name, start, end, one.text[start:end], (1,)), 1.0, scores)


def stream_over(*documents: Document) -> CitationStream:
    by_id = {one.id: one for one in documents}
    return CitationStream([hit(one) for one in documents], by_id.__getitem__)


class Letters(Embeddings):
    """Counts of letters: near for texts of the same words."""

    name = "letters"

    def embed_query(self, text: str) -> list[float]:
        counts = np.array([text.lower().count(chr(c)) for c in range(97, 123)], dtype=float) + 1e-3
        return (counts / np.linalg.norm(counts)).tolist()

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [self.embed_query(text) for text in texts]


def test_a_citation_is_its_span_without_blanks_on_the_page_where_it_begins() -> None:
    text = "First page.\n\nSecond page."
    one = document(text, cut=11)
    citation = Citation.of(3, one, 12, len(text))
    assert citation == Citation(3, one.id, "fares.pdf", 2, "5", 13, len(text), "Second page.")
    assert verify(citation, one)


@pytest.mark.parametrize(
    "change",
    [{"start": 1}, {"end": 5}, {"quote": "an adult"}, {"page": 2}, {"document_id": "other"}, {"quote": "", "end": 0},
     {"start": -1}, {"end": 10_000}],
)  # fmt: skip
def test_a_citation_with_anything_changed_is_not_verified(change: dict[str, object]) -> None:
    one = document(FARES)
    citation = Citation.of(1, one, 0, 8)
    assert verify(citation, one)
    assert not verify(Citation(**{**citation.to_dict(), **change}), one)


def test_words_are_located_whatever_the_blanks_and_quotation_marks_and_never_otherwise() -> None:
    assert locate(RULES, "minutes before departure") == (20, 44)
    assert locate("He said “no—never”.", '"no-never"') == (8, 18)
    assert locate(RULES, "Minutes before departure") == (20, 44)
    assert locate(RULES, "minutes after departure") is None
    assert locate(RULES, "  ") is None
    assert locate("one one", "one", 1) == (4, 7)


@given(st.text(max_size=60), st.data())
@settings(max_examples=60, deadline=None)
def test_what_is_located_is_what_was_looked_for(text: str, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, len(text)))
    found = locate(text, text[start:end])
    if text[start:end].strip():
        assert found is not None
        assert found[0] <= start + len(text[start:end]) - len(text[start:end].lstrip())
    else:
        assert found is None


def test_a_claim_is_supported_by_the_sentence_with_its_words_and_numbers() -> None:
    assert supporting_span("A single ticket for an adult is £9.40", FARES) == (0, 40)
    assert supporting_span("A single ticket for an adult is £8.40", FARES) is None
    assert supporting_span("Cats travel on deck only", FARES) is None
    assert FARES[slice(*supporting_span("Dogs and children under five", FARES))].startswith("Children")


def test_words_in_quotation_marks_must_stand_in_the_passage() -> None:
    span = supporting_span('It says that "Children under five travel free".', FARES)
    assert FARES[slice(*span)] == "Children under five travel free"
    assert supporting_span('An adult pays £9.40 for "a single ticket to the moon".', FARES) is None


@pytest.mark.parametrize(
    "claim",
    [
        'The "Petrel" and later the "Gull" ran aground near the old pier',
        "The “Petrel” and later the “Gull” ran aground near the old pier",
        "The „Petrel“ and later the »Gull« ran aground near the old pier",
        "The ”Petrel” and later the «Gull» ran aground near the old pier",
    ],
)
def test_what_stands_between_two_quotes_is_no_quote(claim: str) -> None:
    passage = "The Petrel, and later the Gull, ran aground near the old pier. Nobody was hurt."
    assert supporting_span(claim, passage) == (0, 62)
    assert supporting_span(f'{claim}, "both of them in thick fog"', passage) is None
    quoted = 'The "Gull" too “ran aground  near the old pier”, says the "log"'
    assert passage[slice(*supporting_span(quoted, passage))] == "ran aground near the old pier"
    assert supporting_span("渔民叫它「海燕」，也叫它「老船」", "渔民叫它海燕，也叫它老船。") == (0, 13)


def test_marks_become_verified_citations_numbered_as_they_come() -> None:
    fares, rules = document(FARES), document(RULES, "rules.pdf")
    stream = stream_over(fares, rules)
    text = stream.feed(
        "Luggage is limited to two pieces of 23 kg [2]. Dogs need a ticket [1]. Luggage: two pieces [2]."
    )
    assert text + stream.close() == (
        "Luggage is limited to two pieces of 23 kg [1]. Dogs need a ticket [2]. Luggage: two pieces [1]."
    )
    assert [citation.quote for citation in stream.citations] == [
        "Luggage is limited to two pieces of 23 kg.",
        "Dogs need a ticket, too.",
    ]
    assert all(verify(c, d) for c, d in zip(stream.citations, (rules, fares), strict=True))
    assert stream.dropped == 0


@pytest.mark.parametrize("mark", ["[0]", "[3]", "[-1]", "[99]", "[2]", "[1,2,999]"])
def test_marks_that_point_nowhere_or_to_the_wrong_place_are_never_guessed(mark: str) -> None:
    stream = stream_over(document(FARES), document(RULES))
    text = stream.feed(f"The moon is made of cheese {mark}.") + stream.close()
    assert not stream.citations
    if mark != "[-1]":  # which is no mark
        assert text == "The moon is made of cheese."
        assert stream.dropped >= 1


def test_marks_of_several_numbers_and_chinese_brackets_are_read() -> None:
    stream = stream_over(document(FARES), document("船票在码头出售。狗不得上船。"))
    assert stream.feed("Dogs need a ticket [1, 2].") == "Dogs need a ticket [1]."
    assert stream.dropped == 1
    assert stream.feed("狗不得上船【2】。") == "狗不得上船[2]。"
    assert stream.citations[1].quote == "狗不得上船。"


def test_ranges_and_footnote_marks_are_marks() -> None:
    assert places("1, 3") == [1, 3]
    assert places("^2") == [2]
    assert places("1–3; 5") == [1, 2, 3, 5]
    stream = stream_over(document(FARES), document(RULES))
    assert stream.feed("Dogs need a ticket [1-3]. Cats are free [^1].") == "Dogs need a ticket [1]. Cats are free."
    assert stream.dropped == 3


def test_a_short_claim_needs_whole_words_and_one_of_the_question() -> None:
    farm = "It has 14 turbines of 2.3 megawatts. The road north was built in 2011 and has 14 bends."
    question = "How many turbines are there?"
    assert farm[slice(*supporting_span("14", farm, question))] == "It has 14 turbines of 2.3 megawatts."
    assert supporting_span("14", farm, "How many sheep are there?") is None
    for words in ("3", "1", "no"):
        assert supporting_span(words, farm, question) is None


LONG_MARK = f"[{', '.join(map(str, range(1, 100)))}]"
PIECES = ["Dogs need a ticket", "Children under five travel free", "a", ".", " ", "\n", "[", "]", "【", "】", "1", "12",
          ", ", "–", "；", "^", "[1]", " [9]", LONG_MARK]  # fmt: skip


@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join), st.none() | st.sets(st.integers(0, 400)))
@settings(max_examples=300, deadline=None)
def test_however_an_answer_is_cut_the_same_comes_out(text: str, cuts: set[int] | None) -> None:
    whole, pieces = stream_over(document(FARES)), stream_over(document(FARES))
    expected = whole.feed(text) + whole.close()
    places = range(len(text)) if cuts is None else sorted(cuts)  # every character by itself, or these cuts
    out = [pieces.feed(text[start:end]) for start, end in itertools.pairwise([0, *places, len(text)])]
    assert "".join([*out, pieces.close()]) == expected == whole.written
    assert (pieces.citations, pieces.dropped, pieces.written) == (whole.citations, whole.dropped, whole.written)


def test_a_mark_of_many_numbers_is_checked_though_it_comes_letter_by_letter() -> None:
    stream = stream_over(document(FARES))
    assert "".join(map(stream.feed, f"The moon is a cheese {LONG_MARK}. Dogs need a ticket [1].")) == (
        "The moon is a cheese. Dogs need a ticket [1]."
    )
    assert stream.dropped == 99


@pytest.mark.parametrize("part", [" ", "\n", "[", "[1", "[1,", "1,", "[ 1", "[1]", "“", "”", "«", '"', "「", "x "])
def test_no_answer_takes_long(part: str) -> None:
    text = part * 40_000 + "x"
    began = time.process_time()
    stream = CitationStream([], {}.__getitem__)
    for start in range(0, len(text), 200):
        stream.feed(text[start : start + 200])
    supporting_span(text, FARES)
    MARKS.sub("", text)
    assert time.process_time() - began < 2


def test_half_a_mark_is_held_back() -> None:
    stream = stream_over(document(FARES))
    assert stream.feed("Dogs need a ticket [") == "Dogs need a ticket"
    assert stream.feed("1") == ""
    assert stream.feed("]!") == " [1]!"
    assert stream.feed(" See [note") == " See [note"
    assert stream.feed(" [12") == ""
    assert stream.close() == ""


def test_highlights_are_escaped_and_spans_that_touch_are_one() -> None:
    assert highlighted_html("a <b> & c", [(2, 5)]) == "a <mark>&lt;b&gt;</mark> &amp; c"
    assert highlighted_html("abcdef", [(3, 5), (0, 2), (1, 4)]) == "<mark>abcde</mark>f"
    assert highlighted_html("ab", [(5, 9), (1, 1)]) == "ab"


def test_a_quote_is_shown_within_its_page() -> None:
    one = document("Before it. The quote. After it.\n\nAnother page.", cut=31)
    citation = Citation.of(1, one, 11, 21)
    assert in_context(citation, one, 4) == "… it. <mark>The quote.</mark> Aft …"
    assert in_context(citation, one) == "Before it. <mark>The quote.</mark> After it."


def test_answers_are_written_with_their_quotes() -> None:
    one = document(FARES)
    assert as_text("Dogs, too [1].", [Citation.of(1, one, 74, 98)]).splitlines()[-1] == (
        "[1] fares.pdf, page iv: “Dogs need a ticket, too.”"
    )


def test_a_documents_name_makes_no_line_of_its_own() -> None:
    one = document(FARES, "a.pdf\n[2] b.pdf")
    assert len(as_text("Dogs, too [1].", [Citation.of(1, one, 74, 98)]).splitlines()) == 3


def test_a_follow_up_chooses_among_what_its_subject_is_about() -> None:
    text = "A ticket for an adult is £9. A ticket for a child is £4. A kennel for a child's dog is £1."
    hits = [hit(document(text), dense=0.5)]
    whole = "How much is a ticket for a child? And an adult?"
    assert text[slice(*span_of(weigh(whole, hits, Letters(), "And an adult?")))].startswith("A ticket for an adult")


def test_the_words_of_a_question_are_found_in_other_forms() -> None:
    text = "Tickets for a dog: 3. 狗的船票"
    assert [text[a:b] for a, b in matching_spans("Which dogs need a ticket? 船票", text)][:2] == ["Tickets", "dog"]


def test_candidates_are_sentences_neighbors_and_rows_with_their_header() -> None:
    text = "Fares for all.\nTicket | Price\nAdult | £9\nChild | £4\nPaid on board. Or ashore."
    found = candidates("child price", [hit(document(text), dense=0.5)], Letters())
    quotes = {text[e.start : e.end]: e for e in found}
    assert quotes["Child | £4"].header == (15, 29)
    assert quotes["Child | £4"].features[2] == 1  # with its header it has both words
    assert "Adult | £9\nChild | £4" not in quotes
    assert "Paid on board. Or ashore." in quotes
    assert all(e.features[1] == 0.5 for e in found)


def span_of(evidence: Evidence) -> tuple[int, int]:
    return evidence.start, evidence.end


def test_the_best_evidence_has_the_questions_words_and_nothing_has_no_confidence() -> None:
    fares, rules = document(FARES), document(RULES)
    hits = [hit(rules, dense=0.2), hit(fares, dense=0.8)]
    best = weigh("Do dogs need a ticket?", hits, Letters())
    assert best.hit == 1
    assert "Dogs need a ticket" in FARES[best.start : best.end]
    assert 0 < best.confidence < 1
    assert weigh("anything", [], Letters()).confidence == 0


def test_confidence_rises_with_the_cosines() -> None:
    one = document(FARES)
    confidences = [weigh("Do dogs pay?", [hit(one, dense=d)], Letters()).confidence for d in (0.1, 0.4, 0.9)]
    assert all(a < b for a, b in itertools.pairwise(confidences))


@pytest.mark.parametrize(
    ("question", "quote", "doubtful"),
    [
        ("How much is a ticket?", "An adult pays £9.40.", False),
        ("How much is a ticket?", "Tickets are sold on board.", True),
        ("How much is a ticket on route 3?", "Route 3 needs a ticket.", True),  # it only says the question's number
        ("In what century was the pier built?", "The pier is of the early nineteenth century.", False),
        ("When does it open?", "It opens in spring.", False),
        ("When does it open?", "It opens with a speech.", True),
        ("Who built the pier?", "The pier was built by Brodie & Sons.", False),
        ("Who built the pier?", "The pier was built by hand.", True),
        ("Who succeeded Brodie?", "The pier was built by Brodie.", True),
        ("What happens when a ticket is lost?", "A lost ticket is printed again.", False),  # "when" is not asked
        ("Why is the pier long?", "The pier is for large ships.", False),
    ],
)
def test_who_asks_for_a_number_or_a_person_doubts_a_quote_without(question: str, quote: str, doubtful: bool) -> None:
    assert doubts(question, quote, quote)[0] == doubtful


@pytest.mark.parametrize(
    ("question", "doubtful"),
    [
        ("How deep is the sea off Norwick?", False),
        ("How deep is the sea off Skerra?", True),
        ("What is Norwick's depth?", False),
        ("What did the Herve brothers measure?", False),  # written Hervé there
        ("How deep was the sea in the 19th century?", False),
        ("How deep was the sea in the 18th century?", True),
        ("How deep was it in 1859?", True),
        ("Skerra is how deep?", False),  # the first word is in capitals anyway
        ("HOW DEEP IS THE WATER?", False),
    ],
)
def test_a_name_or_number_that_the_passage_lacks_is_doubtful(question: str, doubtful: bool) -> None:
    passage = "The sea off Norwick is 40 m deep. It was measured by the brothers Hervé in the 19th century."
    assert doubts(question, "The sea off Norwick is 40 m deep.", passage)[1] == doubtful


@pytest.mark.parametrize(
    ("question", "quote", "doubtful"),
    [
        ("What may dogs eat?", "Dogs may eat meat.", False),
        ("What may dogs not eat?", "Dogs may eat meat.", True),
        ("What mayn't dogs eat?", "Dogs may eat meat.", True),
        ("What may dogs not eat?", "Dogs mustn’t eat onions.", False),
        ("What may dogs not do?", "Dogs are forbidden to bark.", False),
        ("What may dogs eat?", "Dogs may eat meat, not onions.", False),  # that "not" is about something else
        ("What may or may not be eaten?", "Dogs may eat meat.", False),
        ("What is paid if the ship does not sail?", "A night at the hotel is paid.", False),  # the case, not the answer
        ("May dogs not eat meat?", "Dogs may eat meat.", False),  # the answer is yes
        ("What is the least common fish?", "The most common fish is cod.", True),
        ("What is the most common fish?", "The most common fish is cod, the least common is tuna.", False),
        ("What is the unknown depth?", "The known depth is 40 m.", True),
        ("What is the known depth?", "The unknown depth is over 40 m.", True),
        ("What is the unknown depth?", "The depth is not known.", False),
        ("What is not the least common fish?", "The most common fish is cod.", False),  # twice turned
        ("What is a non violent protest?", "A nonviolent protest is a march.", False),
        ("What are the imports?", "The ports are Norwick and Sandhaven.", False),
    ],
)
def test_the_opposite_of_what_is_asked_is_doubtful(question: str, quote: str, doubtful: bool) -> None:
    assert doubts(question, quote, quote)[2] == doubtful


def test_nothing_is_doubted_of_chinese() -> None:
    assert doubts("1859年没有多少级台阶？", "灯塔共有台阶。", "灯塔共有台阶。") == (0, 0, 0)
    assert doubts("Who built no lighthouse in 1859?", "灯塔共有台阶。", "灯塔共有台阶。") == (0, 0, 0)


def test_each_doubt_lowers_the_confidence_of_the_same_quote() -> None:
    text = "The pier of Norwick is built of stone and it is long."
    confidences = {
        question: weigh(question, [hit(document(text), dense=0.6)], Letters()).confidence
        for question in ("Why is the pier long?", "Why is the pier not long?", "Why is the Skerra pier long?")
    }
    plain, negated, elsewhere = confidences.values()
    assert plain > elsewhere > negated


def test_a_follow_up_is_doubted_for_what_it_asks_itself() -> None:
    text = "A ticket for an adult is £9. A ticket for a child is £4."
    hits = [hit(document(text), dense=0.5)]
    whole = "How much is a ticket to Skerra? And for a child?"
    assert weigh(whole, hits, Letters(), "And for a child?").confidence > weigh(whole, hits, Letters()).confidence


def test_the_signs_of_a_row_are_read_with_its_header() -> None:
    text = "Ticket | Price in 2025\nAdult | free"
    [row] = [e for e in candidates("adult price", [hit(document(text), dense=0.5)], Letters()) if e.header]
    assert signs("How much is an adult?", row, [hit(document(text))])[1:] == (0.5, 0, 0, 0)
    assert signs("How much is an adult?", Evidence(0, row.start, row.end, None, row.features), [hit(document(text))])[2]
