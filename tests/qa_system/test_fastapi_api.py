"""The service over real sockets: uploads, answers, streams, limits, and everything a hostile client may send."""

import asyncio
import hashlib
import io
import json
import socket
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
import uvicorn

from qa_system.app import fastapi_api
from qa_system.app.fastapi_api import Guard, ServeConfig, Turnstile, create_app
from qa_system.generation.answer_generator import TextAnswerer
from qa_system.retrieval.dense_retrieval import Library
from shared.config import run_commands
from shared.errors import InputError

LIGHT = "The lighthouse was built in 1874 by the engineer Alan Stevenson. It is 41 metres high."
SEALS = "Grey seals rest on the skerries at low tide. The colony has about four hundred animals."


def started(app: Any) -> Iterator[str]:
    """Serve an application on a free port of this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    for _ in range(200):
        if server.started:
            break
        time.sleep(0.05)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(20)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("library")
    config = ServeConfig(folder=str(folder), megabytes=1, pages=20, characters=9_999, a_minute=100_000, seconds=30)
    yield from started(create_app(config))


@pytest.fixture
def client(address: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=address, timeout=60) as one:
        for info in one.get("/documents").json():
            one.delete(f"/documents/{info['id']}")
        yield one


def upload(client: httpx.Client, name: str, data: str | bytes, **more: str) -> httpx.Response:
    data = data.encode() if isinstance(data, str) else data
    return client.post("/documents", files={"file": (name, data)}, data=more)


def pdf(text: str, pages: int = 1) -> bytes:
    """Draw a PDF with a text on its last page."""
    from matplotlib.backends.backend_pdf import PdfPages
    from matplotlib.figure import Figure

    file = io.BytesIO()
    with PdfPages(file) as book:
        for number in range(pages):
            figure = Figure(figsize=(6, 3))
            figure.text(0.1, 0.5, text if number == pages - 1 else f"Sheet {number + 1}")
            book.savefig(figure)
    return file.getvalue()


def error_of(response: httpx.Response, status: int) -> str:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    error = response.json()["error"]
    assert set(error) == {"type", "message", "hint"}
    return f"{error['type']}: {error['message']}"


def test_a_document_is_uploaded_once_listed_asked_and_deleted(client: httpx.Client) -> None:
    first, again = upload(client, "light.txt", LIGHT), upload(client, "other name.txt", LIGHT)
    assert (first.status_code, again.status_code) == (201, 200)
    info = first.json()
    assert info["id"] == again.json()["id"] == hashlib.sha256(LIGHT.encode()).hexdigest()
    assert [one["name"] for one in client.get("/documents").json()] == ["light.txt"]
    assert client.get(f"/documents/{info['id']}").json()["characters"] == len(LIGHT)
    answer = client.post("/ask", json={"question": "Who built the lighthouse?"}).json()
    assert "Alan Stevenson" in answer["text"]
    [citation] = answer["citations"]
    assert LIGHT[citation["start"] : citation["end"]] == citation["quote"]
    assert citation["document_id"] == info["id"]
    assert client.delete(f"/documents/{info['id']}").status_code == 204
    assert client.get("/documents").json() == []
    assert client.post("/ask", json={"question": "Who built the lighthouse?"}).json()["refused"]
    assert "NotFound" in error_of(client.delete(f"/documents/{info['id']}"), 404)
    assert "NotFound" in error_of(client.get(f"/documents/{info['id']}"), 404)


def test_only_the_documents_asked_for_are_searched(client: httpx.Client) -> None:
    light, seals = upload(client, "light.txt", LIGHT).json(), upload(client, "seals.txt", SEALS).json()
    question = {"question": "Who built the lighthouse?", "threshold": 0}
    asked = client.post("/ask", json={**question, "documents": [seals["id"]]}).json()
    assert {hit["document_id"] for hit in asked["hits"]} == {seals["id"]}
    asked = client.post("/ask", json={**question, "documents": [light["id"]]}).json()
    assert asked["citations"][0]["document_id"] == light["id"]


def streamed(client: httpx.Client, asked: dict[str, Any]) -> list[tuple[str, Any]]:
    """Ask, and return the names and data of the events."""
    with client.stream("POST", "/ask/stream", json=asked) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        blocks = "".join(response.iter_text()).strip().split("\n\n")
    events = [dict(line.split(": ", 1) for line in block.splitlines()) for block in blocks]
    return [(event["event"], json.loads(event["data"])) for event in events]


def test_a_document_that_is_not_there_is_named_and_not_searched(client: httpx.Client) -> None:
    info = upload(client, "light.txt", LIGHT).json()
    asked = {"question": "Who built the lighthouse?", "documents": [info["id"], "abc123"]}
    for path in ("/ask", "/ask/stream"):
        assert error_of(client.post(path, json=asked), 404) == "NotFound: There is no document 'abc123'."


def test_refusals_are_counted_however_they_were_asked_for(client: httpx.Client) -> None:
    def count() -> float:
        return float(client.get("/metrics").text.split("\nqa_refusals_total ")[1].split()[0])

    before = count()
    assert client.post("/ask", json={"question": "Anything?"}).json()["refused"]
    assert streamed(client, {"question": "Anything?"})[-1][1]["refused"]
    assert count() == before + 2


def test_a_model_that_fails_is_told_of_and_never_just_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(TextAnswerer):
        name = "openai:x"

        def generate(self, messages: list[dict[str, str]]) -> Iterator[str]:
            raise ConnectionError("refused")
            yield ""

    monkeypatch.setattr(fastapi_api, "load_answerer", lambda name: Broken())
    for address in started(create_app(ServeConfig(folder=str(tmp_path)))):
        with httpx.Client(base_url=address, timeout=60) as client:
            upload(client, "light.txt", LIGHT)
            asked = {"question": "Who built the lighthouse?"}
            message = error_of(client.post("/ask", json=asked), 502)
            assert message == "AnswererError: openai:x failed: ConnectionError: refused"
            (first, _), (last, data) = streamed(client, asked)
            assert (first, last) == ("hits", "error")
            assert message.endswith(data["message"])

            def unforeseen(*_: Any, **__: Any) -> Iterator[Any]:
                yield {"event": "hits", "hits": []}
                raise RuntimeError("what only the log may tell")

            monkeypatch.setattr(fastapi_api, "stream_pipeline", unforeseen)
            (first, _), (last, data) = streamed(client, asked)
            assert (first, last) == ("hits", "error")
            assert data["message"].startswith("Something went wrong here")


def test_what_fails_unforeseen_is_counted_as_500(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def unforeseen(*_: Any, **__: Any) -> Iterator[Any]:
        raise RuntimeError("what only the log may tell")
        yield {}

    monkeypatch.setattr(fastapi_api, "stream_pipeline", unforeseen)
    failed = httpx.post(f"{address}/ask", json={"question": "Who?"})
    assert "InternalError: Something went wrong" in error_of(failed, 500)
    assert 'qa_requests_total{path="/ask",status="500"} 1.0' in httpx.get(f"{address}/metrics").text


def test_a_stream_waits_for_its_turn_counts_to_its_end_and_ends_with_its_client(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[float] = []

    def long(*_: Any, **__: Any) -> Iterator[Any]:
        try:
            for _ in range(400):
                yield {"event": "token", "text": "more"}
                time.sleep(0.05)
        finally:
            ended.append(time.monotonic())

    monkeypatch.setattr(fastapi_api, "stream_pipeline", long)
    asked = {"question": "Who built the lighthouse?"}
    for address in started(create_app(ServeConfig(folder=str(tmp_path), at_once=1, waiting=0))):
        with httpx.Client(base_url=address, timeout=20) as client:
            for number in (1, 2):  # the turn is given back
                with client.stream("POST", "/ask/stream", json=asked) as response:
                    assert response.status_code == 200
                    lines = response.iter_lines()
                    assert [next(lines) for _ in range(15)].count("event: token") == 5
                    for path in ("/ask", "/ask/stream"):
                        refused = client.post(path, json=asked)
                        assert "Too many requests wait" in error_of(refused, 429)
                        assert int(refused.headers["Retry-After"]) > 0
                left = time.monotonic()
                while f'{{path="/ask/stream",status="200"}} {number}.0' not in (metrics := client.get("/metrics").text):
                    time.sleep(0.05)
                assert len(ended) == number
                assert ended[-1] - left < 5
    assert 'qa_requests_total{path="/ask/stream",status="429"} 2.0' in metrics
    assert float(metrics.split('qa_seconds_sum{path="/ask/stream"} ')[1].split()[0]) > 2 * 4 * 0.05


def test_an_answer_is_streamed_as_events(client: httpx.Client) -> None:
    upload(client, "light.txt", LIGHT)
    history = [{"question": "Who built the lighthouse?", "answer": "Alan Stevenson [1]"}]
    asked = {"question": "And how high is it?", "history": history}
    names, values = zip(*streamed(client, asked), strict=True)
    assert names == ("hits", "token", "answer")
    answer = values[-1]
    assert answer["standalone_question"].startswith("Who built the lighthouse?")
    assert answer["text"] == values[1]["text"]
    assert "41 metres" in answer["text"]
    assert "The question is empty" in error_of(client.post("/ask/stream", json={"question": " "}), 422)


def test_a_page_is_drawn_with_the_quote_boxed(client: httpx.Client) -> None:
    from PIL import Image

    data = pdf("The lighthouse is 41 metres high.", pages=2)
    info = upload(client, "light.pdf", data).json()
    assert (info["pages"], info["kind"]) == (2, "pdf")
    citation = client.post("/ask", json={"question": "How high is the lighthouse?"}).json()["citations"][0]
    assert citation["page"] == 2
    place = {"start": citation["start"], "end": citation["end"]}
    drawn = client.get(f"/documents/{info['id']}/image", params=place)
    assert drawn.headers["content-type"] == "image/png"
    image = Image.open(io.BytesIO(drawn.content)).convert("RGB")
    colors = image.getcolors(image.width * image.height)
    assert any(r > 200 and g > 150 and b < 190 for _, (r, g, b) in colors)  # the box
    wrong = client.get(f"/documents/{info['id']}/image", params={"start": 5, "end": 10**6})
    assert "start and end must be in" in error_of(wrong, 422)
    text = upload(client, "light.txt", LIGHT).json()
    assert "no pages to draw" in error_of(client.get(f"/documents/{text['id']}/image", params=place), 404)


def test_pages_are_drawn_and_documents_deleted_while_another_is_read_and_other_requests_are_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loops, reading, go_on = [], threading.Event(), threading.Event()

    def noted(function: Any) -> Any:
        def outer(*arguments: Any, **named: Any) -> Any:
            loops.append(asyncio._get_running_loop())
            return function(*arguments, **named)

        return outer

    def slow(library: Library, path: Path, **named: Any) -> Any:
        reading.set()
        assert go_on.wait(30)
        return add(library, path, **named)

    for address in started(create_app(ServeConfig(folder=str(tmp_path), waiting=0))):
        with httpx.Client(base_url=address, timeout=60) as client, ThreadPoolExecutor(1) as pool:
            info = upload(client, "light.pdf", pdf("The lighthouse is 41 metres high.")).json()
            add = Library.add
            monkeypatch.setattr(Library, "add", slow)
            for name in ("file", "document", "infos"):
                monkeypatch.setattr(Library, name, noted(getattr(Library, name)))
            monkeypatch.setattr(fastapi_api, "page_image", noted(fastapi_api.page_image))
            other = pool.submit(upload, client, "seals.txt", SEALS)
            assert reading.wait(30)
            assert client.get(f"/documents/{info['id']}/image?start=0&end=5").status_code == 200
            assert client.delete(f"/documents/{info['id']}").status_code == 204
            assert "Too many requests wait" in error_of(upload(client, "light.txt", LIGHT), 429)
            go_on.set()
            assert other.result().status_code == 201
    assert loops and not any(loops)  # none of it on the thread that answers everyone


def test_questions_are_measured(client: httpx.Client) -> None:
    upload(client, "light.txt", LIGHT)
    questions = [
        {"question": "Who built the lighthouse?", "answers": ["Alan Stevenson"]},
        {"question": "Who won the world cup in 1966?", "answers": []},
    ]
    figures = client.post("/evaluate", json={"questions": questions}).json()
    assert figures["in_quotes"] == 1
    assert figures["questions"] == 2


# --- Hostile clients --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["../../etc/passwd.txt", "..\\..\\boot.txt", "/etc/cron.d/x.txt", "a\x00b.txt", "<b>.txt"]
)
def test_names_are_only_shown_and_never_paths(name: str, client: httpx.Client, tmp_path: Path) -> None:
    response = upload(client, name, LIGHT)
    assert response.status_code == 201
    shown = response.json()["name"]
    assert "/" not in shown
    assert "\\" not in shown
    assert shown.isprintable()


@pytest.mark.parametrize(
    ("name", "data", "status", "message"),
    [
        ("empty.pdf", b"", 422, "EmptyError"),
        ("program.pdf", b"\x7fELF" + bytes(1000), 415, "UnsupportedError"),
        ("picture.txt", b"\x89PNG\r\n\x1a\n" + bytes(1000), 415, "UnsupportedError"),
        ("zip.docx", b"PK\x03\x04" + bytes(100), 415, "UnsupportedError"),
        ("broken.pdf", b"%PDF-1.7\nnothing", 422, "DamagedError"),
        ("latin.txt", "é".encode("latin-1") * 10, 415, "UnsupportedError"),
    ],
)
def test_files_that_are_not_what_they_say_are_named(
    name: str, data: bytes, status: int, message: str, client: httpx.Client
) -> None:
    text = error_of(upload(client, name, data), status)
    assert text.startswith(message)
    assert name in text
    assert client.get("/documents").json() == []


def test_bombs_long_documents_and_wrong_passwords_are_refused(client: httpx.Client) -> None:
    from pypdf import PdfReader, PdfWriter

    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("word/document.xml", bytes(210 * 2**20))
    assert "LimitError" in error_of(upload(client, "bomb.docx", bomb.getvalue()), 413)
    assert "21 pages" in error_of(upload(client, "long.pdf", pdf("x", 21)), 413)
    message = error_of(upload(client, "long.txt", "ab " * 3_334), 413)
    assert message == "LimitError: long.txt has more than 9,999 characters."
    writer, locked = PdfWriter(clone_from=PdfReader(io.BytesIO(pdf("The safe holds 12 coins.")))), io.BytesIO()
    writer.encrypt("secret", algorithm="AES-256")
    writer.write(locked)
    assert "PasswordError" in error_of(upload(client, "locked.pdf", locked.getvalue()), 422)
    assert "PasswordError" in error_of(upload(client, "locked.pdf", locked.getvalue(), password="guess"), 422)
    info = upload(client, "locked.pdf", locked.getvalue(), password="secret").json()
    place = f"/documents/{info['id']}/image?start=0&end=5"
    assert error_of(client.get(place), 422) == "PasswordError: locked.pdf needs a password."
    assert "--" not in client.get(place).json()["error"]["hint"]
    assert client.get(f"{place}&password=secret").status_code == 200


def test_uploads_over_the_limit_are_stopped_whether_they_say_so_or_not(client: httpx.Client) -> None:
    assert "larger than" in error_of(upload(client, "large.txt", b"x" * 1_200_000), 413)

    def endless() -> Iterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\n\r\n'
        for _ in range(64):
            yield b"y" * 65_536

    try:
        response = client.post(
            "/documents", content=endless(), headers={"Content-Type": "multipart/form-data; boundary=x"}
        )
    except httpx.WriteError:  # it hung up on us, which is as good
        return
    assert response.status_code == 413


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"question": ""}, "question: String should have at least 1 character"),
        ({"question": "  "}, "The question is empty"),
        ({"question": "x" * 100_000}, "question: String should have at most 2000 characters"),
        ({"question": "x", "k": 0}, "k: Input should be greater than or equal to 1"),
        ({"question": "x", "mode": "magic"}, "mode: Input should be 'hybrid', 'dense' or 'sparse'"),
        ({"question": "x", "thresold": 1}, "thresold: Extra inputs are not permitted"),
        ({}, "question: Field required"),
        ([], "the body: Input should be"),
    ],
)
def test_wrong_requests_say_what_is_wrong(body: Any, message: str, client: httpx.Client) -> None:
    assert message in error_of(client.post("/ask", json=body), 422)


def test_k_may_be_larger_than_the_index_and_the_index_may_be_empty(client: httpx.Client) -> None:
    assert client.post("/ask", json={"question": "Anything?", "k": 50}).json()["refused"]
    upload(client, "light.txt", LIGHT)
    assert len(client.post("/ask", json={"question": "Who built it?", "k": 50}).json()["hits"]) == 1


def test_what_is_not_there_and_what_is_no_json_is_answered_as_json(client: httpx.Client) -> None:
    assert "NotFound" in error_of(client.get("/nothing"), 404)
    assert "MethodNotAllowed" in error_of(client.put("/ask"), 405)
    broken = client.post("/ask", content=b"{", headers={"Content-Type": "application/json"})
    assert "InvalidRequest: The body is no JSON: Expecting property name" in error_of(broken, 422)


def test_health_and_metrics_answer_and_no_client_makes_up_labels(client: httpx.Client) -> None:
    client.get("/made/up/path")
    assert client.get("/healthz").json()["status"] == "ok"
    metrics = client.get("/metrics").text
    assert 'qa_requests_total{path="/healthz",status="200"}' in metrics
    assert "made" not in metrics


def test_the_documentation_has_examples(client: httpx.Client) -> None:
    schema = client.get("/openapi.json").json()
    assert schema["components"]["schemas"]["Ask"]["examples"][0]["question"].startswith("How much")
    assert client.get("/docs").status_code == 200
    limits = "up to 1 MiB, 20 pages and 9,999 characters"
    assert limits in schema["paths"]["/documents"]["post"]["description"]


def test_many_clients_get_answers_and_deleted_documents_are_never_cited(client: httpx.Client, address: str) -> None:
    upload(client, "seals.txt", SEALS)

    def life(number: int) -> list[int]:
        with httpx.Client(base_url=address, timeout=60) as own:
            text = f"The secret word of vault {number}{number} is abra{number}kadabra."
            info = upload(own, f"{number}.txt", text).json()
            asked = {"question": f"What is the secret word of vault {number}{number}?"}
            one = own.post("/ask", json=asked)
            assert f"abra{number}kadabra" in one.json()["text"], one.text
            gone = own.delete(f"/documents/{info['id']}")
            two = own.post("/ask", json=asked)
            assert info["id"] not in [citation["document_id"] for citation in two.json()["citations"]]
            return [one.status_code, gone.status_code, two.status_code]

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(life, range(8))) == [[200, 204, 200]] * 8


def test_a_configured_reranker_orders_what_is_asked_streamed_and_evaluated(
    tmp_path: Path, cross_encoder: Callable[..., str]
) -> None:
    for address in started(create_app(ServeConfig(folder=str(tmp_path), rerank=cross_encoder()))):
        with httpx.Client(base_url=address, timeout=60) as client:
            for name, text in (("light.txt", LIGHT), ("seals.txt", SEALS)):
                upload(client, name, text)
            asked = {"question": "Who built the lighthouse?"}
            hits = client.post("/ask", json=asked).json()["hits"]
            assert hits == streamed(client, asked)[0][1]["hits"]
            assert [hit["score"] for hit in hits] == sorted((hit["scores"]["rerank"] for hit in hits), reverse=True)
            case = {"question": asked["question"], "answers": ["Alan Stevenson"]}
            assert client.post("/evaluate", json={"questions": [case]}).json()["in_hits"] == 1


@pytest.mark.slow
def test_many_clients_may_ask_a_library_in_milvus(tmp_path: Path) -> None:
    from milvus_lite.server_manager import server_manager_instance

    path = str(tmp_path / "vectors.db")
    for address in started(create_app(ServeConfig(folder=str(tmp_path / "library"), store=path))):
        with httpx.Client(base_url=address, timeout=60) as client:
            light, seals = upload(client, "light.txt", LIGHT).json(), upload(client, "seals.txt", SEALS).json()
            asked = {"question": "Who built the lighthouse?"}
            asks = [{**asked, "documents": [light["id"]] * (number % 2)} for number in range(8)]
            with ThreadPoolExecutor(4) as pool:
                answers = [pool.submit(client.post, "/ask", json=one) for one in asks]
            assert all("Alan Stevenson" in answer.result().json()["text"] for answer in answers)
            assert client.delete(f"/documents/{light['id']}").status_code == 204
            last = client.post("/ask", json=asked).json()
            assert last["refused"] and {hit["document_id"] for hit in last["hits"]} == {seals["id"]}
    server_manager_instance.release_server(path)


# --- Keys, rates, queues ----------------------------------------------------------------------------------------------


def test_with_a_key_only_health_metrics_and_docs_are_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QA_API_KEY", "s3cret")
    for address in started(create_app(ServeConfig(folder=str(tmp_path)))):
        with httpx.Client(base_url=address) as client:
            assert client.get("/healthz").status_code == client.get("/metrics").status_code == 200
            assert client.get("/docs").status_code == 200
            schema = client.get("/openapi.json").json()
            assert schema["components"]["securitySchemes"]["APIKeyHeader"]["name"] == "X-API-Key"
            secured = {
                path for path, ways in schema["paths"].items() if any("security" in way for way in ways.values())
            }
            assert secured == set(schema["paths"]) - {"/healthz", "/metrics"}
            assert "Unauthorized" in error_of(client.get("/documents"), 401)
            assert "Unauthorized" in error_of(client.get("/documents", headers={"X-API-Key": "s3cre"}), 401)
            assert client.get("/documents", headers={"X-API-Key": "s3cret"}).json() == []


def test_the_help_says_how_to_set_a_key(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run_commands({"serve": fastapi_api.serve}, module=fastapi_api.MODULE, argv=["serve", "--help"])
    assert "QA_API_KEY" in capsys.readouterr().out


def test_a_client_that_asks_too_often_waits(tmp_path: Path) -> None:
    for address in started(create_app(ServeConfig(folder=str(tmp_path), a_minute=3))):
        with httpx.Client(base_url=address) as client:
            answers = [client.get("/documents") for _ in range(4)]
            assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
            assert 1 <= int(answers[-1].headers["Retry-After"]) <= 21
            assert client.get("/healthz").status_code == 200


def test_tokens_come_back_evenly_and_clients_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(fastapi_api.time, "monotonic", lambda: now[0])
    guard = Guard(None, "", a_minute=60, most=1)
    assert [guard._wait("a") > 0 for _ in range(61)] == [False] * 60 + [True]
    now[0] += 1.0
    assert guard._wait("a") == 0
    monkeypatch.setattr(Guard, "CLIENTS", 2)
    for name in "bcd":
        guard._wait(name)
    assert list(guard.clients) == ["c", "d"]


def test_the_turnstile_refuses_who_would_wait_too_long() -> None:
    async def scene() -> list[str]:
        door, out = Turnstile(at_once=1, waiting=1, seconds=0.2), []

        async def visitor(stay: float) -> None:
            try:
                async with door.turn():
                    await asyncio.sleep(stay)
                    out.append("in")
            except fastapi_api.HTTPException as error:
                out.append(str(error.detail))

        await asyncio.gather(visitor(0.5), visitor(0), visitor(0))
        assert door.present == 0
        await visitor(0)
        return out

    assert sorted(asyncio.run(scene())) == ["The wait was too long.", "Too many requests wait already.", "in", "in"]


@pytest.mark.parametrize(
    "change", [{"port": 0}, {"megabytes": 0}, {"waiting": -1}, {"seconds": 0}, {"a_minute": 0}, {"characters": 0}]
)
def test_wrong_settings_are_named(change: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"{next(iter(change))} must be in"):
        ServeConfig(**change)
    with pytest.raises(InputError, match="store must be faiss"):
        ServeConfig(store="fiass")
