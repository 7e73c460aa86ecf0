"""Both stores against a brute-force oracle; FAISS' folder against kills, tampering and other writers."""

import asyncio
import hashlib
import json
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.runnables import RunnableLambda, RunnablePassthrough

from qa_system.document_processor import vector_store as module
from qa_system.document_processor.vector_store import CosineStore, FaissStore, MilvusStore
from shared.errors import InputError

ROOT = Path(__file__).parents[2]


class Hashed(Embeddings):
    """A vector for every text, from its hash; neither normalized nor alike in length."""

    def __init__(self, name: str = "hashed", size: int = 16) -> None:
        self.name, self.size, self.seen = name, size, 0

    def embed_query(self, text: str) -> list[float]:
        rng = np.random.default_rng(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big"))
        return (rng.normal(size=self.size) * rng.uniform(0.1, 50)).tolist()

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        self.seen += len(texts)
        return [self.embed_query(text) for text in texts]


def doc(text: str, id: str | None = None, **metadata: Any) -> Document:
    return Document(id=id, page_content=text, metadata=metadata)


Make = Callable[..., CosineStore]


@pytest.fixture(scope="module")
def milvus_file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    path = str(tmp_path_factory.mktemp("milvus") / "store.db")
    yield path
    from milvus_lite.server_manager import server_manager_instance

    server_manager_instance.release_server(path)


@pytest.fixture(params=["flat", "hnsw", "ivfpq", "folder", pytest.param("milvus", marks=pytest.mark.slow)])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    def build(embedding: Embeddings | None = None) -> CosineStore:
        if request.param == "milvus":
            name = "c" + hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:16]
            return MilvusStore(embedding or Hashed(), request.getfixturevalue("milvus_file"), name)
        folder, kind = (tmp_path / "store", "flat") if request.param == "folder" else (None, request.param)
        return FaissStore(embedding or Hashed(), folder, kind)

    return build


# --- Both stores ------------------------------------------------------------------------------------------------------


class Oracle:
    """What a store should hold and find."""

    def __init__(self) -> None:
        self.held: dict[str, Document] = {}

    def search(self, query: str, k: int, passes: Callable[[dict[str, Any]], bool]) -> list[tuple[str, float]]:
        unit = Hashed()
        q = np.array(unit.embed_query(query))
        hits = []
        for id, document in self.held.items():
            v = np.array(unit.embed_query(document.page_content))
            if passes(document.metadata):
                hits.append((id, float(q @ v / np.linalg.norm(q) / np.linalg.norm(v))))
        return sorted(hits, key=lambda hit: (-round(hit[1], 5), hit[0]))[:k]


FILTERS: list[tuple[Any, Callable[[dict[str, Any]], bool]]] = [
    (None, lambda m: True),
    ({}, lambda m: True),
    ({"group": 1}, lambda m: m["group"] == 1),
    ({"group": [0, 2], "even": True}, lambda m: m["group"] in (0, 2) and m["even"]),
    ({"name": 'a"b'}, lambda m: m["name"] == 'a"b'),
    ({"missing": 1}, lambda m: False),
    ({"group": []}, lambda m: False),
    (lambda d: d.metadata["group"] != 1, lambda m: m["group"] != 1),
]


def random_walk(store: CosineStore, seed: int, steps: int) -> None:
    """Add, replace, delete and search at random; hold every answer against the oracle."""
    rng, oracle = random.Random(seed), Oracle()

    def document(id: str) -> Document:
        even = rng.random() < 0.5
        return doc(f"text {rng.randrange(12)}", id, group=rng.randrange(3), even=even, name=rng.choice(['a"b', "c"]))

    for _ in range(steps):
        action = rng.random()
        if action < 0.35:
            batch = [document(id) for id in rng.sample([f"d{i}" for i in range(20)], rng.randrange(1, 6))]
            assert store.add_documents(batch) == [d.id for d in batch]
            oracle.held.update({d.id: d for d in batch})
        elif action < 0.5:
            ids = rng.sample([f"d{i}" for i in range(20)], rng.randrange(4))
            assert store.delete(ids) is all(id in oracle.held for id in ids)
            oracle.held = {id: d for id, d in oracle.held.items() if id not in ids}
        else:
            query, k, (filter, passes) = f"text {rng.randrange(14)}", rng.randrange(1, 9), rng.choice(FILTERS)
            hits = store.similarity_search_with_score(query, k, filter)
            expected = oracle.search(query, k, passes)
            assert [d.id for d, _ in hits] == [id for id, _ in expected]
            assert [score for _, score in hits] == pytest.approx([score for _, score in expected], abs=1e-5)
            assert [d for d, _ in hits] == [oracle.held[d.id] for d, _ in hits]
        assert len(store) == len(oracle.held)
    assert {d.id: d for d in store.documents()} == oracle.held
    assert store.get_by_ids(["d3", "zz", "d4", "d3"]) == [oracle.held[id] for id in ("d3", "d4") if id in oracle.held]


@pytest.mark.parametrize("seed", [1, 2])
def test_a_store_finds_what_comparing_everything_finds(make: Make, seed: int) -> None:
    random_walk(make(), seed, 80)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(["flat", "hnsw"]))
def test_any_history_of_changes_leaves_what_the_oracle_holds(seed: int, kind: str) -> None:
    random_walk(FaissStore(Hashed(), index=kind), seed, 25)


def test_documents_that_score_the_same_come_in_the_order_of_their_ids(make: Make) -> None:
    store = make()
    store.add_documents([doc("same", f"{i:03d}") for i in random.Random(0).sample(range(40), 40)] + [doc("other", "x")])
    for k in (1, 5, 40):
        assert [d.id for d in store.similarity_search("same", k)] == [f"{i:03d}" for i in range(k)]
    assert len(store.similarity_search("same", 10**9)) == 41


def test_a_document_without_an_id_is_kept_once_by_its_content(make: Make) -> None:
    embedding = Hashed()
    store = make(embedding)
    first = store.add_documents([doc("a", page=1), doc("a", page=2), doc("a", page=1)])
    assert first[0] == first[2] != first[1]  # the same sentence on two pages is two documents
    assert store.add_texts(["a", "b"], [{"page": 2}, {"page": 1}])[0] == first[1]
    assert len(store) == 3
    assert embedding.seen == 3  # what is there is not embedded again


def test_adding_an_id_again_replaces_its_document(make: Make) -> None:
    store = make()
    store.add_documents([doc("old", "1", v=1), doc("other", "2")])
    store.add_documents([doc("new", "1", v=2)])
    assert (len(store), store.get_by_ids(["1"])) == (2, [doc("new", "1", v=2)])
    assert store.similarity_search_with_score("new", 1) == [(doc("new", "1", v=2), pytest.approx(1))]
    assert store.similarity_search("old", 1, {"v": 1}) == []
    store.add_documents([doc("new", "1", v=3)])  # only the metadata
    assert store.similarity_search("new", 1, {"v": 3}) == [doc("new", "1", v=3)]


def test_values_of_a_filter_cannot_leave_their_quotes(make: Make) -> None:
    values = ['x" or 1 == 1 or "', "back\\slash", '\\" or true', "it's", "line\nand\ttab\r", "中文", "", "{a}", "%_"]
    store = make()
    store.add_documents([doc(f"t{i}", str(i), **{"v": value, value or "k": i}) for i, value in enumerate(values)])
    for i, value in enumerate(values):
        assert [d.id for d in store.similarity_search("q", 20, {"v": value})] == [str(i)]
        assert [d.id for d in store.similarity_search("q", 20, {value or "k": [i]})] == [str(i)]
    assert len(store.similarity_search("q", 20, {"v": values})) == len(values)


def test_a_list_in_the_metadata_is_for_functions(make: Make) -> None:
    store = make()
    store.add_documents([doc("a", "1", pages=(1, 2)), doc("b", "2", pages=[3]), doc("c", "3", pages=None)])
    assert store.similarity_search("a", 5, {"pages": 3}) == store.similarity_search("a", 5, {"pages": [1, 3]}) == []
    assert [d.id for d in store.similarity_search("a", 5, lambda d: 2 in (d.metadata["pages"] or []))] == ["1"]
    assert store.get_by_ids(["1"])[0].metadata == {"pages": [1, 2]}


def test_cosines_and_texts_are_those_of_the_documents(make: Make) -> None:
    store = make()
    assert (store.cosines("a", ["1"]), store.nearest("a", 3), store.texts()) == ({}, {}, {})
    store.add_documents([doc(f"text {i}", str(i), group=i % 3) for i in range(30)])
    store.delete(["3"])
    hits = store.similarity_search_with_score("text 7", 30)
    everything = {d.id: score for d, score in hits}
    vector = Hashed().embed_query("text 7")
    for query in ("text 7", vector):
        assert list(store.nearest(query, 5, {"group": 1})) == [d.id for d, _ in hits if d.metadata["group"] == 1][:5]
        assert store.nearest(query, 30) == pytest.approx(everything, abs=1e-6)
        assert store.cosines(query, ["9", "3", "7", "x"]) == pytest.approx({i: everything[i] for i in "97"}, abs=1e-6)
    assert store.texts() == {d.id: d.page_content for d, _ in hits}
    for filter in ({"group": [0, 2]}, lambda d: d.metadata["group"] != 1):
        assert store.texts(filter) == {d.id: d.page_content for d, _ in hits if d.metadata["group"] != 1}
    assert store.texts({"group": 7}) == store.texts({"group": []}) == {}
    with pytest.raises(InputError, match="have 16 dimensions. Got one of 2"):
        store.cosines([1.0, 2.0], ["9"])
    with pytest.raises(InputError, match="filter must be a dict"):
        store.texts("x")  # type: ignore[arg-type]


def test_every_change_gives_a_store_another_version(make: Make) -> None:
    store = make()
    versions = [store.version]
    for change in (
        lambda: store.add_documents([doc("a", "1"), doc("b", "2")]),
        lambda: store.add_documents([doc("c", "1")]),
        lambda: store.delete(["2"]),
        lambda: store.add_documents([doc("b", "2")]),
    ):
        change()
        versions.append(store.version)
        store.similarity_search("a")
        assert store.version == versions[-1]
    assert len(set(versions)) == 5


def test_a_store_is_a_retriever_in_a_chain(make: Make) -> None:
    store = make()
    store.add_documents([doc(f"text {i}", str(i), group=i % 2) for i in range(10)])
    retriever = store.as_retriever(search_kwargs={"k": 3, "filter": {"group": 1}})
    join = RunnableLambda(lambda documents: " ".join(d.id for d in documents))
    chain = {"context": retriever | join, "question": RunnablePassthrough()} | RunnableLambda(lambda x: x["context"])
    found = chain.invoke("text 5")
    assert found.split()[0] == "5" and len(found.split()) == 3
    assert asyncio.run(chain.ainvoke("text 5")) == found
    near = store.as_retriever(search_type="similarity_score_threshold", search_kwargs={"score_threshold": 0.99, "k": 9})
    assert [d.id for d in near.invoke("text 5")] == ["5"]


def test_a_vector_finds_what_its_text_finds(make: Make) -> None:
    store = make()
    store.add_documents([doc(f"text {i}", str(i), group=i % 2) for i in range(10)])
    vector = Hashed().embed_query("text 5")
    assert store.similarity_search_by_vector(vector, 3) == store.similarity_search("text 5", 3)
    assert store.similarity_search_by_vector(vector, 1, {"group": 0}) == store.similarity_search(
        "text 5", 1, {"group": 0}
    )


def test_vectors_embedded_elsewhere_are_taken_as_they_are(make: Make) -> None:
    embedding = Hashed()
    store = make(embedding)
    documents = [doc(f"text {i}", str(i)) for i in range(5)]
    vectors = embedding.embed_documents([f"other {i}" for i in range(5)])
    embedding.seen = 0
    store.add_documents([*documents, documents[0]], vectors=[*vectors, vectors[0]])
    assert embedding.seen == 0
    assert store.similarity_search_with_score("other 3", 1) == [(documents[3], pytest.approx(1))]


def test_what_comes_back_may_be_changed(make: Make) -> None:
    store = make()
    given = doc("a", "1", deep=[1])
    store.add_documents([given])
    given.metadata["deep"].append(2)
    for [document] in (store.similarity_search("a"), store.get_by_ids(["1"]), list(store.documents())):
        document.metadata["deep"].append(3)
        document.page_content = "b"
    assert store.get_by_ids(["1"]) == [doc("a", "1", deep=[1])]


def test_an_empty_store_finds_nothing_and_deletes_nothing(make: Make) -> None:
    store = make()
    assert (len(store), store.similarity_search("a"), list(store.documents()), store.get_by_ids(["a"])) == (
        0,
        [],
        [],
        [],
    )
    assert store.add_documents([]) == []
    assert store.delete(["a"]) is False and store.delete([]) is True
    store.add_texts(["a", "b"])
    assert store.delete() is True  # None is all of them
    assert (len(store), store.similarity_search("a")) == (0, [])
    store.add_texts(["c"])
    assert [d.page_content for d in store.similarity_search("a")] == ["c"]


def constant(vector: list[float]) -> Hashed:
    embedding = Hashed()
    embedding.embed_query = lambda text: vector  # type: ignore[method-assign]
    return embedding


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda s: s.add_texts([" \n"]), r"documents\[0\] has no text"),
        (lambda s: s.add_documents([doc("new", "n"), doc("")]), r"documents\[1\] has no text"),
        (lambda s: s.add_documents([doc("x", "n"), doc("y", "n")]), "Two documents that differ have the id 'n'"),
        (lambda s: s.add_documents([doc("x", "n", v=float("nan"))]), r"documents\[0\] can't be kept as UTF-8 JSON"),
        (lambda s: s.add_documents([doc("x", "n", v=object())]), r"documents\[0\] can't be kept as UTF-8 JSON"),
        (lambda s: s.add_documents([doc("\ud800", "n")]), r"documents\[0\] can't be kept as UTF-8 JSON"),
        (lambda s: s.add_texts(["x", "y"], ids=["n"]), "ids must be as many as the documents, 2"),
        (lambda s: s.add_texts(["x"], ids="n"), "ids must be as many"),
        (lambda s: s.add_texts(["x", "y"], [{}]), "metadatas must be as many as the texts, 2. Got 1"),
        (lambda s: s.add_documents([doc("x", "n")], vectors=[[1.0] * 3]), "have 16 dimensions. Got one of 3"),
        (lambda s: s.add_documents([doc("x", "n")], vectors=[[1.0] * 16] * 2), "must give 1 vectors of one length"),
        (lambda s: s.add_documents([doc("x", "n")], vectors=[[0.0] * 16]), "zero, number 0 of 1"),
        (lambda s: s.add_documents([doc("x", "n")], vectors=[[float("nan")] * 16]), "NaN or infinite, number 0"),
        (lambda s: s.add_documents([doc("x", "n"), doc("y")], vectors=[[1.0], [1.0, 2.0]]), "must give numbers"),
        (lambda s: s.delete("a"), "ids must be a list of strings"),
        (lambda s: s.similarity_search(" "), "The query is empty"),
        (lambda s: s.similarity_search("a", 0), r"k must be in \[1, inf\). Got 0"),
        (lambda s: s.similarity_search("a", filter="x"), "filter must be a dict"),
        (lambda s: s.similarity_search("a", filter={1: "x"}), "filter must be a dict"),
        (lambda s: s.similarity_search("a", filter={"x": None}), "filter values must be strings"),
        (lambda s: s.similarity_search("a", filter={"x": [{}]}), "filter values must be strings"),
        (lambda s: s.similarity_search("a", filter={"x": float("inf")}), "filter values must be strings"),
        (lambda s: s.similarity_search_by_vector([1.0, 2.0]), "have 16 dimensions. Got one of 2"),
        (lambda s: s.similarity_search_by_vector([0.0] * 16), "zero"),
        (lambda s: s.similarity_search_by_vector([float("nan")] * 16), "NaN or infinite"),
    ],
)
@pytest.mark.parametrize("make", ["flat", pytest.param("milvus", marks=pytest.mark.slow)], indirect=True)
def test_wrong_input_is_named_and_changes_nothing(
    make: Make, wrong: Callable[[CosineStore], Any], message: str
) -> None:
    store = make()
    store.add_documents([doc("a", "1")])
    with pytest.raises(InputError, match=message):
        wrong(store)
    assert list(store.documents()) == [doc("a", "1")]


def test_an_embedding_that_changes_its_dimension_is_refused(make: Make) -> None:
    embedding = Hashed()
    store = make(embedding)
    store.add_texts(["a"])
    embedding.size = 8
    for call in (lambda: store.similarity_search("a"), lambda: store.add_texts(["b"])):
        with pytest.raises(InputError, match="have 16 dimensions. Got one of 8.\nhint: the same embedding"):
            call()
    assert len(store) == 1


def test_the_name_of_a_model_is_found_where_embeddings_keep_it() -> None:
    class Named(Hashed):
        pass

    embedding = Named(name="")
    assert module.model_name(embedding) == "Named"
    embedding.model = "m"
    assert module.model_name(embedding) == "m"


# --- FAISS ------------------------------------------------------------------------------------------------------------


def clustered(count: int, size: int, centres: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    middle = rng.normal(size=(centres, size))
    return (middle[rng.integers(0, centres, count)] + 0.5 * rng.normal(size=(count, size))).astype(np.float32)


@pytest.mark.parametrize(("kind", "count"), [("hnsw", 3000), ("ivfpq", 10_500)])
def test_approximate_indexes_find_nearly_all_with_exact_scores(kind: str, count: int) -> None:
    vectors = clustered(count, 16, 100)
    units = module.unit_vectors(vectors, count)
    documents = [doc("text", f"{i:05d}", third=i % 3 == 0, one=i % 20 == 7) for i in range(count)]
    store, exact = FaissStore(Hashed(), index=kind), FaissStore(Hashed())
    for target in (store, exact):
        target.add_documents(documents[: count - 300], vectors=vectors[: count - 300])
        target.add_documents(documents[count - 300 :], vectors=vectors[count - 300 :])  # goes into the built index
        target.delete([f"{i:05d}" for i in range(0, count, 10)])
    assert module._flat(store._state.index) is not store._state.index
    assert len(store._state.documents) == count and len(store) == count - count // 10  # deleted rows stay as holes
    for filter in (None, {"third": [True]}, lambda d: d.metadata["one"]):
        found = total = 0
        for query in clustered(40, 16, 100):
            unit = module.unit_vectors([query], 1)
            hits, truth = store._search(unit, 10, filter), exact._search(unit, 10, filter)
            assert all(score == pytest.approx(float(unit[0] @ units[int(d.id)]), abs=1e-5) for d, score in hits)
            assert len(hits) == 10 and hits == sorted(hits, key=lambda hit: (-hit[1], hit[0].id))
            found += len({d.id for d, _ in hits} & {d.id for d, _ in truth})
            total += 10
        assert found / total >= 0.95
    assert found == total  # so few pass the last filter that they are compared one by one
    store.delete([f"{i:05d}" for i in range(count // 2)])
    assert len(store._state.documents) == len(store)  # too many holes: built anew


def test_a_filter_costs_a_graph_no_recall() -> None:
    vectors = np.random.default_rng(0).normal(size=(12_000, 64))
    documents = [doc("t", f"{i:05d}", eighth=i % 8 == 0) for i in range(12_000)]
    graph, exact = FaissStore(Hashed(), index="hnsw"), FaissStore(Hashed())
    for store in (graph, exact):
        store.add_documents(documents, vectors=vectors)
    found = 0
    for query in np.random.default_rng(1).normal(size=(30, 64)):
        hits, truth = (s.similarity_search_by_vector(query, 10, {"eighth": True}) for s in (graph, exact))
        found += len({d.id for d in hits} & {d.id for d in truth})
    assert found >= 0.97 * 300  # .79 with the candidates that are enough without a filter


def test_a_filter_far_from_the_query_still_gives_k() -> None:
    """None of what is allowed stands in the lists that are looked into."""
    near = clustered(10_000, 16, 1, 1)
    store = FaissStore(Hashed(), index="ivfpq")
    documents = [doc("t", f"{i:05d}", far=i >= 10_000) for i in range(12_000)]
    store.add_documents(documents, vectors=np.concatenate([near, -near[:2000]]))
    hits = store.similarity_search_by_vector(near[0], 10, {"far": True})
    units = module.unit_vectors(near, len(near))
    assert {d.id for d in hits} == {f"{10_000 + i:05d}" for i in np.argsort(units[:2000] @ units[0])[:10]}


def test_ivfpq_says_that_it_is_exact_until_it_can_train(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    store = FaissStore(Hashed(), index="ivfpq")
    store.add_texts(["a", "b"])
    assert "ivfpq needs 9984 vectors to train: exact search until then" in caplog.text


def test_an_unknown_index_is_refused() -> None:
    with pytest.raises(InputError, match="index must be one of flat, hnsw, ivfpq. Got 'annoy'"):
        FaissStore(Hashed(), index="annoy")


@pytest.mark.parametrize("kind", ["flat", "hnsw", "ivfpq"])
def test_a_store_comes_back_from_its_folder(kind: str, tmp_path: Path) -> None:
    texts = ["中文", "é\u2028x", "c", "d", "e", "f", "g"]
    store = FaissStore.from_texts(
        texts, Hashed(), [{"v": i} for i in range(7)], ids=[*"1234567"], folder=tmp_path, index=kind
    )
    store.delete(["4"])
    again = FaissStore.load(tmp_path, Hashed())
    assert again.kind == kind and list(again.documents()) == list(store.documents())
    assert again.similarity_search_with_score("中文", 5) == store.similarity_search_with_score("中文", 5)
    again.add_documents([doc("new", "9")])
    assert [d.id for d in store.similarity_search("new", 1)] == ["9"]  # the other object sees it
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [
        "documents-000000002.jsonl", "documents-000000003.jsonl", "index-000000002.faiss", "index-000000003.faiss",
        "lock", "manifest.json",
    ]  # fmt: skip


def manifest(folder: Path, **changes: Any) -> None:
    fields = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**fields, **changes}))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("tamper", "message"),
    [
        (lambda f: flip(f / "index-000000002.faiss"), "damaged: index-000000002.faiss is not what was written"),
        (lambda f: flip(f / "documents-000000002.jsonl"), "documents-000000002.jsonl is not what was written"),
        (lambda f: (f / "index-000000002.faiss").write_bytes(b""), "index-000000002.faiss is not what was written"),
        (lambda f: (f / "documents-000000002.jsonl").unlink(), "documents-000000002.jsonl is missing"),
        (lambda f: (f / "manifest.json").write_text("{"), "manifest.json is not one of format 1"),
        (lambda f: (f / "manifest.json").write_text("[]"), "manifest.json is not one of format 1"),
        (lambda f: manifest(f, format=2), "manifest.json is not one of format 1"),
        (lambda f: manifest(f, generation="../x"), "manifest.json is not one of format 1"),
        (lambda f: manifest(f, generation=10**300), "manifest.json is not one of format 1"),
        (lambda f: manifest(f, sha256=None), "manifest.json is not one of format 1"),
        (lambda f: manifest(f, sha256={"index": None}), "index-000000002.faiss is not what was written"),
        (lambda f: manifest(f, more=1), "manifest.json is not one of format 1"),
        (lambda f: manifest(f, generation=7), "index-000000007.faiss is missing"),
        (lambda f: manifest(f, documents=9), r"are \(16, 3, 3, 3\), and should be \(16, 3, 3, 9\)"),
        (lambda f: manifest(f, dimension=9), r"should be \(9, 3, 3, 3\)"),
        (lambda f: manifest(f, model="other"), "has the model 'other', not 'hashed'"),
        (lambda f: (f / "manifest.json").unlink(), "damaged: manifest.json is missing"),
    ],
)
def test_a_tampered_folder_is_refused_with_what_to_do(
    tamper: Callable[[Path], Any], message: str, tmp_path: Path
) -> None:
    store = FaissStore(Hashed(), tmp_path)
    store.add_texts(["a", "b"])
    store.add_texts(["c"])
    tamper(tmp_path)
    with pytest.raises(InputError, match=message) as caught:
        FaissStore(Hashed(), tmp_path)
    assert caught.value.hint


VALUES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)


@given(
    st.sampled_from(list(module.FIELDS)),
    VALUES | st.lists(VALUES, max_size=3) | st.dictionaries(st.sampled_from(module.ROLES), VALUES),
)
@settings(max_examples=200, deadline=None)
def test_whatever_a_manifest_says_the_folder_opens_or_is_refused(name: str, value: Any) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        FaissStore(Hashed(), folder).add_texts(["a", "b"])
        manifest(folder, **{name: value})
        with suppress(InputError):
            assert len(FaissStore(Hashed(), folder)) == 2


def test_a_folder_of_another_model_kind_or_dimension_is_refused(tmp_path: Path) -> None:
    FaissStore.from_texts(["a"], Hashed(), folder=tmp_path)
    smaller = Hashed()
    smaller.dimension = 8
    for wrong, kind, message in (
        (Hashed("other"), "flat", "has the model 'hashed', not 'other'.\nhint: open it with what it was made with"),
        (Hashed(), "hnsw", "has the index 'flat', not 'hnsw'"),
        (smaller, "flat", "has the dimension 16, not 8"),
    ):
        with pytest.raises(InputError, match=message):
            FaissStore(wrong, tmp_path, kind)


def test_loading_what_is_not_there_makes_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="There is no vector store in"):
        FaissStore.load(tmp_path / "none", Hashed())
    assert not (tmp_path / "none").exists()


def test_a_store_whose_folder_vanishes_says_so(tmp_path: Path) -> None:
    store = FaissStore.from_texts(["a"], Hashed(), folder=tmp_path)
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(InputError, match="was removed"):
        store.similarity_search("a")


class Kill(BaseException):
    """Stands for the end of the process, which no handler sees."""


@pytest.mark.parametrize("writes", [0, 1, 2])
@pytest.mark.parametrize("half", [False, True])
def test_a_change_that_ends_halfway_leaves_the_old_state(
    writes: int, half: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FaissStore.from_texts(["a", "b"], Hashed(), ids=["1", "2"], folder=tmp_path)
    done: list[str] = []

    def dying(path: Path, content: bytes) -> None:
        if len(done) == writes:
            if half:
                (path.parent / f".{path.name}.x1y2").write_bytes(content[: len(content) // 2])
            raise Kill
        done.append(path.name)
        path.write_bytes(content)

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_atomic", dying)
        with pytest.raises(Kill):
            FaissStore(Hashed(), tmp_path).add_documents([doc("c", "3"), doc("new", "1")])
    store = FaissStore(Hashed(), tmp_path)
    assert sorted(store.documents(), key=lambda d: d.id) == [doc("a", "1"), doc("b", "2")]
    store.add_documents([doc("d", "4")])
    assert len(FaissStore(Hashed(), tmp_path)) == 3
    assert len(list(tmp_path.iterdir())) == 6  # what the dead writer left is gone


def test_writers_and_readers_at_once_lose_nothing_and_see_only_whole_states(tmp_path: Path) -> None:
    """Every object has its own lock and its own state, as if in a process of its own."""
    FaissStore(Hashed(), tmp_path).add_documents([doc("a", "a0"), doc("b", "b0")])
    errors: list[BaseException] = []
    stop = threading.Event()

    def guarded(work: Callable[[], None]) -> threading.Thread:
        def run() -> None:
            try:
                work()
            except BaseException as error:  # noqa: BLE001
                errors.append(error)

        return threading.Thread(target=run)

    def write(name: str, store: FaissStore) -> None:
        for i in range(10):
            store.add_documents([doc(f"{name}a{i}", f"a{name}{i}"), doc(f"{name}b{i}", f"b{name}{i}")])
            if i % 3 == 2:
                store.delete([f"a{name}{i - 1}", f"b{name}{i - 1}"])

    def read(store: FaissStore) -> None:
        while not stop.is_set():
            ids = {d.id for d in store.documents()}
            assert {id[1:] for id in ids if id[0] == "a"} == {id[1:] for id in ids if id[0] == "b"}  # pairs, always
            hits = store.similarity_search_with_score("a", 3)
            assert len(hits) >= 2 and hits[0][0].id == "a0"

    shared = FaissStore(Hashed(), tmp_path)
    stores = {"x": FaissStore(Hashed(), tmp_path), "y": shared, "z": shared}
    writers = [guarded(lambda name=name, store=store: write(name, store)) for name, store in stores.items()]
    readers = [guarded(lambda store=store: read(store)) for store in (shared, FaissStore(Hashed(), tmp_path))]
    for thread in [*writers, *readers]:
        thread.start()
    for thread in writers:
        thread.join()
    stop.set()
    for thread in readers:
        thread.join()
    assert errors == []
    kept = {f"{side}{name}{i}" for side in "ab" for name in "xyz" for i in range(10) if i not in (1, 4, 7)}
    assert {d.id for d in FaissStore(Hashed(), tmp_path).documents()} == kept | {"a0", "b0"}


def test_a_reader_overtaken_by_two_writes_takes_the_newest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = FaissStore.from_texts(["a"], Hashed(), folder=tmp_path)
    reader = FaissStore(Hashed(), tmp_path)
    writer.add_texts(["b"])
    parse = module._parse
    calls: list[int] = []

    def slow(folder: Path, text: bytes) -> Any:
        if not calls:  # between the manifest and its files
            calls.append(1)
            writer.add_texts(["c"])
            writer.add_texts(["d"])
        return parse(folder, text)

    monkeypatch.setattr(module, "_parse", slow)
    assert sorted(d.page_content for d in reader.documents()) == ["a", "b", "c", "d"]


WRITER = """
import sys
sys.path[:0] = [sys.argv[1], sys.argv[2]]
from test_vector_store import Hashed, doc
from qa_system.document_processor.vector_store import FaissStore
folder, name, count = sys.argv[3], sys.argv[4], int(sys.argv[5])
store = FaissStore(Hashed(), folder)
for i in range(count):
    store.add_documents([doc(f"{name} {i}", f"{name}{i}"), doc(f"other {name} {i}", f"{name}{i}'")])
    print(i, flush=True)
"""


def start_writer(folder: Path, name: str, count: int) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", WRITER, str(ROOT), str(Path(__file__).parent), str(folder), name, str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_two_processes_write_at_once_and_nothing_is_lost(tmp_path: Path) -> None:
    writers = [start_writer(tmp_path, name, 40) for name in ("a", "b")]
    assert [writer.wait(120) for writer in writers] == [0, 0]
    ids = {d.id for d in FaissStore(Hashed(), tmp_path).documents()}
    assert ids == {f"{name}{i}{end}" for name in "ab" for i in range(40) for end in ("", "'")}


@pytest.mark.slow
def test_a_killed_process_leaves_every_change_whole_or_undone(tmp_path: Path) -> None:
    rng, said = random.Random(0), {}
    for attempt in range(6):
        writer = start_writer(tmp_path, f"p{attempt}-", 10_000)
        assert writer.stdout is not None and writer.stdout.readline() == "0\n"
        time.sleep(rng.uniform(0, 0.2))
        writer.send_signal(signal.SIGKILL)
        said[attempt] = int((["0"] + writer.stdout.read().split())[-1])
        writer.wait()
        store = FaissStore(Hashed(), tmp_path)
        ids = {d.id for d in store.documents()}
        for number, last in said.items():
            mine = {id for id in ids if id.startswith(f"p{number}-")}
            whole = [{f"p{number}-{i}{end}" for i in range(stop) for end in ("", "'")} for stop in (last + 1, last + 2)]
            assert mine in whole  # the one after what it said may have been finished too
        assert store.similarity_search("p0- 0", 1)[0].id == "p0-0"


# --- Milvus -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_milvus_collection_is_opened_again_only_with_its_model(milvus_file: str) -> None:
    MilvusStore.from_texts(["a"], Hashed(), ids=["1"], uri=milvus_file, collection="again")
    assert list(MilvusStore(Hashed(), milvus_file, "again").documents()) == [doc("a", "1")]
    with pytest.raises(InputError, match="has the model 'hashed', not 'other'.\nhint: open it with the embedding"):
        MilvusStore(Hashed("other"), milvus_file, "again")
    with pytest.raises(InputError, match="collection must be letters, digits and _. Got 'a b'"):
        MilvusStore(Hashed(), milvus_file, "a b")
    with pytest.raises(InputError, match="Milvus can't be reached at /none/x.db"):
        MilvusStore(Hashed(), "/none/x.db")


@pytest.mark.slow
def test_what_milvus_cannot_hold_is_refused(milvus_file: str) -> None:
    store = MilvusStore(Hashed(), milvus_file, "limits")
    for wrong, message in (
        (doc("a", "é" * 300), "Milvus takes 512 bytes of id. Got 600"),
        (doc("中" * 30_000, "1"), "Milvus takes 65,535 bytes of text. Got 90,000"),
    ):
        with pytest.raises(InputError, match=message):
            store.add_documents([doc("fine", "0"), wrong])
    assert len(store) == 0
