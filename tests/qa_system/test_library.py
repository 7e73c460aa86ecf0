"""The library against a model of what it should hold; its folder against kills, tampering and other writers."""

import hashlib
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.embeddings import Embeddings

from qa_system.document_processor.pdf_reader import Document, EmptyError, LimitError, Limits, Page, UnsupportedError
from qa_system.document_processor.vector_store import MANIFEST, MilvusStore
from qa_system.retrieval.dense_retrieval import Library
from qa_system.retrieval.sparse_retrieval import Hit
from shared.errors import InputError

ROOT = Path(__file__).parents[2]
LIGHT = "The lighthouse was built in 1821 by Anna Berg. Its lamp burns whale oil."
FERRY = "The ferry leaves at noon and at six. A ticket costs four crowns."
CHINESE = "灯塔建于一八二一年。渡轮中午开船。"


class Words(Embeddings):
    """A vector for every text, from the hashes of its words: who shares words is near."""

    name = "words"

    def embed_query(self, text: str) -> list[float]:
        vector = np.full(64, 1e-3)
        for word in re.findall(r"[a-z0-9]+|[^\x00-\x7f]", text.lower()):
            vector[int.from_bytes(hashlib.sha256(word.encode("utf-8", "replace")).digest()[:4], "big") % 64] += 1
        return vector.tolist()

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [self.embed_query(text) for text in texts]


def opened(folder: Path | None = None, **settings: object) -> Library:
    return Library(folder, Words(), **settings)


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    for name, text in (("light.txt", LIGHT), ("ferry.md", f"# Ferry\n\n{FERRY}"), ("灯塔.txt", CHINESE)):
        (folder / name).write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def library(tmp_path: Path, texts: Path) -> Library:
    library = opened(tmp_path / "library")
    for path in sorted(texts.iterdir()):
        library.add(path)
    return library


def the(library: Library, name: str) -> str:
    [id] = [info.id for info in library.infos() if info.name == name]
    return id


def cited(hits: list[Hit]) -> set[str]:
    return {hit.chunk.document_id for hit in hits}


def check_whole(library: Library) -> set[str]:
    """Hold all parts of a library against each other, and return the names of its documents."""
    chunks = list(library.store.documents())
    for info in library.infos():
        document = library.document(info.id)
        file = library.file(info.id)
        assert file is not None and hashlib.sha256(file.read_bytes()).hexdigest() == document.id == info.id
        own = [chunk for chunk in chunks if chunk.metadata["document_id"] == info.id]
        assert len(own) == info.chunks > 0
        for chunk in own:
            assert document.text[chunk.metadata["start"] : chunk.metadata["end"]] == chunk.page_content
    assert {chunk.metadata["document_id"] for chunk in chunks} == {info.id for info in library.infos()}
    return {info.name for info in library.infos()}


def test_what_was_added_is_found_with_its_place(library: Library) -> None:
    [first, *_] = library.search("who built the lighthouse?", k=3)
    assert first.chunk.document_name == "light.txt"
    document = library.document(first.chunk.document_id)
    assert document.text[first.chunk.start : first.chunk.end] == first.chunk.text
    assert set(first.scores) == {"dense", "sparse"}
    assert library.search("渡轮什么时候开船", k=1)[0].chunk.document_name == "灯塔.txt"


def test_infos_say_what_there_is(library: Library) -> None:
    assert [(info.name, info.kind, info.pages, info.new) for info in library.infos()] == [
        ("ferry.md", "md", 1, False),
        ("light.txt", "txt", 1, False),
        ("灯塔.txt", "txt", 1, False),
    ]
    light = library.infos()[1]
    assert (light.characters, light.bytes, light.chunks) == (len(LIGHT), len(LIGHT.encode()), 1)
    assert len(library) == 3


def test_the_same_bytes_are_one_document_whatever_they_are_called(library: Library, texts: Path) -> None:
    (texts / "copy.txt").write_bytes((texts / "light.txt").read_bytes())
    info = library.add(texts / "copy.txt", name="other.txt")
    assert not info.new and info.name == "light.txt" and len(library) == 3
    assert opened(None).add(texts / "light.txt").new


def test_two_copies_in_one_call_are_one_new_document(texts: Path) -> None:
    library = opened()
    data, document = library.read(texts / "light.txt")
    assert isinstance(document, Document)
    assert [info.new for info in library.add_documents([(document, data), (document, data)])] == [True, False]


def test_equal_texts_of_two_documents_are_two_chunks(texts: Path) -> None:
    (texts / "again.txt").write_text(f"{LIGHT}\n", encoding="utf-8")
    library = opened()
    library.add(texts / "light.txt")
    library.add(texts / "again.txt")
    assert len(cited(library.search("who built the lighthouse?"))) == 2


def test_a_library_opened_anew_is_the_same(library: Library) -> None:
    again = opened(library.folder)
    assert again.infos() == library.infos()
    assert again.search("ferry ticket") == library.search("ferry ticket")


def test_delete_says_whether_it_was_there_and_the_deleted_is_never_found(library: Library) -> None:
    id = the(library, "light.txt")
    others = opened(library.folder)
    assert others.search("lighthouse lamp whale oil", k=1)[0].chunk.document_id == id
    assert library.delete(id)
    for mode in ("hybrid", "dense", "sparse"):
        for reader in (library, others):
            assert id not in cited(reader.search("lighthouse lamp whale oil", k=10, mode=mode))
    for reader in (library, others):
        with pytest.raises(InputError, match="There is no document"):
            reader.document(id)
    assert not library.delete(id) and not library.delete("nothing") and not library.delete("../lock")
    assert not [path for path in library.folder.rglob(f"*{id}*")]


def test_what_was_deleted_can_be_added_again_under_another_name(library: Library, texts: Path) -> None:
    id = the(library, "light.txt")
    library.document(id)
    library.delete(id)
    assert library.add(texts / "light.txt", name="new name.txt").new
    assert library.document(id).name == "new name.txt"


@pytest.mark.parametrize(
    "name",
    [
        "../../../etc/passwd",
        "/etc/passwd",
        "..\\..\\boot.ini",
        "C:\\x\\evil.txt",
        "a/../../b.txt",
        "..",
        "\x1b[2J\n.txt",
        "",
    ],
)
def test_names_that_climb_out_of_the_folder_do_nothing(tmp_path: Path, texts: Path, name: str) -> None:
    library = opened(tmp_path / "deep" / "library")
    before = {path for path in tmp_path.rglob("*") if "library" not in path.parts}
    info = library.add(texts / "light.txt", name=name)
    assert "/" not in info.name and "\\" not in info.name and info.name.isprintable() and info.name not in ("", "..")
    assert {path for path in tmp_path.rglob("*") if "library" not in path.parts} <= before
    files = [path.name for path in (library.folder / "files").iterdir()]
    assert files == [f"{info.id}.txt"]
    assert library.file(info.id).read_bytes() == LIGHT.encode()


@pytest.mark.parametrize("id", ["../../secret", "/etc/passwd", "", "0" * 64])
def test_unknown_ids_open_no_file(library: Library, id: str) -> None:
    for call in (library.document, library.file):
        with pytest.raises(InputError, match="There is no document"):
            call(id)


@pytest.mark.parametrize(
    ("pattern", "call"),
    [
        ("documents/*.json", lambda library, id: library.document(id)),
        ("files/*.txt", lambda library, id: library.file(id)),
        ("index/*.faiss", lambda library, id: library.search("lighthouse")),
        ("index/*.jsonl", lambda library, id: library.search("lighthouse")),
        (f"index/{MANIFEST}", lambda library, id: library.search("lighthouse")),
    ],
)
@pytest.mark.parametrize("how", ["changed", "cut", "gone"])
def test_a_file_that_was_tampered_with_is_an_error_that_names_it(
    tmp_path: Path, texts: Path, pattern: str, call: object, how: str
) -> None:
    folder = tmp_path / "library"
    id = opened(folder).add(texts / "light.txt").id
    [path] = folder.glob(pattern)
    content = path.read_bytes()
    if how == "gone":
        path.unlink()
    else:
        path.write_bytes(content.replace(b"1", b"7") if how == "changed" and b"1" in content else content[:-2])
    if (how, path.name) == ("gone", MANIFEST):
        assert len(opened(folder)) == 0  # without it there is no library
        return
    with pytest.raises(InputError, match=re.escape(path.name) if "index" not in pattern else "damaged"):
        call(opened(folder), id)


def test_an_index_of_another_model_is_refused(library: Library) -> None:
    other = Words()
    other.name = "other"
    with pytest.raises(InputError, match="has the model 'words'"):
        Library(library.folder, other)


def test_a_library_keeps_its_kind_of_index(tmp_path: Path, texts: Path) -> None:
    opened(tmp_path / "graph", index="hnsw").add(texts / "light.txt")
    again = opened(tmp_path / "graph")
    again.add(texts / "ferry.md")
    assert again.store.kind == "hnsw" and len(again) == 2


def test_in_memory_it_is_gone_with_the_object(texts: Path) -> None:
    library = opened()
    id = library.add(texts / "light.txt").id
    folder = library.folder
    assert library.file(id).read_bytes() == LIGHT.encode() and folder.is_dir()
    del library
    import gc

    gc.collect()
    assert not folder.exists()


def test_a_filter_acts_before_the_best_are_chosen(library: Library) -> None:
    id = the(library, "ferry.md")
    for mode in ("hybrid", "dense"):
        assert cited(library.search("who built the lighthouse?", k=1, mode=mode, filter={"document_id": id})) == {id}
    assert library.search("lighthouse", filter={"document_name": "no such.txt"}) == []


def test_questions_of_any_size_and_k_beyond_the_library_are_answered(library: Library) -> None:
    assert len(library.search("lighthouse ferry", k=1000)) == 3
    assert library.search("lighthouse " * 10_000, k=1)[0].chunk.document_name == "light.txt"
    assert opened().search("anything") == []


@pytest.mark.parametrize("question", ["", " \n\t"])
def test_an_empty_question_is_refused(library: Library, question: str) -> None:
    with pytest.raises(InputError, match="empty"):
        library.search(question)


@pytest.mark.parametrize(("settings", "what"), [({"k": 0}, "k must"), ({"mode": "magic"}, "mode must")])
def test_wrong_parameters_of_a_search_are_named(library: Library, settings: dict[str, object], what: str) -> None:
    with pytest.raises(InputError, match=what):
        library.search("lighthouse", **settings)


def test_a_reranker_orders_the_best_hits_anew(library: Library) -> None:
    class Backwards:
        def rerank(self, question: str, hits: list[Hit]) -> list[Hit]:
            return hits[::-1]

    plain = library.search("the lighthouse and the ferry", k=3)
    assert library.search("the lighthouse and the ferry", k=2, reranker=Backwards()) == plain[::-1][:2]


def test_what_cannot_be_read_leaves_the_library_as_it_was(library: Library, tmp_path: Path) -> None:
    before = library.infos()
    for name, content, error in (
        ("empty.txt", b"", EmptyError),
        ("picture.pdf", b"\x89PNG\r\n\x1a\n" + b"\0" * 64, UnsupportedError),
        ("large.txt", b"x" * (2**20 + 1), LimitError),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(error):
            library.add(tmp_path / name, limits=Limits(file_megabytes=1))
    with pytest.raises(FileNotFoundError):
        library.add(tmp_path / "nothing.txt")
    assert library.infos() == before


def document(text: str, name: str = "a.txt") -> Document:
    pages = (Page(1, "1", 0, len(text), 0, 0, "txt"),)
    return Document(hashlib.sha256(text.encode()).hexdigest(), name, text, pages)


def test_a_document_must_have_the_hash_of_its_bytes_as_its_id(library: Library) -> None:
    good = document("A text.")
    with pytest.raises(InputError, match="changed while it was read"):
        library.add_document(good, b"other bytes")
    with pytest.raises(InputError, match="SHA-256"):
        library.add_document(Document("../up", good.name, good.text, good.pages))
    assert len(library) == 3


def test_without_bytes_there_is_no_file(library: Library) -> None:
    info = library.add_document(document("A text without a file."))
    assert info.bytes == 0 and library.file(info.id) is None


def test_vectors_may_come_from_elsewhere(texts: Path) -> None:
    library, seen = opened(), []

    def embed(chunks: list[str]) -> np.ndarray:
        seen.extend(chunks)
        return np.array(Words().embed_documents(chunks))

    library.add_documents([(document(LIGHT), LIGHT.encode()), (document(FERRY), FERRY.encode())], embed)
    assert seen == [LIGHT, FERRY]
    assert library.search("ferry ticket", k=1)[0].chunk.text == FERRY


def test_what_others_do_while_chunks_are_embedded_is_seen(library: Library) -> None:
    others, item, light = opened(library.folder), document("A new text."), the(library, "light.txt")
    old = library.document(light)

    def embed(chunks: list[str]) -> np.ndarray:
        assert others.add_document(replace(item, name="theirs.txt")).new
        return np.array(Words().embed_documents(chunks))

    [info] = library.add_documents([(item, None)], embed)
    assert (info.new, info.name) == (False, "theirs.txt")
    assert library.document(item.id).name == "theirs.txt"

    def embed_and_delete(chunks: list[str]) -> np.ndarray:
        others.delete(light)
        return np.array(Words().embed_documents(chunks))

    infos = library.add_documents([(old, None), (document("One more."), None)], embed_and_delete)
    assert [info.new for info in infos] == [True, True]
    assert library.document(light) == old


def test_chunks_hold_no_more_tokens_than_the_embedding_reads() -> None:
    class Short(Words):
        max_tokens = 32

        def count_tokens(self, text: str) -> int:
            return len(text.split())

    library = Library(None, Short(), max_tokens=500, overlap=5)
    library.add_document(document(" ".join(f"Sentence {n} has these seven words here." for n in range(100))))
    assert max(len(chunk.page_content.split()) for chunk in library.store.documents()) <= 32


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["add", "delete", "search"]), st.integers(0, 4)), max_size=12))
def test_any_order_of_adding_and_deleting_leaves_what_it_should(steps: list[tuple[str, int]]) -> None:
    library, held = opened(), {}
    for action, number in steps:
        item = document(f"Document number{number} speaks of topic{number}.", f"{number}.txt")
        if action == "add":
            assert library.add_document(item, item.text.encode()).new == (item.id not in held)
            held[item.id] = item
        elif action == "delete":
            assert library.delete(item.id) == (held.pop(item.id, None) is not None)
        else:
            hits = library.search(f"topic{number}", k=9)
            assert cited(hits) == set(held)
            assert item.id not in held or hits[0].chunk.document_id == item.id
    assert {info.id for info in library.infos()} == set(held)
    assert all(library.document(id) == item for id, item in held.items())
    check_whole(library)


# --- Kills and other writers ------------------------------------------------------------------------------------------

WRITER = """
import random, sys
from pathlib import Path
sys.path[:0] = [sys.argv[1], sys.argv[2]]
from test_library import document, opened
library, own = opened(Path(sys.argv[3])), sys.argv[4]
rng = random.Random(own)
print("ready", flush=True)
for n in range(int(sys.argv[5])):
    item = document(f"Writer {own} wrote number {n}. " * 20, f"{own}-{n}.txt")
    library.add_document(item, item.text.encode())
    print("added", n, flush=True)
    if sys.argv[6] == "delete" and rng.random() < 0.4:
        library.delete(item.id)
        print("deleted", n, flush=True)
"""


def writer(folder: Path, own: str, count: int, delete: bool = False) -> subprocess.Popen[str]:
    arguments = [str(ROOT), str(Path(__file__).parent), str(folder), own, str(count), "delete" if delete else "keep"]
    return subprocess.Popen([sys.executable, "-c", WRITER, *arguments], stdout=subprocess.PIPE, text=True)


def test_a_kill_at_any_moment_leaves_a_whole_library(tmp_path: Path) -> None:
    rng, folder = random.Random(0), tmp_path / "library"
    for round in range(4):
        process = writer(folder, f"w{round}", 10_000, delete=True)
        assert process.stdout.readline() == "ready\n"
        time.sleep(rng.uniform(0.05, 0.4))
        process.send_signal(signal.SIGKILL)
        said = process.stdout.read().split("\n")[:-1]
        process.wait()
        library = opened(folder)
        names = check_whole(library)
        state = {}
        for line in said:  # what was reported is so
            what, number = line.split()
            state[f"w{round}-{number}.txt"] = what
        last = f"w{round}-{len(state)}.txt"
        for name, what in list(state.items())[:-1]:
            assert (name in names) == (what == "added"), name
        assert {name for name in names if name.startswith(f"w{round}-")} <= {*state, last}
    library.delete(library.infos()[0].id)  # a change sweeps what the dead left
    known = {info.id for info in library.infos()}
    for part in ("documents", "files"):
        assert {path.name.partition(".")[0] for path in (folder / part).iterdir()} == known


def test_files_that_the_index_does_not_know_are_swept_and_others_are_left(library: Library, texts: Path) -> None:
    lost, strange = library.folder / "files" / f"{'a' * 64}.pdf", library.folder / "files" / "notes of mine.txt"
    half = library.folder / "documents" / f".{'b' * 64}.json.x1y2"
    for path in (lost, strange, half):
        path.write_text("x")
    opened(library.folder).delete("nothing")
    assert strange.exists() and not lost.exists() and not half.exists()
    assert check_whole(library) == {"light.txt", "ferry.md", "灯塔.txt"}


def test_an_error_while_the_index_is_written_leaves_the_library_as_it_was(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = library.infos()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(library.store, "_saved", full)
    with pytest.raises(OSError, match="No space"):
        library.add_document(document("A new text."), b"A new text.")
    monkeypatch.undo()
    assert library.infos() == before
    assert library.add_document(document("A new text."), b"A new text.").new
    check_whole(library)


def test_two_processes_that_add_at_once_lose_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "library"
    processes = [writer(folder, own, 8) for own in ("a", "b")]
    reader = opened(folder)
    while any(process.poll() is None for process in processes):
        for hit in reader.search("writer wrote number", k=50):
            reader.document(hit.chunk.document_id)
    assert [process.wait() for process in processes] == [0, 0]
    for process in processes:
        process.stdout.close()
    assert check_whole(reader) == {f"{own}-{n}.txt" for own in "ab" for n in range(8)}


def test_threads_may_add_delete_and_search_at_once(tmp_path: Path) -> None:
    library, errors = opened(tmp_path / "library"), []

    def work(own: int) -> None:
        try:
            for n in range(5):
                item = document(f"Thread{own} wrote number{n}.", f"{own}-{n}.txt")
                library.add_document(item, item.text.encode())
                assert item.id in cited(library.search(f"thread{own} number{n}", k=50))
                if n % 2:
                    assert library.delete(item.id)
                    assert item.id not in cited(library.search(f"thread{own} number{n}", k=50))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(own,)) for own in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert check_whole(library) == {f"{own}-{n}.txt" for own in range(4) for n in (0, 2, 4)}


# --- In Milvus --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def milvus_file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    path = str(tmp_path_factory.mktemp("milvus") / "vectors.db")
    yield path
    from milvus_lite.server_manager import server_manager_instance

    server_manager_instance.release_server(path)


@pytest.fixture
def in_milvus(tmp_path: Path, texts: Path, milvus_file: str) -> Library:
    library = opened(tmp_path / "library", store=milvus_file)
    for path in sorted(texts.iterdir()):
        library.add(path)
    return library


@pytest.mark.slow
def test_a_library_in_milvus_finds_what_one_with_faiss_does(in_milvus: Library, texts: Path) -> None:
    library = opened()
    for path in texts.iterdir():
        library.add(path)
    assert isinstance(in_milvus.store, MilvusStore) and in_milvus.infos() == library.infos()
    check_whole(in_milvus)
    for question in ("who built the lighthouse?", "ferry ticket", "渡轮什么时候开船"):
        hits, expected = in_milvus.search(question), library.search(question)
        assert [hit.chunk for hit in hits] == [hit.chunk for hit in expected]
        assert [hit.score for hit in hits] == pytest.approx([hit.score for hit in expected], abs=1e-4)


@pytest.mark.slow
def test_a_folder_knows_its_collection_and_what_others_change_there(
    in_milvus: Library, texts: Path, milvus_file: str
) -> None:
    others = opened(in_milvus.folder)  # by the folder alone
    assert others.infos() == in_milvus.infos() and others.store.collection == in_milvus.store.collection
    light = the(in_milvus, "light.txt")
    assert others.delete(light)
    (texts / "light.txt").write_text("The lighthouse was sold in 1999 to Ben Dahl.", encoding="utf-8")
    new = others.add(texts / "light.txt")  # as many chunks as before
    assert new.new and the(in_milvus, "light.txt") == new.id
    found = in_milvus.search("the lighthouse", k=9, mode="sparse")
    assert light not in cited(found) and new.id in cited(found)
    check_whole(in_milvus)
    elsewhere = opened(in_milvus.folder.parent / "elsewhere", store=milvus_file)
    assert len(elsewhere) == 0  # another collection


@pytest.mark.slow
def test_what_a_killed_writer_left_in_milvus_is_not_there_and_goes(in_milvus: Library) -> None:
    long = document("".join(f"Sentence {n} tells of the whale number {n}. " for n in range(200)), "whales.txt")
    _, chunks = in_milvus._chunks(long, None)
    assert len(chunks) > 3
    in_milvus.store.add_documents(chunks[:2])
    again = opened(in_milvus.folder)
    assert again.infos() == in_milvus.infos() and len(again) == 3
    for mode in ("dense", "sparse", "hybrid"):
        assert long.id not in cited(again.search("the whale number 1", k=20, mode=mode))
    again.delete("nothing")  # a change sweeps
    assert long.id not in {chunk.metadata["document_id"] for chunk in again.store.documents()}
    assert again.add_document(long, long.text.encode()).new
    assert long.id in cited(in_milvus.search("the whale number 1"))
    check_whole(again)


@pytest.mark.slow
def test_a_library_stays_in_the_store_it_began_with(in_milvus: Library, tmp_path: Path, milvus_file: str) -> None:
    opened(tmp_path / "plain").add_document(document("A text."))
    with pytest.raises(InputError, match="has its vectors in faiss"):
        opened(tmp_path / "plain", store=milvus_file)
    with pytest.raises(InputError, match=r"has its vectors in .*vectors\.db. Got the store 'http://other:19530'"):
        opened(in_milvus.folder, store="http://other:19530")


@pytest.mark.parametrize(
    ("folder", "store", "what"),
    [
        ("library", "fiass", "store must be faiss, a file that ends with .db, or an address"),
        (None, "vectors.db", "store must be faiss where there is no folder"),
        ("library", "none/vectors.db", "Milvus can't be reached at"),
    ],
)
def test_a_store_that_cannot_be_is_named_and_leaves_nothing(
    tmp_path: Path, folder: str | None, store: str, what: str
) -> None:
    with pytest.raises(InputError, match=what):
        opened(tmp_path / folder if folder else None, store=store)
    assert not list(tmp_path.rglob(MANIFEST))


def test_a_filter_of_all_documents_is_no_filter(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    search = library._retriever.search

    def noted(_: object, question: str, k: int, filter: object, mode: str) -> list[Hit]:
        asked.append(filter)
        return search(question, k)

    monkeypatch.setattr(type(library._retriever), "search", noted)
    ids = [info.id for info in library.infos()]
    some = {"document_id": ids[1:]}
    for filter in ({"document_id": ids}, some, {"document_id": ids, "pages": [1]}):
        library.search("lighthouse", filter=filter)
    assert asked == [None, some, {"document_id": ids, "pages": [1]}]
