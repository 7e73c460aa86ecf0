"""Terms, BM25 against bm25s, fusions against their formulas, and the hybrid against comparing everything."""

import asyncio
import json
import math
import re
import threading
import time
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.runnables import RunnableLambda, RunnablePassthrough

from qa_system.document_processor.text_splitter import Chunk
from qa_system.document_processor.vector_store import CosineStore, FaissStore, MilvusStore
from qa_system.retrieval import sparse_retrieval as module
from qa_system.retrieval.sparse_retrieval import (
    BM25Index,
    Hit,
    HybridRetriever,
    min_max_fusion,
    reciprocal_rank_fusion,
    tokenize,
    z_score_fusion,
)  # fmt: skip
from shared.benchmark import Skip, data_folder
from shared.errors import InputError

# --- Words ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("The runners were running in a race", "runner run race"),
        ("C++, C# and R, not Notepad++ or C++11.", "c++ c# r notepad++ c++ 11"),
        ("A-1, T-cells, GPT-4 or COVID-19", "a-1 t-cell cell gpt-4 gpt covid-19 covid 19"),
        ("state-of-the-art, two-column", "state art two column"),
        ("R&D at AT&T, max_tokens", "r&d at&t max_token max token"),
        ("It costs 3.5, 1,000 or 1000.50; see [1,2] and 1, 2.", "cost 3.5 1000 1000.50 see 1 2 1 2"),
        ("v1.2.3 on 192.168.0.1 in 2019–2020", "v1.2.3 192.168.0.1 2019 2020"),
        ("the U.S. and the US, e.g. at 8 a.m.", "us us eg 8 am"),
        ("A vitamin. Vitamin A is not a vitamin", "vitamin vitamin a vitamin"),
        ("What does WHO say of who they are?", "who say"),
        ("WHAT IS THIS CALLED?", "call"),
        ("It's the boy’s and they don't, O'Brien", "boy o brien"),
        ("İstanbul, CAFÉ, cafe\u0301, Straße, STRASSE", "istanbul cafe cafe strass strass"),
        ("ﬁnal ＡＢＣ co\u00adoperate x²", "final abc cooper x2"),
        ("机器学习的Python3语言", "机 器 学 习 机器 器学 学习 习的 python3 语 言 语言"),
        ("在U.S.的1,000元", "us 1000 元"),
        ("カフェ ｶﾌｪ", "カ フ ェ カフ フェ カ フ ェ カフ フェ"),
        ("한국어 Йод", "한국어 йод"),
        (" \n-_&.,+#'", ""),
        ("", ""),
    ],
)
def test_a_text_gives_its_terms(text: str, terms: str) -> None:
    assert tokenize(text) == terms.split()


@given(st.text(st.one_of(st.characters(), st.sampled_from("aA1 .,-_&+#'’的器é\u0301"))))
def test_terms_are_folded_whatever_the_text(text: str) -> None:
    terms = tokenize(text)
    assert all(term and term == term.casefold() and not re.search(r"\s", term) for term in terms)
    assert terms == tokenize(unicodedata.normalize("NFC", text)) == tokenize(unicodedata.normalize("NFD", text))


@pytest.mark.parametrize("part", ["a.", "1,", "1,000", "a-", "a'", "A ", "_", "++", "e\u0301", "器", "1.1.", "\u0301"])
def test_no_text_takes_long(part: str) -> None:
    started = time.perf_counter()
    tokenize(part * 100_000)
    assert time.perf_counter() - started < 3  # what takes quadratic time takes minutes


def test_threads_get_the_same_terms() -> None:
    words = [f"{stem}{ending}" for stem in ("walk", "jump", "relat") for ending in ("ing", "ed", "s", "ional")]
    texts = [f"{word} {number}" for number in range(200) for word in words]
    expected = [tokenize(text) for text in texts]
    module._stem.cache_clear()
    found: list[list[list[str]]] = []
    threads = [threading.Thread(target=lambda: found.append([tokenize(text) for text in texts])) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 4


# --- BM25 -------------------------------------------------------------------------------------------------------------

WORDS = ["apple", "pear", "plum", "C++", "A-1", "3.5", "机器", "learning", "the"]
TEXT = st.lists(st.sampled_from(WORDS), max_size=12).map(" ".join)
CHANGE = st.one_of(
    st.tuples(st.just("add"), st.dictionaries(st.sampled_from("abcdefgh"), TEXT, max_size=4)),
    st.tuples(st.just("delete"), st.sets(st.sampled_from("abcdefgh"), max_size=3)),
)


def bm25s_scores(texts: dict[str, str], query: str, k1: float, b: float) -> dict[str, float]:
    """Return what bm25s says of a fresh index of the same terms."""
    import bm25s

    corpus, terms = [tokenize(text) for text in texts.values()], tokenize(query)
    if not terms or not any(corpus):
        return dict.fromkeys(texts, 0.0)
    index = bm25s.BM25(k1=k1, b=b, method="lucene")
    index.index(corpus, show_progress=False)
    return dict(zip(texts, index.get_scores(terms).tolist(), strict=True))


@settings(max_examples=150, deadline=None)
@given(st.lists(CHANGE, max_size=8), TEXT, st.integers(1, 10), st.sampled_from([(1.2, 0.75), (0.9, 0.4), (0, 1)]))
def test_after_any_changes_the_scores_are_those_of_bm25s(
    changes: list[tuple[str, Any]], query: str, k: int, parameters: tuple[float, float]
) -> None:
    index, texts = BM25Index(*parameters), {}
    for change, what in changes:
        if change == "add":
            index.add(list(what), list(what.values()))
            texts |= what
        else:
            index.delete(what)
            texts = {id: text for id, text in texts.items() if id not in what}
        index.search(query, 1)  # so that weights are made in between
    fresh = BM25Index(*parameters)
    fresh.add(list(texts), list(texts.values()))
    assert (index.scores(query), index.search(query, k)) == (fresh.scores(query), fresh.search(query, k))
    assert len(index._vocabulary) <= 2 * len({term for text in texts.values() for term in tokenize(text)})
    expected = bm25s_scores(texts, query, *parameters)
    assert index.scores(query) == pytest.approx(expected, rel=1e-6)
    assert (len(index), {id for id in "abcdefgh" if id in index}) == (len(texts), set(texts))
    hits = index.search(query, k)
    assert hits == sorted(hits, key=lambda hit: (-hit[1], hit[0]))
    scores = index.scores(query)
    best = sorted(((id, score) for id, score in scores.items() if score > 0), key=lambda hit: (-hit[1], hit[0]))
    assert hits == best[:k]
    allowed = set("aceg")
    assert index.search(query, k, allowed) == [hit for hit in best if hit[0] in allowed][:k]
    assert index.search(query, k, []) == []


def filled() -> BM25Index:
    index = BM25Index()
    index.add(["b", "c", "a", "d"], ["red apple", "green pear", "red apple", "a long text about a red pear and more"])
    return index


def test_only_what_shares_a_term_is_found_and_ties_go_by_id() -> None:
    index = filled()
    assert [id for id, _ in index.search("red apples", 10**9)] == ["a", "b", "d"]
    assert [id for id, _ in index.search("red apples", 1)] == ["a"]
    assert index.search("apple", 2, {"b", "c", "unknown"}) == [("b", index.scores("apple")["b"])]
    for query in ("", "the", "unknown", "。"):
        assert index.search(query, 3) == []
    assert index.scores("pear", ["d", "unknown", "a"]) == {"d": pytest.approx(index.search("pear", 2)[1][1]), "a": 0}


def test_an_index_without_texts_or_terms_finds_nothing() -> None:
    index = BM25Index()
    assert (index.search("a", 3), index.scores("a"), len(index)) == ([], {}, 0)
    index.add(["1", "2"], ["", "the"])
    assert (index.search("apple", 3), index.scores("apple"), len(index)) == ([], {"1": 0, "2": 0}, 2)
    index.delete(["1", "2", "3"])
    assert (index.search("apple", 3), len(index)) == ([], 0)


def test_adding_an_id_again_replaces_its_text() -> None:
    index = filled()
    index.add(["a"], ["blue plum"])
    assert [id for id, _ in index.search("red apple plum", 9)] == ["b", "a", "d"] and len(index) == 4
    assert [id for id, _ in index.search("apple", 9)] == ["b"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: BM25Index(k1=-1), r"k1 must be in \[0, inf\). Got -1"),
        (lambda: BM25Index(b=1.5), r"b must be in \[0, 1\]. Got 1.5"),
        (lambda: filled().search("a", 0), r"k must be in \[1, inf\). Got 0"),
        (lambda: filled().add(["a"], []), "ids must be as many as the texts, 0. Got 1"),
        (lambda: z_score_fusion([{}], []), "weights must be as many as the runs, 1. Got 0"),
    ],
)
def test_wrong_arguments_are_named(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()


def test_threads_change_and_search_at_once() -> None:
    index, errors, stop = filled(), [], threading.Event()

    def search() -> None:
        while not stop.is_set():
            hits = index.search("red apple", 50)
            if [id for id, _ in hits][:1] != ["a"] or any(score <= 0 for _, score in hits):
                errors.append(hits)

    threads = [threading.Thread(target=search) for _ in range(3)]
    for thread in threads:
        thread.start()
    for i in range(150):
        index.add([f"n{i}"], [f"red word{i} and apple"])
        index.delete([f"n{i - 3}"])
    stop.set()
    for thread in threads:
        thread.join()
    assert errors == [] and len(index) == 7
    assert index.scores("red word149") == pytest.approx(
        bm25s_scores(
            {"a": "red apple", "b": "red apple", "c": "green pear", "d": "a long text about a red pear and more"}
            | {f"n{i}": f"red word{i} and apple" for i in (147, 148, 149)},
            "red word149", 1.2, 0.75,
        )
    )  # fmt: skip


def test_a_search_that_was_overtaken_knows_no_later_term() -> None:
    index = filled()
    earlier = index._current()
    index.add(["e"], ["newest word"])
    assert not index._score(earlier, "newest word").any()


def test_terms_that_no_text_has_any_more_go_and_an_overtaken_search_still_knows_its_own() -> None:
    index = filled()
    for number in range(50):
        index.add(["gone", "late"], [" ".join(f"n{number}x{i}" for i in range(1000)), "late apple"])
        index.search("apple", 1)
        earlier = index._current()
        before = index._score(earlier, "late apple n0x1")
        index.delete(["gone", "late"])
        index.search("apple", 1)
        assert index._score(earlier, "late apple n0x1").tolist() == before.tolist()
    assert len(index._vocabulary) < 20


def test_a_thousand_chunks_come_and_go_much_faster_than_an_index_is_built() -> None:
    rng = np.random.default_rng(0)
    texts = [" ".join(f"word{i}" for i in rng.zipf(1.3, 60) % 5000) for _ in range(8000)]
    ids = [f"{i:04d}" for i in range(len(texts))]

    def seconds(work: Callable[[], object]) -> float:
        started = time.perf_counter()
        work()
        index.search("word1", 1)
        return time.perf_counter() - started

    index = BM25Index()
    rebuild = seconds(lambda: index.add(ids, texts))
    assert seconds(lambda: index.delete(ids[:1000])) < rebuild / 5
    assert seconds(lambda: index.add(ids[:1000], texts[:1000])) < rebuild / 2


def test_bm25_finds_the_paragraph_of_a_question() -> None:
    try:
        path = data_folder() / "qa" / "xquad_en_part1.json"
    except Skip as reason:
        pytest.skip(str(reason))
    paragraphs = [p for article in json.loads(path.read_text())["data"] for p in article["paragraphs"]]
    index = BM25Index()
    index.add([p["context"] for p in paragraphs], [p["context"] for p in paragraphs])
    questions = [(qa["question"], p["context"]) for p in paragraphs for qa in p["qas"]]
    found = [index.search(question, 1)[:1] for question, _ in questions]
    right = sum(bool(hits) and hits[0][0] == context for hits, (_, context) in zip(found, questions, strict=True))
    assert right / len(questions) > 0.92  # .93; .89 without stemming and stop words


# --- Fusion -----------------------------------------------------------------------------------------------------------

RUNS = st.lists(
    st.dictionaries(st.sampled_from("abcdef"), st.integers(-20, 20).map(float), max_size=6), min_size=2, max_size=2
)


def test_fusions_are_their_formulas() -> None:
    assert reciprocal_rank_fusion([["a", "b", "a"], ["c", "b"]]) == [
        ("b", pytest.approx(2 / 62)), ("a", pytest.approx(1 / 61)), ("c", pytest.approx(1 / 61)),
    ]  # fmt: skip
    assert reciprocal_rank_fusion([["a"]], k=0) == [("a", 1)]
    runs = [{"a": 1.0, "b": 3.0, "c": 2.0}, {"c": 10.0, "d": 20.0}]
    assert min_max_fusion(runs, [0.25, 0.75]) == [
        ("d", pytest.approx(0.75)), ("b", pytest.approx(0.25)), ("c", pytest.approx(0.125)), ("a", pytest.approx(0)),
    ]  # fmt: skip
    high = math.sqrt(1.5)  # of 1, 2, 3
    assert z_score_fusion(runs, [0.25, 0.75]) == [
        ("d", pytest.approx(0.25 * -high + 0.75)), ("b", pytest.approx(0.25 * high - 0.75)),
        ("c", pytest.approx(-0.75)), ("a", pytest.approx(0.25 * -high - 0.75)),
    ]  # fmt: skip


@pytest.mark.parametrize("fuse", [min_max_fusion, z_score_fusion])
@given(RUNS, st.floats(0.1, 10), st.floats(-5, 5))
def test_the_unit_of_a_score_does_not_count(fuse: Callable[..., Any], runs: Any, scale: float, shift: float) -> None:
    fused = dict(fuse(runs, [0.4, 0.6]))
    moved = [runs[0], {id: score * scale + shift for id, score in runs[1].items()}]
    assert dict(fuse(moved, [0.4, 0.6])) == pytest.approx(fused, abs=1e-6)
    assert set(fused) == set(runs[0]) | set(runs[1])


def test_fusions_take_runs_that_say_nothing() -> None:
    for fuse in (min_max_fusion, z_score_fusion):
        assert fuse([{}, {}], [1, 1]) == fuse([], []) == []
        assert fuse([{"b": 5.0, "a": 5.0}, {}], [1, 1]) == [("a", 0), ("b", 0)]  # all alike
    assert reciprocal_rank_fusion([]) == reciprocal_rank_fusion([[], []]) == []


# --- Hybrid -----------------------------------------------------------------------------------------------------------


class Letters(Embeddings):
    """A text as how often it has each letter."""

    name = "letters"

    def __init__(self) -> None:
        self.queries = 0

    def embed_query(self, text: str) -> list[float]:
        self.queries += 1
        return self.embed_documents([text])[0]

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [[0.1, *(text.lower().count(letter) for letter in "abcdefghijklmnopqrstuvwxyz")] for text in texts]


def chunk(text: str, start: int = 0, name: str = "a.pdf", page: int = 1) -> Chunk:
    return Chunk(name.removesuffix(".pdf"), name, start, start + len(text), text, (page,))


def filled_store(store: CosineStore | None = None) -> CosineStore:
    store = FaissStore(Letters()) if store is None else store
    texts = [f"{fruit} {color} {i % 5}" for i, fruit in enumerate(("apple", "pear", "plum", "grape")) for color in
             ("red", "green", "blue", "yellow", "orange", "white")]  # fmt: skip
    store.add_documents([chunk(t, 100 * i, "ab"[i % 2] + ".pdf", i % 3).to_document() for i, t in enumerate(texts)])
    return store


def whole(store: CosineStore, question: str, passes: Callable[[Document], bool] = lambda d: True) -> dict[str, float]:
    """Return z-score fusion over all documents that pass, computed apart."""
    documents = [d for d in store.documents() if passes(d)]
    q = np.array(store.embeddings.embed_query(question))
    vectors = np.array(store.embeddings.embed_documents([d.page_content for d in documents]))
    dense = vectors @ q / np.linalg.norm(vectors, axis=1) / np.linalg.norm(q)
    everything = {d.id: d.page_content for d in store.documents()}  # a filter leaves the weights as they are
    all_sparse = bm25s_scores(everything, question, 1.2, 0.75)
    sparse = np.array([all_sparse[d.id] for d in documents])
    fused = 0.6 * (dense - dense.mean()) / dense.std()
    if sparse.std() > 0:
        fused += 0.4 * (sparse - sparse.mean()) / sparse.std()
    return {d.id: float(score) for d, score in zip(documents, fused, strict=True)}


@pytest.fixture(params=["flat", "hnsw", "folder", pytest.param("milvus", marks=pytest.mark.slow)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    if request.param == "milvus":
        path = str(tmp_path / "store.db")
        yield MilvusStore(Letters(), path)
        from milvus_lite.server_manager import server_manager_instance

        server_manager_instance.release_server(path)
    else:
        folder, kind = (tmp_path / "store", "flat") if request.param == "folder" else (None, request.param)
        yield FaissStore(Letters(), folder, kind)


def test_the_hybrid_ranks_as_comparing_everything_does_and_follows_its_store(store: CosineStore) -> None:
    filled_store(store)
    retriever = HybridRetriever(store=store, k=100)

    def check() -> None:
        for question in ("red apples", "yellow pear 1", "unknown words"):
            hits, expected = retriever.search(question), whole(store, question)
            assert {hit.chunk.id: hit.score for hit in hits} == pytest.approx(expected, abs=1e-4)
            assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
            assert [hit.chunk for hit in retriever.search(question, 3)] == [hit.chunk for hit in hits[:3]]
            for hit in hits:
                assert hit.chunk.to_document() == store.get_by_ids([hit.chunk.id])[0]
                assert set(hit.scores) == {"dense", "sparse"} and -1 <= hit.scores["dense"] <= 1

    check()
    store.add_documents([chunk("red kiwi", 5000).to_document(), chunk("apple red tart", 6000).to_document()])
    check()
    ids = [document.id for document in store.documents()]
    store.delete(ids[::3])
    check()
    kept = ids[1]
    store.add_documents([Document(id=kept, page_content="unknown quince", metadata=chunk("x").to_document().metadata)])
    assert retriever.search("quince", 1, mode="sparse")[0].chunk.text == "unknown quince"  # the same id, another text
    store.delete()
    assert retriever.search("red apples") == []
    filled_store(store)
    check()


def test_only_what_came_is_tokenized(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[str] = []
    monkeypatch.setattr(module, "tokenize", lambda text, original=tokenize: seen.append(text) or original(text))
    retriever = HybridRetriever(store=filled_store(FaissStore(Letters(), tmp_path)), mode="sparse")
    retriever.search("question")
    assert len(seen) == 25
    other = FaissStore(Letters(), tmp_path)  # as if in another process
    other.add_documents([chunk("red kiwi", 5000).to_document()])
    other.delete([chunk("apple red 0").id])
    seen.clear()
    assert retriever.search("kiwi")[0].chunk.text == "red kiwi"
    assert seen == ["red kiwi", "kiwi"]
    monkeypatch.setattr(retriever.store, "texts", None)  # not asked for where nothing changed
    retriever.search("kiwi")
    assert seen == ["red kiwi", "kiwi", "kiwi"]


@pytest.mark.parametrize("mode", ["hybrid", "dense", "sparse"])
def test_a_filter_acts_before_the_best_are_chosen(mode: str, store: CosineStore) -> None:
    filled_store(store)
    store.add_documents([chunk("red apple", 9000 + i, "c.pdf").to_document() for i in range(250)])  # better, all
    retriever = HybridRetriever(store=store, mode=mode)
    filters: list[Any] = [{"document_name": "a.pdf"}, {"document_name": ["a.pdf", "x.pdf"]},
                          lambda document: document.metadata["document_name"] == "a.pdf"]  # fmt: skip
    found = [retriever.search("red apple", 3, filter) for filter in filters]
    assert found[0] == found[1] == found[2]
    assert [hit.chunk.document_name for hit in found[0]] == ["a.pdf"] * 3
    assert found[0][0].chunk.text.startswith("apple red")
    assert retriever.search("red apple", 3, {"document_name": "z.pdf"}) == []


def test_modes_give_their_own_scores() -> None:
    store = filled_store()
    dense, sparse = (HybridRetriever(store=store, mode=mode).search("red apples", 30) for mode in ("dense", "sparse"))
    near = store.similarity_search_with_score("red apples", 30)
    assert [(hit.chunk.id, hit.score, hit.scores) for hit in dense] == [(d.id, s, {"dense": s}) for d, s in near]
    index = BM25Index()
    index.add(list(store.texts()), list(store.texts().values()))
    assert [(hit.chunk.id, hit.score) for hit in sparse] == index.search("red apples", 30)
    assert len(sparse) < 24 and all(hit.scores == {"sparse": hit.score} for hit in sparse)
    retriever = HybridRetriever(store=store)
    for mode, alone in (("dense", dense), ("sparse", sparse)):
        assert retriever.search("red apples", 30, mode=mode) == alone


def test_every_fusion_ranks_both_halves() -> None:
    store = filled_store()
    dense = [d.id for d in store.similarity_search("red apples", 24)]
    sparse = [hit.chunk.id for hit in HybridRetriever(store=store, mode="sparse").search("red apples", 24)]
    by_rank = HybridRetriever(store=store, fusion="rrf").search("red apples", 24)
    assert [(hit.chunk.id, hit.score) for hit in by_rank] == reciprocal_rank_fusion([dense, sparse])
    runs = [{hit.chunk.id: hit.scores[name] for hit in by_rank} for name in ("dense", "sparse")]
    by_range = HybridRetriever(store=store, fusion="min-max").search("red apples", 24)
    assert [(hit.chunk.id, hit.score) for hit in by_range] == min_max_fusion(runs, [0.6, 0.4])


def test_what_only_one_half_offers_has_both_exact_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    store = filled_store()
    far = chunk("zzz qqq apple xxx vvv", 7000)
    store.add_documents([far.to_document()])
    exact = {hit.chunk.id: hit.scores for hit in HybridRetriever(store=store).search("apple", 25)}
    assert far.id in [hit.chunk.id for hit in HybridRetriever(store=store, mode="sparse").search("apple", 7)]
    monkeypatch.setattr(module, "CANDIDATES", 7)
    hits = HybridRetriever(store=store).search("apple", 7)
    found = {hit.chunk.id: hit.scores for hit in HybridRetriever(store=store, fusion="rrf").search("apple", 7)}
    assert far.id in found and far.id not in store.nearest("apple", 7)
    for scores in [found, {hit.chunk.id: hit.scores for hit in hits}]:
        assert all(its == pytest.approx(exact[id], abs=1e-6) for id, its in scores.items())


def test_equal_texts_at_two_places_are_two_hits() -> None:
    store = filled_store()
    store.add_documents([chunk("kiwi", 7000, page=1).to_document(), chunk("kiwi", 8000, page=2).to_document()])
    hits = HybridRetriever(store=store).search("kiwi", 2)
    assert [(hit.chunk.start, hit.chunk.pages) for hit in hits] == [(7000, (1,)), (8000, (2,))]  # ties by id
    assert hits[0].score == hits[1].score


def test_a_question_is_embedded_once() -> None:
    store = filled_store()
    HybridRetriever(store=store).search("red apple")
    assert store.embedding.queries == 1


def test_the_retriever_is_a_part_of_a_chain() -> None:
    store = filled_store()
    retriever = HybridRetriever(store=store, k=2)
    join = RunnableLambda(
        lambda documents: " | ".join(f"{d.page_content} {d.metadata['score']:.3f}" for d in documents)
    )
    chain = {"context": retriever | join, "question": RunnablePassthrough()} | RunnableLambda(lambda x: x["context"])
    hits = retriever.search("red apple")
    assert chain.invoke("red apple") == " | ".join(f"{hit.chunk.text} {hit.score:.3f}" for hit in hits)
    assert asyncio.run(chain.ainvoke("red apple")) == chain.invoke("red apple")
    found = retriever.invoke("red apple", k=1, filter={"document_name": "b.pdf"}, mode="sparse")
    assert [document.metadata["document_name"] for document in found] == ["b.pdf"]
    assert all("score" not in document.metadata for document in store.documents())


def test_documents_that_are_no_chunks_are_retrieved_but_are_no_hits() -> None:
    store = FaissStore(Letters())
    store.add_texts(["red apple", "green pear"])
    retriever = HybridRetriever(store=store)
    assert retriever.invoke("apple")[0].page_content == "red apple"
    with pytest.raises(InputError, match="is not a chunk"):
        retriever.search("apple")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: HybridRetriever(store=s, mode="both"), "mode must be one of hybrid, dense, sparse. Got 'both'"),
        (lambda s: HybridRetriever(store=s, fusion="sum"), "fusion must be one of z-score, min-max, rrf. Got 'sum'"),
        (lambda s: HybridRetriever(store=s, k=0), r"k must be in \[1, inf\). Got 0"),
        (lambda s: HybridRetriever(store=s).search("a", 0), r"k must be in \[1, inf\). Got 0"),
        (lambda s: HybridRetriever(store=s).search("a", mode="all"), "mode must be one of"),
        (lambda s: HybridRetriever(store=s).search(" \n"), "The question is empty"),
        (lambda s: HybridRetriever(store=s, mode="sparse").search(""), "The question is empty"),
        (lambda s: HybridRetriever(store=s, mode="sparse").search("a", filter={"x": None}), "filter values must be"),
    ],
)
def test_wrong_questions_are_named(call: Callable[[CosineStore], Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        call(filled_store())


@pytest.mark.parametrize("mode", ["hybrid", "sparse"])
def test_threads_search_while_the_store_changes(mode: str) -> None:
    store = filled_store()
    retriever = HybridRetriever(store=store, mode=mode)
    errors: list[Any] = []
    stop = threading.Event()

    def search() -> None:
        try:
            while not stop.is_set():
                hits: list[Hit] = retriever.search("red apple", 5)
                assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
                assert hits[0].chunk.text.startswith("apple red")
        except BaseException as error:  # noqa: BLE001
            errors.append(error)

    threads = [threading.Thread(target=search) for _ in range(3)]
    for thread in threads:
        thread.start()
    for i in range(60):
        store.add_documents([chunk(f"orange pear {i}", 10_000 + 100 * i).to_document()])
        store.delete([chunk(f"orange pear {i - 5}", 10_000 + 100 * (i - 5)).id])
    stop.set()
    for thread in threads:
        thread.join()
    assert errors == []
    fresh = HybridRetriever(store=store, mode=mode, k=99)
    assert retriever.search("orange pear 59", 99) == fresh.search("orange pear 59")
