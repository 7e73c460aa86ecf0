"""The system as a service: upload documents, ask, stream, evaluate.

    python -m qa_system.app.fastapi_api serve --port 8000      # documentation with examples: /docs
    curl -F file=@report.pdf localhost:8000/documents
    curl --json '{"question": "Why did the ship run aground?"}' localhost:8000/ask

Every error is JSON, ``{"error": {"type", "message", "hint"}}``. A request is refused with 429 when its client asks too
often or too many wait already; ``/healthz`` and ``/metrics`` answer at all times. With ``QA_API_KEY`` in the
environment, every other path but this documentation's wants it in the header ``X-API-Key``. Replicas may share the
folder: one writes at a time.
"""

from __future__ import annotations

import asyncio
import hmac
import io
import json
import logging
import os
import shutil
import tempfile
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Generator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import anyio.to_thread
from fastapi import FastAPI, File, Form, Query, Request, Response, Security, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.security import APIKeyHeader
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qa_system.document_processor.pdf_reader import DocumentError, Limits
from qa_system.document_processor.vector_store import FAISS, check_store
from qa_system.evaluation.answer_quality import Question, figures, measure
from qa_system.generation.answer_generator import (
    MOST_CHARACTERS,
    Answerer,
    event_dict,
    load_answerer,
    rag_pipeline,
    stream_pipeline,
)
from qa_system.generation.citation_handler import Citation, page_image, threshold_of_refusal
from qa_system.retrieval.dense_retrieval import CrossEncoderReranker, Info, Library, load_reranker
from shared.config import check_range, run_commands
from shared.errors import InputError

if TYPE_CHECKING:
    from prometheus_client import Counter, Histogram

MODULE = "qa_system.app.fastapi_api"
logger = logging.getLogger(MODULE)


@dataclass
class ServeConfig:
    """Serve the system over HTTP; QA_API_KEY in the environment is the key that its clients must send, if any."""

    folder: str = "outputs/qa_system/library"
    """Where documents, passages and vectors are kept."""
    store: str = FAISS
    """Of a new folder's vectors: faiss, in the folder; or Milvus: a file such as vectors.db, or a cluster's address."""
    answerer: str = "builtin:extractive"
    """Who writes: builtin:extractive, a model's folder or hub id, or provider:model."""
    model: str = "builtin:minilm"
    """Embeds passages and questions: builtin:minilm, or any sentence-transformers folder or hub id."""
    rerank: str = ""
    """A cross-encoder that orders the passages anew, such as cross-encoder/ms-marco-MiniLM-L6-v2; none by default."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 is all of this machine's."""
    port: int = 8000
    """Port to listen on, in [1, 65535]."""
    megabytes: int = 50
    """Largest upload, in MiB, >= 1."""
    pages: int = 1000
    """Most pages of a document, >= 1."""
    characters: int = 3_000_000
    """Most characters of a document's text, >= 1; to embed them takes some minutes, in which other uploads wait."""
    at_once: int = 2
    """Questions answered at once, >= 1; more share the same processor."""
    waiting: int = 64
    """Requests that may wait for their turn; more are refused with 429."""
    a_minute: int = 600
    """Requests of one client a minute, >= 1; more are refused with 429."""
    seconds: float = 60
    """Most time to read one document, and to wait for a turn, > 0."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_store(self.store)
        check_range("port", self.port, 1, 65535)
        for name in ("megabytes", "pages", "characters", "at_once", "a_minute"):
            check_range(name, getattr(self, name), 1)
        check_range("waiting", self.waiting, 0)
        check_range("seconds", self.seconds, 0, open_low=True)


# --- What comes in ----------------------------------------------------------------------------------------------------


class Turn(BaseModel):
    """A question of the conversation before, and what was answered."""

    question: str = Field(max_length=MOST_CHARACTERS)
    answer: str = Field(max_length=20_000)


class Ask(BaseModel):
    """A question."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"question": "How much is a return ticket for a child on route B?", "k": 8}]},
    )

    question: str = Field(min_length=1, max_length=MOST_CHARACTERS, description="In English or Chinese.")
    k: int = Field(8, ge=1, le=50, description="How many passages to retrieve.")
    mode: Literal["hybrid", "dense", "sparse"] = "hybrid"
    documents: list[str] = Field([], max_length=1000, description="Ids to search in; none is all.")
    history: list[Turn] = Field([], max_length=20)
    threshold: float | None = Field(None, ge=0, le=1, description="Refuse where confidence is below; null: calibrated.")


class Case(BaseModel):
    """A question with its right answers; none where the documents don't hold it."""

    question: str = Field(min_length=1, max_length=MOST_CHARACTERS)
    answers: list[Annotated[str, Field(max_length=MOST_CHARACTERS)]] = Field([], max_length=20)


class Evaluate(BaseModel):
    """Questions to measure with."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"questions": [{"question": "When was the report written?", "answers": ["2024"]}]}]
        }
    )

    questions: list[Case] = Field(min_length=1, max_length=200)
    k: int = Field(8, ge=1, le=50)
    mode: Literal["hybrid", "dense", "sparse"] = "hybrid"


# --- Limits -----------------------------------------------------------------------------------------------------------


def failure(
    status: int, kind: str, message: str, hint: str = "", headers: dict[str, str] | None = None
) -> JSONResponse:
    """Build the answer to a request that failed."""
    return JSONResponse({"error": {"type": kind, "message": message, "hint": hint}}, status, headers)


STATUS = {"LimitError": 413, "UnsupportedError": 415, "AnswererError": 502}  # 422 for other input that is wrong
UNFORESEEN = "Something went wrong here; the log of the service tells what."
HINTS = {"PasswordError": "the parameter password"}  # where the error's own is of the command line


def input_failure(error: InputError) -> JSONResponse:
    """Build the answer to wrong input."""
    kind = type(error).__name__
    return failure(STATUS.get(kind, 422), kind, str(error.args[0]), HINTS.get(kind, error.hint))


def missing(document_id: str) -> HTTPException:
    """Build the error for a document that is not there."""
    return HTTPException(404, f"There is no document {document_id[:80]!r}.")


class Guard:
    """Stands before the application: key, rate, and size of what comes in, counted as it comes.

    Args:
        app: The application.
        key: Wanted in ``X-API-Key``; empty is none.
        a_minute: Requests of one client a minute; they come back evenly.
        most: Bytes of a body that is an upload; others may have a hundredth, and 1 MiB at least.
    """

    OPEN = ("/healthz", "/metrics")
    KEYLESS = ("/docs", "/openapi.json")
    CLIENTS = 10_000  # remembered

    def __init__(self, app: ASGIApp, key: str, a_minute: int, most: int) -> None:
        self.app, self.key, self.a_minute, self.most = app, key, a_minute, most
        self.clients: OrderedDict[str, tuple[float, float]] = OrderedDict()  # client → (tokens, when)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http" or scope["path"] in self.OPEN:
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        given = headers.get(b"x-api-key", b"")
        if self.key and scope["path"] not in self.KEYLESS and not hmac.compare_digest(given, self.key.encode()):
            await failure(401, "Unauthorized", "The header X-API-Key must hold the service's key.")(
                scope, receive, send
            )
            return
        wait = self._wait((scope.get("client") or ("",))[0])
        if wait:
            again = {"Retry-After": str(int(wait) + 1)}
            text = f"More than {self.a_minute} requests a minute."
            await failure(429, "TooManyRequests", text, "try again later", again)(scope, receive, send)
            return
        most = self.most if scope["path"] == "/documents" else max(self.most // 100, 2**20)
        too_large = failure(413, "TooLarge", f"The request is larger than {most / 2**20:.1f} MiB.")
        length = headers.get(b"content-length", b"")
        if length.isdigit() and int(length) > most:
            await too_large(scope, receive, send)
            return
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            return {"type": "http.disconnect"} if seen > most else message

        async def unless_too_large(message: Message) -> None:
            if seen <= most:
                await send(message)

        await self.app(scope, counted, unless_too_large)
        if seen > most:
            await too_large(scope, receive, send)

    def _wait(self, client: str) -> float:
        """Take a token of a client's bucket; return the seconds until there is one, 0 if there was."""
        now = time.monotonic()
        tokens, before = self.clients.pop(client, (float(self.a_minute), now))
        tokens = min(tokens + (now - before) * self.a_minute / 60, self.a_minute)
        self.clients[client] = (tokens - 1 if tokens >= 1 else tokens, now)
        if len(self.clients) > self.CLIENTS:
            self.clients.popitem(last=False)
        return 0 if tokens >= 1 else (1 - tokens) * 60 / self.a_minute


class Measured:
    """Counts requests, and the seconds until all of their answers was sent, also of streams and of what failed.

    Args:
        app: The application.
        requests: By path and status.
        latency: By path.
    """

    def __init__(self, app: ASGIApp, requests: Counter, latency: Histogram) -> None:
        self.app, self.requests, self.latency = app, requests, latency

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        status = 500  # what an error is answered with, further out than here

        async def noted(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self.app(scope, receive, noted)
        finally:
            path = getattr(scope.get("route"), "path", "other")  # never what a client made up: each label is kept
            self.requests.labels(path, status).inc()
            self.latency.labels(path).observe(time.perf_counter() - started)


class Turnstile:
    """Lets so many in at once and so many wait; the next is refused.

    Args:
        at_once: Inside.
        waiting: Before the door.
        seconds: Longest wait.
    """

    def __init__(self, at_once: int, waiting: int, seconds: float) -> None:
        self.semaphore = asyncio.Semaphore(at_once)
        self.room, self.seconds = at_once + waiting, seconds
        self.present = 0

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for a turn.

        Raises:
            HTTPException: 429, too many wait or it takes too long.
        """
        if self.present >= self.room:
            raise HTTPException(429, "Too many requests wait already.", {"Retry-After": "2"})
        self.present += 1
        try:
            try:
                await asyncio.wait_for(self.semaphore.acquire(), self.seconds)
            except asyncio.TimeoutError:
                raise HTTPException(429, "The wait was too long.", {"Retry-After": "10"}) from None
            try:
                yield
            finally:
                self.semaphore.release()
        finally:
            self.present -= 1


class HoldingStream(StreamingResponse):
    """A stream that gives back what it holds when it ends, also if its client left or it never began.

    Args:
        content: What is streamed.
        held: What was entered for it.
        more: Of Starlette's.
    """

    def __init__(self, content: AsyncIterator[str], held: AsyncExitStack, **more: Any) -> None:
        super().__init__(content, **more)
        self.held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one connection."""
        async with self.held:
            await super().__call__(scope, receive, send)


# --- The application --------------------------------------------------------------------------------------------------


def create_app(config: ServeConfig | None = None) -> FastAPI:
    """Make the application; for ``uvicorn --factory qa_system.app.fastapi_api:create_app`` too."""
    from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

    from qa_system.retrieval.dense_retrieval import SentenceEmbeddings

    config = config or ServeConfig()
    limits = Limits(seconds=config.seconds, pages=config.pages, characters=config.characters,
                    file_megabytes=config.megabytes)  # fmt: skip
    library = Library(config.folder, SentenceEmbeddings(config.model), store=config.store)
    writer, reranker = load_answerer(config.answerer), load_reranker(config.rerank)
    questions = Turnstile(config.at_once, config.waiting, config.seconds)
    # One parser and one embedding of passages at a time; what is done in a second need not wait for their minutes
    uploads, deletions, pictures = (Turnstile(1, config.waiting, config.seconds) for _ in range(3))
    registry = CollectorRegistry()
    requests = Counter("qa_requests", "Requests answered", ["path", "status"], registry=registry)
    latency = Histogram("qa_seconds", "Seconds until all of an answer was sent", ["path"], registry=registry)
    Gauge("qa_documents", "Documents in the library", registry=registry).set_function(lambda: len(library))
    refused = Counter("qa_refusals", "Questions answered with a refusal", registry=registry)
    app = FastAPI(
        title="Question answering over documents", version="1", description=(__doc__ or "").replace("    ", ""),
    )  # fmt: skip
    key = os.environ.get("QA_API_KEY", "")
    app.add_middleware(Guard, key=key, a_minute=config.a_minute, most=config.megabytes * 2**20 + 2**16)
    app.add_middleware(Measured, requests=requests, latency=latency)

    @app.exception_handler(InputError)
    async def wrong_input(request: Request, error: InputError) -> JSONResponse:
        return input_failure(error)

    @app.exception_handler(RequestValidationError)
    async def wrong_request(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            text = f"The body is no JSON: {first['ctx']['error']} at character {first['loc'][-1]}."
            return failure(422, "InvalidRequest", text, "see /docs")
        place = ".".join(str(part) for part in first["loc"] if part != "body") or "the body"
        return failure(422, "InvalidRequest", f"{place}: {first['msg']}.", "see /docs")

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        kinds = {404: "NotFound", 405: "MethodNotAllowed", 429: "TooManyRequests"}
        return failure(error.status_code, kinds.get(error.status_code, "HTTPError"), str(error.detail), "",
                       dict(error.headers or {}))  # fmt: skip

    @app.exception_handler(Exception)
    async def unforeseen(request: Request, error: Exception) -> JSONResponse:
        logger.exception("%s %s failed", request.method, request.url.path)
        return failure(500, "InternalError", UNFORESEEN)

    def found(document_id: str) -> Info:
        info = next((info for info in library.infos() if info.id == document_id), None)
        if info is None:
            raise missing(document_id)
        return info

    def check(asked: Ask) -> None:
        if not asked.question.strip():
            raise InputError("The question is empty.")
        known = {info.id for info in library.infos()}
        for document_id in asked.documents:
            if document_id not in known:
                raise missing(document_id)

    @app.get("/healthz", tags=["service"])
    async def healthz() -> dict[str, str]:
        """Tell that the service is up."""
        return {"status": "ok", "answerer": writer.name, "model": config.model, "rerank": config.rerank}

    @app.get("/metrics", tags=["service"])
    def metrics() -> Response:
        """Return counters and latencies for Prometheus."""
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    if key:  # the guard checks it; this tells of it in the documentation of the paths below
        app.router.dependencies.append(Security(APIKeyHeader(name="X-API-Key", auto_error=False)))

    @app.post(
        "/documents", status_code=201, tags=["documents"],
        description=f"Add a pdf, docx, html, md or txt file of up to {config.megabytes:,} MiB, {config.pages:,} pages "
        f"and {config.characters:,} characters; 200 where the same bytes are there already, 201 where they are new.",
    )  # fmt: skip
    async def upload(
        response: Response, file: Annotated[UploadFile, File()], password: Annotated[str, Form(max_length=200)] = "",
    ) -> Info:  # fmt: skip
        async with uploads.turn():
            info = await anyio.to_thread.run_sync(partial(_add, library, file, password, limits))
        response.status_code = 201 if info.new else 200
        return info

    @app.get("/documents", tags=["documents"])
    def documents() -> list[Info]:
        """List all documents."""
        return library.infos()

    @app.get("/documents/{document_id}", tags=["documents"])
    def one_document(document_id: str) -> Info:
        """Tell of one document."""
        return found(document_id)

    @app.delete("/documents/{document_id}", status_code=204, tags=["documents"])
    async def delete(document_id: str) -> None:
        """Delete a document, its passages and its file."""
        async with deletions.turn():
            if not await anyio.to_thread.run_sync(library.delete, document_id):
                raise missing(document_id)

    @app.get("/documents/{document_id}/image", tags=["documents"], response_class=Response)
    async def image(
        document_id: str, start: Annotated[int, Query(ge=0)], end: Annotated[int, Query(ge=1)], password: str = ""
    ) -> Response:
        """Draw the page of a citation as PNG, with the quote (``start`` to ``end``) boxed."""

        def drawn() -> bytes:
            return _page_png(library, found(document_id), start, end, password, limits)

        async with pictures.turn():
            return Response(await anyio.to_thread.run_sync(drawn), media_type="image/png")

    @app.post("/ask", tags=["questions"])
    async def ask(asked: Ask) -> dict[str, Any]:
        """Answer a question; every citation was verified."""
        await anyio.to_thread.run_sync(check, asked)
        async with questions.turn():
            *_, last = await anyio.to_thread.run_sync(lambda: list(_events(asked, library, writer, reranker)))
        refused.inc(last["refused"])
        return {name: value for name, value in last.items() if name != "event"}

    @app.post("/ask/stream", tags=["questions"], response_class=StreamingResponse)
    async def ask_stream(asked: Ask) -> StreamingResponse:
        """Answer as server-sent events: ``hits``, ``token`` as often as there is more, ``answer``; or an ``error``."""
        await anyio.to_thread.run_sync(check, asked)
        iterator, held = _events(asked, library, writer, reranker), AsyncExitStack()
        await held.enter_async_context(questions.turn())
        held.push_async_callback(anyio.to_thread.run_sync, iterator.close)  # a model may still be writing

        def told(name: str, values: dict[str, Any]) -> str:
            return f"event: {name}\ndata: {json.dumps(values, ensure_ascii=False)}\n\n"

        async def events() -> AsyncIterator[str]:
            try:
                while (event := await anyio.to_thread.run_sync(next, iterator, None)) is not None:
                    refused.inc(event.get("refused", False))
                    yield told(event["event"], event)
            except InputError as error:
                yield told("error", {"message": error.args[0], "hint": error.hint})
            except Exception:
                logger.exception("/ask/stream failed")
                yield told("error", {"message": UNFORESEEN})

        return HoldingStream(events(), held, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})

    @app.post("/evaluate", tags=["questions"])
    async def evaluate(cases: Evaluate) -> dict[str, Any]:
        """Ask every question, refusing none for want of confidence, and compare with the right answers."""
        rows = []
        for number, case in enumerate(cases.questions):  # a turn for each, so that others get theirs between
            question = Question(str(number), case.question, tuple(case.answers), answerable=bool(case.answers))
            measured_one = partial(_measured, question, cases, library, writer, reranker)
            async with questions.turn():
                rows.append(await anyio.to_thread.run_sync(measured_one))
        return await anyio.to_thread.run_sync(figures, rows, threshold_of_refusal())

    return app


def _add(library: Library, file: UploadFile, password: str, limits: Limits) -> Info:
    """Write an upload to a file of our own naming, and add it; its own name is only shown."""
    name = file.filename or "document"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "document"
        with path.open("wb") as target:
            shutil.copyfileobj(file.file, target)
        return library.add(path, name=name, password=password, limits=limits)


def _page_png(library: Library, info: Info, start: int, end: int, password: str, limits: Limits) -> bytes:
    path, document = library.file(info.id), library.document(info.id)
    if path is None or path.suffix != ".pdf":
        raise HTTPException(404, "This document has no pages to draw.")
    if not start < end <= len(document.text):
        raise HTTPException(422, f"start and end must be in [0, {len(document.text)}], start before end.")
    citation, png = Citation.of(1, document, start, end), io.BytesIO()
    try:
        page_image(path, document, citation, password=password, limits=limits).save(png, "PNG")
    except DocumentError as error:  # it knows the file by its hash
        raise type(error)(str(error.args[0]).replace(path.name, info.name), error.hint) from None
    return png.getvalue()


def _events(
    asked: Ask, library: Library, writer: Answerer, reranker: CrossEncoderReranker | None
) -> Generator[dict[str, Any], None, None]:
    """Yield a pipeline's events as plain values."""
    history = [(turn.question, turn.answer) for turn in asked.history]
    chosen = {"document_id": asked.documents} if asked.documents else None
    for event in stream_pipeline(
        asked.question, library, answerer=writer, history=history, k=asked.k, mode=asked.mode, filter=chosen,
        threshold=asked.threshold, rerank=reranker,
    ):  # fmt: skip
        yield event_dict(event)


def _measured(
    question: Question, cases: Evaluate, library: Library, writer: Answerer, reranker: CrossEncoderReranker | None
) -> dict[str, Any]:
    answer, _ = rag_pipeline(question.question, library, answerer=writer, k=cases.k, mode=cases.mode, threshold=0,
                             rerank=reranker)  # fmt: skip
    return measure(question, answer, library)


def serve(config: ServeConfig) -> None:
    """Start the service; see :class:`ServeConfig`."""
    import uvicorn

    uvicorn.run(create_app(config), host=config.host, port=config.port, timeout_graceful_shutdown=10,
                timeout_keep_alive=30, log_level="warning")  # fmt: skip


if __name__ == "__main__":
    run_commands({"serve": serve}, module=MODULE, extra="qa")
