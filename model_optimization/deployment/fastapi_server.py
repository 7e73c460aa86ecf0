"""A bundle as a service: dynamic batching, bounded queues and times, hot reload, metrics.

    python -m model_optimization.deployment.fastapi_server serve --bundle outputs/model_optimization/bundles/float32
    curl --json '{"texts": ["The room was clean.", "The bed was cold."]}' localhost:8000/predict

Texts that are computed together share what a batch costs by itself: with MiniLM in INT8 on one core a token takes
160 µs in a single text of 8 tokens, 100 in a batch of 32 such texts. So those of all clients wait in one queue.
``Batcher`` takes them from it in batches of like length, of at most ``max_batch_tokens``, as soon as a lane is free. A
text waits for company no longer than ``max_wait_ms``, and a client that is alone does not wait at all. What can't be
served in time is refused at the door (429) while it is cheap, so that under twice the load that a machine bears its
whole work still goes into answers that somebody waits for. (Clipper, Crankshaw et al., 2017, arXiv:1612.03079.)

Every error is JSON, ``{"error": {"type", "message", "hint"}}``. ``/healthz`` (alive), ``/readyz`` (send traffic) and
``/metrics`` (Prometheus) answer at all times; with OPTIMIZATION_API_KEY in the environment all else wants it in the
header ``X-API-Key``. SIGHUP reads the bundle anew, SIGTERM answers what was accepted and stops. Logs are JSON, a line
each, and hold no texts. PyTorch and transformers are not needed, nor imported.
"""

from __future__ import annotations

import asyncio
import gc
import hmac
import json
import logging
import math
import multiprocessing
import multiprocessing.connection
import os
import queue
import random
import re
import signal
import socket
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from fastapi import FastAPI, Request, Response, Security
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import APIKeyHeader
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from model_optimization.deployment.onnx_conversion import (
    PARITY,
    OnnxClassifier,
    Prediction,
    Vectors,
    prediction,
    read_card,
    softmax,
)
from shared.config import check_range, run_commands
from shared.errors import InputError
from shared.results import write_atomic

MODULE = "model_optimization.deployment.fastapi_server"
HINT = 'send JSON such as {"texts": ["…"]}, in UTF-8, with the header Content-Type: application/json'
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)  # bounds of histograms
COUNTS = (1, 2, 4, 8, 16, 32, 64, 128)
Arrays = tuple[NDArray[Any], NDArray[Any]]
logger = logging.getLogger(MODULE)


@dataclass
class ServeConfig:
    """Serve a bundle over HTTP; OPTIMIZATION_API_KEY in the environment is the key that clients must send, if any."""

    bundle: str = "outputs/model_optimization/bundles/float32"
    """The bundle's folder."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 is all of this machine's."""
    port: int = 8000
    """Port to listen on, in [1, 65535]."""
    workers: int = 1
    """Processes that share the port, each with a model and a queue of its own, in [1, 64]. More lanes of one worker are
    better for a few cores: ONNX Runtime computes outside of Python's lock, and one queue leaves no lane idle."""
    parallel: int = 2
    """Batches that a worker computes at once, in [1, 64]."""
    threads: int = 1
    """CPU threads of one batch, in [1, 64]. A worker uses parallel × threads; ONNX Runtime by itself would count the
    cores of the host, of which a container has only a part."""
    max_batch_tokens: int = 512
    """Largest batch, in tokens: texts × the longest of them, padding with it, >= 1. A longer text is computed alone."""
    allow_batch_effects: bool = False
    """Batch even a model whose answers then depend on the other texts, as those of dynamic INT8 do."""
    max_wait_ms: float = 0
    """Longest wait of a text for others to be computed with, in [0, 1000]. On a CPU nothing is gained by it: while
    lanes are busy texts gather anyway, and those that come to a free one lose the wait. On a GPU a few are worth it."""
    queue_texts: int = 512
    """Most texts that wait; more are refused with 429. At least max_texts."""
    queue_seconds: float = 1
    """Longest queue, in seconds of work as measured so far, in (0, timeout]: who would wait longer is refused with 429.
    Under any load, an answer takes this and a few batches at most."""
    timeout: float = 10
    """Seconds after which a request is given up with 504, > 0."""
    max_texts: int = 64
    """Most texts of a request, in [1, 10000]; more are refused with 413."""
    max_characters: int = 10_000
    """Longest text, >= 1; longer ones are refused with 413, though the model reads only their beginning."""
    max_bytes: int = 1_048_576
    """Largest body of a request, >= 1024; larger ones are refused with 413 as they come."""
    drain_seconds: float = 1
    """Seconds after SIGTERM in which new requests are still answered while /readyz says no, in [0, 600]: load balancers
    need time to notice."""
    models: str = ""
    """The folder under which /reload may read bundles; by default the one that holds ``bundle``."""
    drift: str = ""
    """Watch live traffic with the monitor in this folder, as monitoring.drift_detection saved it; shown at /drift."""
    drift_share: float = 0.2
    """Most of one core's time that the monitor's tests may take, in (0, 1]; beyond, texts pass unseen. Each worker has
    a monitor, and this share, of its own."""
    webhook: str = ""
    """Where the monitor of each worker posts its alerts as JSON; http or https."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_range("port", self.port, 1, 65535)
        for name in ("workers", "parallel", "threads"):
            check_range(name, getattr(self, name), 1, 64)
        check_range("timeout", self.timeout, 0, 3600, open_low=True)
        check_range("queue_seconds", self.queue_seconds, 0, self.timeout, open_low=True)
        for name in ("max_batch_tokens", "max_characters"):
            check_range(name, getattr(self, name), 1)
        check_range("max_wait_ms", self.max_wait_ms, 0, 1000)
        check_range("max_texts", self.max_texts, 1, 10_000)
        check_range("queue_texts", self.queue_texts, self.max_texts)
        check_range("max_bytes", self.max_bytes, 1024)
        check_range("drain_seconds", self.drain_seconds, 0, 600)
        check_range("drift_share", self.drift_share, 0, 1, open_low=True)
        if self.webhook and not self.drift:
            raise InputError("webhook needs a monitor, whose alerts it is for.", hint="--drift FOLDER")

    @property
    def grace(self) -> float:
        """Most seconds from SIGTERM to the end; whoever sends SIGKILL must wait longer."""
        return self.drain_seconds + self.timeout + 5


class Observer(Protocol):
    """Sees what the model makes of live texts, such as a drift monitor; may have ``register(registry)`` for metrics.

    Attributes:
        model: The version of the only model it wants to see; empty is any.
    """

    model: str

    def observe(self, probabilities: NDArray[Any], embeddings: NDArray[Any]) -> int:
        """Take in a batch: (N, labels) and (N, C). Called from one thread, which no client waits for.

        Returns:
            How many of the N texts it took; it may pass over some, to save time.
        """


# --- What comes in and goes out ---------------------------------------------------------------------------------------


class Predict(BaseModel):
    """Texts to label."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"texts": ["The room was clean.", "The bed was cold."]}]}
    )

    texts: list[str] = Field(min_length=1)


class Labels(BaseModel):
    """The answer: a label for each text, in the order of the texts."""

    predictions: list[Prediction]
    model_version: str = Field(description="The first digits of the model's hash.")
    request_id: str


class Reload(BaseModel):
    """Which bundle to serve from now on."""

    model_config = ConfigDict(extra="forbid")

    bundle: str = Field(
        default="", max_length=1000, description="A folder under that of the models; empty: the same again."
    )
    allow_new_labels: bool = Field(default=False, description="Whether it may have other labels than the one before.")


class Reloaded(BaseModel):
    """What became of a reload."""

    model_version: str
    previous_version: str
    techniques: list[str]


class Refusal(Exception):
    """A request that is not answered as it wished.

    Args:
        status: Of HTTP.
        reason: For metrics and logs, a word or two.
        message: What is wrong.
        hint: What to do about it.
        retry_after: Seconds after which it may be tried again.
    """

    KINDS = {400: "InvalidRequest", 401: "Unauthorized", 403: "Forbidden", 404: "NotFound", 405: "MethodNotAllowed",
             408: "TimedOut", 409: "Conflict", 413: "TooLarge", 422: "InvalidRequest", 429: "Overloaded",
             499: "Disconnected", 500: "InternalError", 503: "Unavailable", 504: "TimedOut"}  # fmt: skip

    def __init__(self, status: int, reason: str, message: str, hint: str = "", retry_after: float = 0) -> None:
        super().__init__(message)
        self.status, self.reason, self.message, self.hint, self.retry_after = status, reason, message, hint, retry_after

    def response(self) -> JSONResponse:
        """Return the error as JSON, which can always be written: what a client sent may not even be UTF-8."""
        clean = {"type": self.KINDS.get(self.status, "HTTPError"), "message": self.message, "hint": self.hint}
        clean = {name: text.encode("utf-8", "backslashreplace").decode() for name, text in clean.items()}
        headers = {"Retry-After": str(max(1, math.ceil(self.retry_after)))} if self.retry_after else None
        return JSONResponse({"error": clean}, self.status, headers)


# --- Batching ---------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Ticket:
    """A request on its way through the queue; all times are those of ``time.monotonic()``.

    Attributes:
        model: Labels it, though another may have taken its place meanwhile.
        texts: How many it has.
        deadline: When it is given up.
        ids: Of each text, once they are tokenized.
        found: For each text what the model makes of it, filled in by the batches that they were in.
        waiting: Texts that no batch has taken yet.
        left: Texts that have no probabilities yet.
        arrived: When it was queued.
        started: When the first of its texts was computed; ``finished``: the last.
        batch: Texts of the largest batch it was in.
        done: Set when all texts are computed, or one failed.
    """

    model: ServedModel
    texts: int
    deadline: float
    done: asyncio.Future[None]
    ids: list[list[int]] = field(default_factory=list)
    arrived: float = 0
    started: float = math.inf
    finished: float = 0
    batch: int = 0

    def __post_init__(self) -> None:
        self.waiting = self.left = self.texts
        self.found: list[Any] = [None] * self.texts


class Text(NamedTuple):
    """One text of a ticket."""

    ticket: Ticket
    row: int

    @property
    def ids(self) -> list[int]:
        """Its token ids."""
        return self.ticket.ids[self.row]


def pack(lengths: Sequence[int], budget: int, overhead: float) -> list[list[int]]:
    """Divide texts into batches so that the time to compute them all is least.

    A batch of B texts, the longest of T tokens, costs ``overhead + B·T``. With the texts ordered by length, batches are
    runs of them, and dynamic programming finds the cheapest: for the first n texts it is the cheapest for the first m,
    and one batch of the n − m others (TurboTransformers, Fang et al., 2021, arXiv:2010.05680).

    Args:
        lengths: Tokens of each text.
        budget: Most padded tokens B·T of a batch; a longer text is a batch of its own.
        overhead: What a batch costs whatever is in it, in tokens.

    Returns:
        The indices of each batch's texts; the batch with the first of all texts comes first.
    """
    order = np.argsort(lengths, kind="stable")
    cost = np.zeros(len(order) + 1)  # cost[n]: of the n shortest texts
    cuts = [0]  # cuts[n]: where the last batch of the n shortest begins
    for end, longest in enumerate((lengths[i] for i in order), 1):
        first = max(0, end - max(1, budget // longest))
        costs = cost[first:end] + overhead + longest * np.arange(end - first, 0, -1)
        best = int(costs.argmin())
        cost[end] = costs[best]
        cuts.append(first + best)
    batches = []
    end = len(order)
    while end:
        batches.append(sorted(order[cuts[end] : end].tolist()))
        end = cuts[end]
    return sorted(batches)


class Batcher:
    """Collects the texts of all requests, and computes them in batches in a few threads; lives in one event loop.

    Args:
        config: ``parallel``, ``max_batch_tokens``, ``max_wait_ms``, ``queue_texts`` and ``queue_seconds``.
        on_batch: Is told of each batch: model, tokens of its texts, seconds, probabilities and embeddings.

    Attributes:
        waiting_texts: Accepted, and in no batch yet.
        waiting_tokens: The same in tokens, as far as they are tokenized.
        seconds_per_token: As measured of late.
    """

    OVERHEAD = 16  # tokens' worth of time that one more batch costs, with MiniLM on a CPU
    LOOKAHEAD = 4  # largest batches' worth of tokens that are ordered by length together
    MEMORY = 0.95  # of the measured rate, from one batch to the next

    def __init__(self, config: ServeConfig, on_batch: Callable[[ServedModel, list[int], float, Arrays], None]) -> None:
        self.config, self.on_batch = config, on_batch
        self.waiting_texts = self.waiting_tokens = 0
        self._queue: list[Text] = []  # oldest first
        self._packed: deque[list[Text]] = deque()  # batches that wait for a lane
        self._arrived = asyncio.Event()
        self._free = asyncio.Semaphore(config.parallel)  # lanes
        self._lanes = ThreadPoolExecutor(config.parallel, "lane", initializer=step_back)
        self._expected = 1  # texts that may be there soon: as many as last time
        self._work, self._tokens, self._last_finish = 0.0, 0.0, 0.0
        self._tasks: set[asyncio.Task[None]] = set()

    # The way in and out

    def check(self, texts: int = 1) -> None:
        """Find out whether there is room for some texts.

        Raises:
            Refusal: 429, so many wait already, or those who wait take so long.
        """
        wait = self.waiting_tokens * self.seconds_per_token
        if self.waiting_texts + texts > self.config.queue_texts or wait > self.config.queue_seconds:
            text = f"{self.waiting_texts} texts wait already, which will take {wait:.1f} seconds."
            raise Refusal(429, "queue_full", text, "try again later", max(1, wait))

    def enter(self, ticket: Ticket) -> None:
        """Let a request in, before it is tokenized.

        Raises:
            Refusal: See :meth:`check`.
        """
        self.check(ticket.texts)
        self.waiting_texts += ticket.texts

    def put(self, ticket: Ticket, ids: list[list[int]]) -> None:
        """Queue the texts of a request that was let in.

        Raises:
            Refusal: Many were let in at once, and their texts are long.
        """
        self.check(0)
        ticket.ids, ticket.arrived = ids, time.monotonic()
        self.waiting_tokens += sum(map(len, ids))
        self._queue.extend(Text(ticket, row) for row in range(len(ids)))
        self._arrived.set()

    def drop(self, ticket: Ticket) -> None:
        """Forget what of a request is not computed yet; what is being computed will be thrown away."""
        ticket.done.cancel()
        for texts in (self._queue, *self._packed) if ticket.waiting else ():
            self._leave([text for text in texts if text.ticket is ticket])
            texts[:] = [text for text in texts if text.ticket is not ticket]
        self.waiting_texts -= ticket.waiting  # those that were never put
        ticket.waiting = 0

    @property
    def seconds_per_token(self) -> float:
        """How long a token takes while there is work, all lanes together."""
        return self._work / self._tokens if self._tokens else 0.0

    def measured(self, tokens: int, seconds: float) -> None:
        """Remember how long some tokens took; the older a measurement, the less it counts."""
        self._work = self.MEMORY * self._work + seconds
        self._tokens = self.MEMORY * self._tokens + tokens

    def _leave(self, texts: Sequence[Text]) -> None:
        self.waiting_texts -= len(texts)
        self.waiting_tokens -= sum(len(text.ids) for text in texts)
        for text in texts:
            text.ticket.waiting -= 1

    # The loop

    async def run(self) -> None:
        """Give batches to lanes, for ever."""
        while True:
            await self._free.acquire()
            task = asyncio.create_task(self._compute(await self._next()))
            self._tasks.add(task)  # the loop itself holds only a weak reference
            task.add_done_callback(self._tasks.discard)

    async def _next(self) -> list[Text]:
        """Wait for a batch that somebody waits for."""
        while True:
            while self._packed:
                texts, now = self._packed.popleft(), time.monotonic()
                self._leave(texts)
                batch = [text for text in texts if text.ticket.deadline > now]
                if batch:
                    return batch
            await self._enough()
            window = self._window()
            batches = pack([len(text.ids) for text in window], self.config.max_batch_tokens, self.OVERHEAD)
            self._packed.extend([window[i] for i in batch] for batch in batches)

    async def _enough(self) -> None:
        """Wait for texts, and then a little for those that will come soon.

        As many are expected as last time. So a client that is alone goes on at once, and of many that got their answers
        from one batch, and all ask again a moment later, the first waits for the others: alone it would take a lane,
        and they the next batch.
        """
        loop = asyncio.get_running_loop()
        while True:
            self._arrived.clear()
            if self._queue:
                enough = len(self._queue) >= self._expected or self.waiting_tokens >= self.config.max_batch_tokens
                wait = self._queue[0].ticket.arrived + self.config.max_wait_ms / 1000 - time.monotonic()
                if enough or wait <= 0:
                    return
                alarm = loop.call_later(wait, self._arrived.set)
                await self._arrived.wait()
                alarm.cancel()
            else:
                await self._arrived.wait()

    def _window(self) -> list[Text]:
        """Take the oldest texts off the queue, all of one model."""
        self._expected = len(self._queue)
        model, room, taken = self._queue[0].ticket.model, self.LOOKAHEAD * self.config.max_batch_tokens, 0
        for text in self._queue:
            room -= len(text.ids)
            if text.ticket.model is not model or (taken and room < 0):
                break
            taken += 1
        window, self._queue = self._queue[:taken], self._queue[taken:]
        return window

    async def _compute(self, batch: list[Text]) -> None:
        started = time.monotonic()
        tickets = {text.ticket: None for text in batch}  # a set that keeps its order
        for ticket in tickets:
            ticket.started = min(ticket.started, started)
            ticket.batch = max(ticket.batch, len(batch))
        model, ids = batch[0].ticket.model, [text.ids for text in batch]
        try:
            found, outputs = await asyncio.get_running_loop().run_in_executor(self._lanes, infer, model, ids)
        except Exception as error:
            logger.exception("a batch of %d texts failed", len(batch))
            for ticket in tickets:
                if not ticket.done.done():
                    ticket.done.set_exception(error)
        else:
            now = time.monotonic()
            # Time without work doesn't count: from the last batch, or when the first of these texts came
            since = max(self._last_finish, min(ticket.arrived for ticket in tickets))
            self.measured(sum(map(len, ids)), now - since)
            self._last_finish = now
            for text, one in zip(batch, found, strict=True):
                ticket = text.ticket
                ticket.found[text.row] = one
                ticket.left -= 1
                if not ticket.left and not ticket.done.done():
                    ticket.finished = now
                    ticket.done.set_result(None)
            self.on_batch(model, [len(row) for row in ids], now - started, outputs)
        finally:
            self._free.release()

    def close(self) -> None:
        """End the threads."""
        self._lanes.shutdown(wait=False, cancel_futures=True)


def step_back() -> None:
    """Let the thread that answers clients go before this one, where both want the same core; on Linux alone."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), os.getpriority(os.PRIO_PROCESS, 0) + 5)


def infer(model: OnnxClassifier, ids: list[list[int]]) -> tuple[list[Prediction], Arrays]:
    """Compute a batch.

    Returns:
        What the model makes of each text; and of all, probabilities (B, labels) and embeddings (B, C).

    Raises:
        InputError: The model gives something that is no number.
    """
    logits, embeddings = model.run(ids)
    if not np.isfinite(logits).all():
        raise InputError(f"{model.name} gives logits that are no numbers.", hint="make the bundle anew")
    probabilities = softmax(logits)
    names, limit = model.label_names, model.encoder.max_length
    found = [prediction(row, len(one), names, limit) for row, one in zip(probabilities, ids, strict=True)]
    return found, (probabilities, embeddings)


class ServedModel(OnnxClassifier):
    """A bundle that is loaded, tried out and warm.

    Args:
        folder: The bundle.
        config: ``threads``, ``max_batch_tokens`` and ``allow_batch_effects``.

    Attributes:
        separable: Whether what it makes of a text is the same in any company. Dynamic INT8 takes the range of a whole
            batch for its scale, and up to two texts of a hundred get another label with other texts beside them. Such a
            model computes the texts of a batch one after the other, at some cost of throughput.
        seconds_per_token: As measured on a full batch.

    Raises:
        FileNotFoundError: A file of the bundle is missing.
        InputError: Something of it is damaged, or it gives no numbers.
    """

    separable = True  # until that is measured

    def __init__(self, folder: Path, config: ServeConfig) -> None:
        super().__init__(folder, config.threads)
        rng = np.random.default_rng(0)
        longest = min(self.encoder.max_length, config.max_batch_tokens)
        lengths = np.linspace(min(4, longest), min(48, longest), 6).astype(int)
        ids = [rng.integers(self.encoder.vocabulary, size=length).tolist() for length in lengths]
        self.separable = False
        alone = self.run(ids)[0]
        self.separable = True
        self.separable = config.allow_batch_effects or bool(np.abs(alone - self.run(ids)[0]).max() < PARITY)
        full = [[1] * longest] * (config.max_batch_tokens // longest)
        infer(self, full)  # the first is slow: it takes memory
        started = time.monotonic()
        infer(self, full)
        self.seconds_per_token = (time.monotonic() - started) / (longest * len(full))

    def run(self, ids: Sequence[Sequence[int]]) -> tuple[Vectors, Vectors]:
        """Compute one batch, or one text after the other where that is not the same."""
        compute = super().run
        if self.separable or len(ids) == 1:
            return compute(ids)
        outputs = [compute([one]) for one in ids]
        return np.concatenate([logits for logits, _ in outputs]), np.concatenate([vector for _, vector in outputs])


class Watcher:
    """Hands what was computed to an observer, in a thread of its own; drops it where the observer is too slow.

    Args:
        observer: Who wants to see it.
        count: Is told how many texts were ``seen``, ``passed_over``, ``dropped`` or ``failed``.
        room: Batches that may wait.
    """

    def __init__(self, observer: Observer, count: Callable[[str, int], None], room: int = 256) -> None:
        self.observer, self.count = observer, count
        self.batches: queue.Queue[Arrays | None] = queue.Queue(room)
        self.thread = threading.Thread(target=self._watch, name="watcher", daemon=True)
        self.thread.start()

    def offer(self, outputs: Arrays) -> None:
        """Queue a batch, or drop it; never waits."""
        try:
            self.batches.put_nowait(outputs)
        except queue.Full:
            self.count("dropped", len(outputs[0]))

    def close(self) -> None:
        """Let it finish what waits, for two seconds at most."""
        try:
            self.batches.put(None, timeout=1)
        except queue.Full:
            return
        self.thread.join(1)

    def _watch(self) -> None:
        said = False
        while (outputs := self.batches.get()) is not None:
            try:
                seen = self.observer.observe(*outputs)
                self.count("seen", seen)
                self.count("passed_over", len(outputs[0]) - seen)
            except Exception:  # whatever it is, the service goes on
                self.count("failed", len(outputs[0]))
                if not said:  # once: the next batch would fail the same way
                    logger.exception("the observer failed")
                said = True


# --- Metrics and logs -------------------------------------------------------------------------------------------------


class Metrics:
    """What Prometheus is told, in a registry of its own: a second application in a process is no clash.

    With PROMETHEUS_MULTIPROC_DIR in the environment, as ``serve`` sets it for several workers, values lie in files of
    that folder, and every worker tells of all.
    """

    def __init__(self) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)  # memory and processor time; one worker only
        self.requests = Counter("classifier_requests", "Requests answered", ["path", "status"], registry=registry)
        self.rejections = Counter("classifier_rejections", "Requests refused or given up", ["reason"],
                                  registry=registry)  # fmt: skip
        self.stages = Histogram("classifier_stage_seconds", "Seconds of /predict: tokenize, queue, infer, and in total",
                                ["stage"], buckets=SECONDS, registry=registry)  # fmt: skip
        self.batch_texts = Histogram("classifier_batch_texts", "Texts of a batch", buckets=COUNTS, registry=registry)
        self.batch_tokens = Histogram("classifier_batch_padded_tokens", "Tokens of a batch, padding with them",
                                      buckets=[16 * n for n in COUNTS], registry=registry)  # fmt: skip
        self.padding = Histogram("classifier_batch_padding_share", "Padding's share of a batch",
                                 buckets=[0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1], registry=registry)  # fmt: skip
        self.batch_seconds = Histogram("classifier_batch_seconds", "Seconds of a batch", buckets=SECONDS,
                                       registry=registry)  # fmt: skip
        self.predictions = Counter("classifier_predictions", "Texts labeled", ["label"], registry=registry)
        self.reloads = Counter("classifier_reloads", "Reloads of the model", ["outcome"], registry=registry)
        self.observed = Counter("classifier_observed_texts", "Texts that the observer has seen, or should have",
                                ["outcome"], registry=registry)  # fmt: skip
        self.queue = Gauge("classifier_queue_texts", "Texts that wait", registry=registry, multiprocess_mode="livesum")
        self.model = Gauge("classifier_model_info", "1 for the model that is served", ["version", "techniques"],
                           registry=registry, multiprocess_mode="livemax")  # fmt: skip

    def text(self) -> bytes:
        """Return all values as Prometheus reads them."""
        from prometheus_client import CollectorRegistry, generate_latest
        from prometheus_client.multiprocess import MultiProcessCollector

        registry = self.registry
        if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
            registry = CollectorRegistry()
            MultiProcessCollector(registry)
        return generate_latest(registry)

    def batch(self, lengths: list[int], seconds: float, alone: bool) -> None:
        """Count a batch, of texts that are computed together or each alone."""
        padded = sum(lengths) if alone else len(lengths) * max(lengths)
        self.batch_texts.observe(len(lengths))
        self.batch_tokens.observe(padded)
        self.padding.observe(1 - sum(lengths) / padded)
        self.batch_seconds.observe(seconds)


class JsonFormatter(logging.Formatter):
    """A log record as one line of JSON; ``extra={"fields": {…}}`` adds to it."""

    def format(self, record: logging.LogRecord) -> str:
        """Write a line."""
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def json_logs() -> None:
    """Write the log of this process to stderr as JSON."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logger.setLevel(logging.INFO)


UNFORESEEN = Refusal(500, "failed", "Something went wrong here; the log of the service tells what.")


class Guard:
    """Stands before the application: request ids, key, size of what comes in (counted as it comes), log, counts.

    Args:
        app: The application.
        service: What it serves.
        key: Wanted in ``X-API-Key``; empty is none.
    """

    PROBES = ("/healthz", "/readyz", "/metrics")
    KEYLESS = (*PROBES, "/docs", "/openapi.json")
    PATHS = (*KEYLESS, "/predict", "/reload", "/drift")  # each label of a metric is kept: never what a client made up

    def __init__(self, app: ASGIApp, service: Service, key: str) -> None:
        self.app, self.service, self.key = app, service, key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.monotonic()
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"").decode("latin-1")
        request_id = given if re.fullmatch(r"[A-Za-z0-9._-]{1,64}", given) else f"{random.getrandbits(128):032x}"
        log: dict[str, Any] = {"request_id": request_id, "method": scope["method"][:16], "path": scope["path"][:100]}
        scope["log"] = log

        async def stamped(message: Message) -> None:
            if message["type"] == "http.response.start":
                log["status"] = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id.encode())]
                if self.service.draining:  # the client should ask another replica
                    message["headers"].append((b"connection", b"close"))
            await send(message)

        async def replay() -> Message:
            return bodies.pop() if bodies else await receive()

        try:
            bodies = [{"type": "http.request", "body": await self._admit(headers, scope["path"], receive)}]
            await self.app(scope, replay, stamped)
        except Exception as error:
            refusal = error if isinstance(error, Refusal) else UNFORESEEN
            if refusal is UNFORESEEN:
                logger.exception("request failed", extra={"fields": {"request_id": request_id}})
            if "status" not in log:  # nothing is sent yet
                await self.service.refuse(scope, refusal)(scope, receive, stamped)
        finally:
            log["seconds"] = round(time.monotonic() - started, 6)
            path = scope["path"] if scope["path"] in self.PATHS else "other"
            self.service.metrics.requests.labels(path, log.get("status", 500)).inc()
            if path not in self.PROBES:
                logger.info("request", extra={"fields": log})

    async def _admit(self, headers: dict[bytes, bytes], path: str, receive: Receive) -> bytes:
        """Check key, room and size, and return the body.

        Raises:
            Refusal: 401, 408, 413, 429 or 499.
        """
        given = headers.get(b"x-api-key", b"")
        if self.key and path not in self.KEYLESS and not hmac.compare_digest(given, self.key.encode()):
            raise Refusal(401, "unauthorized", "The header X-API-Key must hold the service's key.")
        if path == "/predict":
            self.service.batcher.check()  # here it costs least
        most = self.service.config.max_bytes
        too_large = Refusal(413, "too_large", f"The body is larger than {most:,} bytes.", "send fewer texts at once")
        length = headers.get(b"content-length", b"")
        if length.isdigit() and int(length[:20]) > most:
            raise too_large
        body = bytearray()

        async def read() -> None:
            more = True
            while more and len(body) <= most:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Refusal(499, "disconnected", "The client has gone.")
                more = message.get("more_body", False)
                body.extend(message.get("body", b""))

        try:
            await asyncio.wait_for(read(), self.service.config.timeout)
        except asyncio.TimeoutError:
            raise Refusal(408, "slow_body", "The body did not come in time.") from None
        if len(body) > most:
            raise too_large
        return bytes(body)


# --- The service ------------------------------------------------------------------------------------------------------


def in_main_thread() -> bool:
    """Tell whether this is a process of its own, and no test's."""
    return threading.current_thread() is threading.main_thread()


class Service:
    """The model that is served now, its queue, and how both begin, change and end.

    Args:
        config: See :class:`ServeConfig`.
        observer: Sees what is computed.
        news: The file in which workers of one service tell each other which bundle to serve.

    Attributes:
        model: None until it is loaded.
        draining: After SIGTERM.
        failure: Why the model could not be loaded.
    """

    SHORT = 2000  # characters that are tokenized on the spot: quicker than to hand them to a thread

    def __init__(self, config: ServeConfig, observer: Observer | None, news: Path | None) -> None:
        self.config, self.observer, self.news = config, observer, news
        self.folder = Path(config.bundle).absolute()  # not resolved: a link may point elsewhere at the next reload
        self.models = (Path(config.models) if config.models else self.folder.parent).resolve()
        self.metrics = Metrics()
        self.batcher = Batcher(config, self._on_batch)
        self.model: ServedModel | None = None
        self.draining = False
        self.failure: Exception | None = None
        self.watcher: Watcher | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._tokenizer = ThreadPoolExecutor(1, "tokenizer")
        self._reloading = asyncio.Lock()
        self._following: set[asyncio.Task[None]] = set()

    # Its life

    @asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        """Load the model beside the loop, so that the probes are answered meanwhile; catch signals; end it all."""
        if self.observer:
            register = getattr(self.observer, "register", None)
            if register:
                register(self.metrics.registry)
            self.watcher = Watcher(self.observer, lambda outcome, n: self.metrics.observed.labels(outcome).inc(n))
        self._tasks = [asyncio.create_task(self.batcher.run()), asyncio.create_task(self._begin())]
        signals = self._catch_signals()
        yield
        for number in signals:
            asyncio.get_running_loop().remove_signal_handler(number)
        for task in self._tasks:
            task.cancel()
        self.batcher.close()
        self._tokenizer.shutdown(wait=False, cancel_futures=True)
        if self.watcher:
            await asyncio.to_thread(self.watcher.close)

    async def _begin(self) -> None:
        try:
            self.folder = Path(self._read_news().get("bundle", self.folder))  # in the place of a worker that died
            model = await asyncio.to_thread(ServedModel, self.folder, self.config)
            self._serve(model)
        except Exception as error:
            self.failure = error
            logger.error("the model can't be loaded: %s", error)
            if in_main_thread():
                signal.raise_signal(signal.SIGTERM)
            return
        if in_main_thread():
            gc.collect()
            gc.freeze()  # what was imported stays; to look for garbage in it now and then would stop all for 0.1 s
        logger.info("ready", extra={"fields": {"model_version": model.version, "techniques": model.card.techniques}})

    @property
    def alive(self) -> bool:
        """Whether requests can ever be answered: only a restart helps where the batcher has failed."""
        return not self._tasks[0].done()

    def _serve(self, model: ServedModel) -> None:
        """Put a model in the place of another. Requests that wait keep theirs."""
        for one, value in ((self.model, 0), (model, 1)):
            if one:
                self.metrics.model.labels(one.version, " ".join(one.card.techniques)).set(value)
        self.model = model
        if not self.batcher.seconds_per_token:
            self.batcher.measured(1, model.seconds_per_token)  # a guess, which the first real batches outweigh
        if self.observer and not self.watches(model):
            logger.warning(
                "the monitor was made for model %s, so %s is not watched", self.observer.model, model.version
            )
        if not model.separable:
            logger.warning("%s answers otherwise in other company: each text is computed alone", model.name)

    def _catch_signals(self) -> list[int]:
        if not in_main_thread():
            return []
        handlers: dict[int, Callable[[], Any]] = {signal.SIGHUP: self._hang_up}
        stop = signal.getsignal(signal.SIGTERM)  # what uvicorn does at it comes after the draining
        if callable(stop):
            handlers[signal.SIGTERM] = partial(self._drain, partial(stop, signal.SIGTERM, None))
        if self.news:
            handlers[signal.SIGINT] = lambda: None  # Ctrl-C reaches the parent too, which then sends SIGTERM
        for number, handler in handlers.items():
            asyncio.get_running_loop().add_signal_handler(number, handler)
        return list(handlers)

    def _drain(self, stop: Callable[[], Any]) -> None:
        """Say no at ``/readyz``, go on for a while, and stop; at once the second time."""
        seconds = 0 if self.draining or not self.model else self.config.drain_seconds
        self.draining = True
        logger.info("draining", extra={"fields": {"seconds": seconds}})
        asyncio.get_running_loop().call_later(seconds, stop)

    def _hang_up(self) -> None:
        task = asyncio.create_task(self._follow())
        self._following.add(task)
        task.add_done_callback(self._following.discard)

    async def _follow(self) -> None:
        """Reload the bundle that the news tell of, or the same one again."""
        while (self.model is None and not self.failure) or self._reloading.locked():
            await asyncio.sleep(0.05)
        try:
            news = self._read_news()
            folder = Path(news.get("bundle", self.folder))
            if self.news and self.model and read_card(folder) == self.model.card:
                self.folder = folder  # this worker was the first to serve it
            else:
                await self.reload(folder, news.get("allow_new_labels", False))
        except (Refusal, InputError, OSError) as error:
            logger.error("reload refused: %s", error)

    def _read_news(self) -> dict[str, Any]:
        return json.loads(self.news.read_text()) if self.news and self.news.exists() else {}

    # Its work

    async def predict(self, texts: list[str], receive: Receive, log: dict[str, Any]) -> list[Prediction]:
        """Label texts, unless that can't be done in time or nobody waits for it any more.

        Args:
            texts: Of one request.
            receive: Tells when its client has gone.
            log: Takes what is to be logged of it.

        Raises:
            Refusal: 413, 429, 499, 503 or 504.
        """
        model, started = self.model, time.monotonic()
        if model is None:
            raise Refusal(503, "not_ready", "The model is being loaded.", "try again later", 1)
        if len(texts) > self.config.max_texts:
            text = f"At most {self.config.max_texts:,} texts are labeled at once. Got {len(texts):,}."
            raise Refusal(413, "too_large", text, "send them in several requests")
        longest = max(range(len(texts)), key=lambda i: len(texts[i]))
        if len(texts[longest]) > self.config.max_characters:
            most, got = self.config.max_characters, len(texts[longest])
            text = f"A text may have {most:,} characters. texts.{longest} has {got:,}."
            raise Refusal(413, "too_large", text, f"the model reads {model.encoder.max_length} tokens of a text")
        log["texts"] = len(texts)
        loop = asyncio.get_running_loop()
        ticket = Ticket(model, len(texts), started + self.config.timeout, loop.create_future())
        self.batcher.enter(ticket)
        self.metrics.queue.set(self.batcher.waiting_texts)
        try:
            if sum(map(len, texts)) <= self.SHORT:
                ids = model.encoder.encode(texts)
            else:
                ids = await loop.run_in_executor(self._tokenizer, model.encoder.encode, texts)
            self.batcher.put(ticket, ids)
            await self._finish(ticket, receive)
        finally:
            self.batcher.drop(ticket)  # what is left of it, if it failed
            self.metrics.queue.set(self.batcher.waiting_texts)
        stages = {"tokenize": ticket.arrived - started, "queue": ticket.started - ticket.arrived,
                  "infer": ticket.finished - ticket.started, "total": time.monotonic() - started}  # fmt: skip
        for stage, seconds in stages.items():
            self.metrics.stages.labels(stage).observe(seconds)
            log[f"{stage}_seconds"] = round(seconds, 6)
        log.update(tokens=sum(map(len, ids)), batch=ticket.batch, model_version=model.version)
        for one in ticket.found:
            self.metrics.predictions.labels(one.label).inc()
        return ticket.found

    async def _finish(self, ticket: Ticket, receive: Receive) -> None:
        """Wait until a request is computed, its time is over, or its client has gone: whatever comes first."""
        gone = asyncio.ensure_future(receive())
        try:
            wait = max(0, ticket.deadline - time.monotonic())
            await asyncio.wait({ticket.done, gone}, timeout=wait, return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
        if ticket.done.done():
            ticket.done.result()  # or its error
        elif gone.done():
            raise Refusal(499, "disconnected", "The client has gone.")
        else:
            text = f"There was no answer within {self.config.timeout:g} seconds."
            raise Refusal(504, "timeout", text, "try again later", 1)

    def _on_batch(self, model: ServedModel, lengths: list[int], seconds: float, outputs: Arrays) -> None:
        self.metrics.batch(lengths, seconds, not model.separable)
        if self.watcher and self.watches(model):
            self.watcher.offer(outputs)

    def watches(self, model: ServedModel) -> bool:
        """Tell whether the observer is there for this model: another one's outputs would look like drift."""
        return bool(self.observer) and self.observer.model in ("", model.version)

    def place(self, bundle: str) -> Path:
        """Return the folder of a bundle that ``/reload`` was asked for.

        Raises:
            Refusal: 403, it lies outside the models' folder, or 422, it is no path.
        """
        if not bundle:
            return self.folder
        try:
            folder = self.models / bundle
            inside = folder.resolve().is_relative_to(self.models)
        except (ValueError, OSError, RuntimeError):  # a zero byte, too long, a circle of links
            raise Refusal(422, "bad_path", "bundle is no path.") from None
        if not inside:
            raise Refusal(403, "bad_path", f"Bundles must lie under the folder of models. Got {bundle!r}.")
        return folder

    async def reload(self, folder: Path, allow_new_labels: bool = False) -> Reloaded:
        """Load a bundle, try it, and serve it from now on; until then, and if it fails, the old one is served.

        Raises:
            Refusal: 404, there is no bundle; 422, it is damaged; 409, it has other labels, or another reload is under
                way; 503, there is no model yet.
        """
        before = self.model
        if before is None:
            raise Refusal(503, "not_ready", "The first model is still being loaded.", "try again later", 1)
        if self._reloading.locked():
            raise Refusal(409, "reload_busy", "Another reload is under way.", "try again later", 1)
        async with self._reloading:
            try:
                after = await self._load_other(folder, before, allow_new_labels)
            except Refusal:
                self.metrics.reloads.labels("refused").inc()
                raise
            self.folder = folder
            self._serve(after)
            self.metrics.reloads.labels("done").inc()
        logger.info("reloaded", extra={"fields": {"model_version": after.version}})
        return Reloaded(
            model_version=after.version, previous_version=before.version, techniques=after.card.techniques
        )  # fmt: skip

    async def _load_other(self, folder: Path, before: ServedModel, allow_new_labels: bool) -> ServedModel:
        name = folder.name  # where it lies is not told
        try:
            after = await asyncio.to_thread(ServedModel, folder, self.config)
        except FileNotFoundError as error:
            raise Refusal(404, "no_bundle", str(error).replace(str(folder), name)) from None
        except InputError as error:
            raise Refusal(422, "bad_bundle", str(error.args[0]).replace(str(folder), name), error.hint) from None
        except (OSError, MemoryError) as error:
            text = f"{name} can't be read: {getattr(error, 'strerror', None) or type(error).__name__}."
            raise Refusal(422, "bad_bundle", text) from None
        if after.label_names != before.label_names and not allow_new_labels:
            new, old = ", ".join(after.label_names), ", ".join(before.label_names)
            hint = "allow_new_labels, where clients know of them"
            raise Refusal(409, "new_labels", f"{name} tells {new} apart, but {old} are served.", hint)
        return after

    def refuse(self, scope: Scope, refusal: Refusal) -> JSONResponse:
        """Count and log a refusal, and return the answer."""
        scope["log"]["reason"] = refusal.reason
        self.metrics.rejections.labels(refusal.reason).inc()
        return refusal.response()

    def tell(self, allow_new_labels: bool) -> None:
        """Have the other workers serve the same bundle: the parent hands SIGHUP on to all."""
        parent = multiprocessing.parent_process()
        if self.news and parent:
            write_atomic(self.news, json.dumps({"bundle": str(self.folder), "allow_new_labels": allow_new_labels}))
            with suppress(ProcessLookupError):  # it has died, and this worker is about to stop
                os.kill(parent.pid, signal.SIGHUP)


def monitor_of(config: ServeConfig) -> Observer | None:
    """Load the monitor of ``config.drift``, if any; see :func:`create_app`."""
    if not config.drift:
        return None
    from model_optimization.monitoring.drift_detection import DriftMonitor

    return DriftMonitor.load(config.drift, webhook=config.webhook, busy_share=config.drift_share)


def create_app(
    config: ServeConfig | None = None, observer: Observer | None = None, *, news: Path | None = None
) -> FastAPI:
    """Make the application; for ``uvicorn --factory`` too.

    Args:
        config: See :class:`ServeConfig`.
        observer: Sees what the model makes of live texts; by default the monitor of ``config.drift``, if any.
        news: See :class:`Service`.

    Raises:
        FileNotFoundError: There is no monitor in the folder ``config.drift``.
        InputError: It is damaged.
    """
    config = config or ServeConfig()
    observer = observer or monitor_of(config)
    service = Service(config, observer, news)
    app = FastAPI(title="Text classification", version="1", description=(__doc__ or "").replace("    ", ""),
                  lifespan=service.lifespan, redoc_url=None)  # fmt: skip
    app.state.service = service
    key = os.environ.get("OPTIMIZATION_API_KEY", "")
    app.add_middleware(Guard, service=service, key=key)
    if key:  # the guard checks it; this tells of it in the documentation
        app.router.dependencies.append(Security(APIKeyHeader(name="X-API-Key", auto_error=False)))

    @app.exception_handler(Refusal)
    async def refused(request: Request, refusal: Refusal) -> JSONResponse:
        return service.refuse(request.scope, refusal)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"] if part != "body") or "the body"
        text = f"{place}: {first['msg']}."
        if first["type"] == "json_invalid":
            text = f"The body is no JSON: {first['ctx']['error']} at character {first['loc'][-1]}."
        return service.refuse(request.scope, Refusal(422, "invalid", text, HINT))

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        hint = HINT if error.status_code == 400 else "see /docs"
        return service.refuse(request.scope, Refusal(error.status_code, "invalid", f"{error.detail}.", hint))

    @app.post("/predict", response_model=Labels, tags=["model"])
    async def predict(asked: Predict, request: Request) -> JSONResponse:
        """Label texts."""
        log = request.scope["log"]
        found = await service.predict(asked.texts, request.receive, log)
        return JSONResponse({"predictions": list(map(vars, found)), "model_version": log["model_version"],
                             "request_id": log["request_id"]})  # fmt: skip

    @app.post("/reload", tags=["model"])
    async def reload(asked: Reload | None = None) -> Reloaded:
        """Serve another bundle, or the same one after its files were changed, without losing a request."""
        asked = asked or Reload()
        result = await service.reload(service.place(asked.bundle), asked.allow_new_labels)
        service.tell(asked.allow_new_labels)
        return result

    @app.get("/drift", tags=["model"])
    def drift() -> dict[str, Any]:
        """Tell what the drift monitor has found so far."""
        report = getattr(observer, "report", None)
        if report is None:
            raise Refusal(404, "invalid", "Live traffic is not watched.", "start the server with --drift FOLDER")
        return {"watching": bool(service.model and service.watches(service.model)), **report()}

    @app.get("/healthz", tags=["probes"])
    async def healthz() -> dict[str, str]:
        """Tell that the process is alive; 503 where only a restart helps."""
        if not service.alive:
            raise Refusal(503, "dead", "The batcher has failed.")
        return {"status": "ok"}

    @app.get("/readyz", tags=["probes"])
    async def readyz() -> dict[str, str]:
        """Tell whether to send traffic here: 503 while the model is being loaded, and after SIGTERM."""
        if service.draining or service.model is None:
            text = "It is about to stop." if service.draining else "The model is being loaded."
            raise Refusal(503, "not_ready", text, retry_after=1)
        return {"status": "ready", "model_version": service.model.version}

    @app.get("/metrics", tags=["probes"])
    def metrics() -> Response:
        """Return counts and latencies for Prometheus."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return app


# --- Processes --------------------------------------------------------------------------------------------------------


def run(config: ServeConfig, listener: socket.socket, news: Path | None = None) -> None:
    """Serve in this process until it is told to stop.

    Raises:
        Exception: The model could not be loaded.
    """
    import uvicorn

    json_logs()
    signal.signal(signal.SIGTERM, lambda *_: None)  # uvicorn raises it again when all is done: exit with 0
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until the service is there to follow it
    app = create_app(config, news=news)
    options = uvicorn.Config(app, log_config=None, access_log=False, server_header=False, timeout_keep_alive=30,
                             timeout_graceful_shutdown=math.ceil(config.timeout) + 3)  # fmt: skip
    uvicorn.Server(options).run(sockets=[listener])
    if app.state.service.failure:
        raise app.state.service.failure


def _worker(config: ServeConfig, listener: socket.socket, news: Path) -> None:
    """Serve as one of several."""
    parent = multiprocessing.parent_process()
    assert parent

    def follow_parent() -> None:  # even when that is killed
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=follow_parent, daemon=True).start()
    try:
        run(config, listener, news)
    except (InputError, OSError) as error:
        logger.error("the worker ends: %s", error)
        sys.exit(1)


def run_workers(config: ServeConfig, listener: socket.socket) -> None:
    """Serve in several processes that share a socket, and start one anew that dies.

    SIGTERM and SIGINT are handed on to all and waited for; SIGHUP is handed on.
    """
    json_logs()
    signals: queue.SimpleQueue[int] = queue.SimpleQueue()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda number, _: signals.put(number))
    with tempfile.TemporaryDirectory(prefix="serving-") as folder:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder  # before prometheus_client is imported, here and there
        from prometheus_client.multiprocess import mark_process_dead

        context = multiprocessing.get_context("spawn")

        def start() -> Any:
            process = context.Process(target=_worker, args=(config, listener, Path(folder) / "news.json"))
            process.start()
            return process

        workers = [start() for _ in range(config.workers)]
        stopping = False
        while workers:
            for sentinel in multiprocessing.connection.wait([worker.sentinel for worker in workers], timeout=0.2):
                worker = next(worker for worker in workers if worker.sentinel == sentinel)
                worker.join()
                workers.remove(worker)
                mark_process_dead(worker.pid)
                if not stopping:
                    logger.error("worker %d died with status %s; another takes its place", worker.pid, worker.exitcode)
                    time.sleep(1)  # it may die at once again
                    workers.append(start())
            while not signals.empty():
                number = signals.get()
                stopping = stopping or number != signal.SIGHUP
                for worker in workers:
                    with suppress(ProcessLookupError):  # it died just now
                        os.kill(worker.pid, number if number == signal.SIGHUP else signal.SIGTERM)


def listen(host: str, port: int) -> socket.socket:
    """Open a socket that waits for connections.

    Raises:
        OSError: The port is taken, or the address is not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sends small pieces at once only where the protocol is named: else each answer may wait 40 ms for an ACK
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise OSError(f"Can't listen on {host}:{port}: {error.strerror}.") from None
    return listener


def serve(config: ServeConfig) -> None:
    """Start the service; see :class:`ServeConfig`."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # it would start a thread for each core of the host
    with listen(config.host, config.port) as listener:
        if config.workers == 1:
            run(config, listener)
        else:
            ServedModel(Path(config.bundle), config)  # what can't be served is told of here, once
            monitor_of(config)
            run_workers(config, listener)


if __name__ == "__main__":
    run_commands({"serve": serve}, module=MODULE, extra="optimization")
