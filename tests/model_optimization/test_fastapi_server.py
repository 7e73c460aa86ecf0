"""The service over real sockets: batching, limits, overload, reloads, signals, and what hostile clients may send."""

import asyncio
import itertools
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
import uvicorn

from model_optimization.deployment import fastapi_server
from model_optimization.deployment.fastapi_server import (
    Batcher,
    Refusal,
    ServeConfig,
    ServedModel,
    Ticket,
    Watcher,
    create_app,
    listen,
    pack,
    serve,
)
from model_optimization.deployment.onnx_conversion import MODEL, OnnxClassifier, read_card, write_bundle
from shared.config import run_commands
from shared.errors import InputError

ROOT = Path(fastapi_server.__file__).parents[2]
WORDS = "the room bed staff was not very good bad clean dirty and but a i we it never again best worst".split()


def sentences(count: int, seed: int = 0) -> list[str]:
    """Return texts of 1 to 90 words; some are longer than the model reads."""
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.choice((1, 3, 5, 12, 30, 90)))) for _ in range(count)]


# --- The batcher by itself --------------------------------------------------------------------------------------------


class Fake:
    """A model of which each batch is known, and which computes only while its gate is open."""

    label_names = ["no", "yes"]
    name = "fake"
    encoder = SimpleNamespace(max_length=100)

    def __init__(self) -> None:
        self.seen: list[list[int]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.fails = self.gives_nan = False

    def run(self, ids: Sequence[Sequence[int]]) -> tuple[Any, Any]:
        self.seen.append([len(row) for row in ids])
        assert self.gate.wait(10)
        if self.fails:
            raise RuntimeError("broken")
        logits = np.array([[0.0, float(len(row))] for row in ids], dtype=np.float32)
        return logits * (np.nan if self.gives_nan else 1), np.ones((len(ids), 3), dtype=np.float32)


def batching(scenario: Callable[[Batcher], Coroutine[Any, Any, None]], **options: Any) -> None:
    """Run a scenario with a batcher of one lane, in a loop of its own."""

    async def main() -> None:
        batcher = Batcher(ServeConfig(**{"parallel": 1, "max_wait_ms": 1000, **options}), lambda *_: None)
        loop = asyncio.create_task(batcher.run())
        try:
            await asyncio.wait_for(scenario(batcher), 20)
            assert (batcher.waiting_texts, batcher.waiting_tokens) == (0, 0)
        finally:
            loop.cancel()
            batcher.close()

    asyncio.run(main())


def submit(batcher: Batcher, model: Any, *lengths: int, seconds: float = 10) -> Ticket:
    ticket = Ticket(model, len(lengths), time.monotonic() + seconds, asyncio.get_running_loop().create_future())
    batcher.enter(ticket)
    batcher.put(ticket, [[1] * length for length in lengths])
    return ticket


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.002)
    raise AssertionError("it did not come")


def cost(batches: Sequence[Sequence[int]], lengths: Sequence[int], overhead: float) -> float:
    return sum(overhead + len(batch) * max(lengths[i] for i in batch) for batch in batches)


def partitions(items: list[int]) -> Iterator[list[list[int]]]:
    """Yield all ways to divide items into groups."""
    if not items:
        yield []
        return
    for rest in partitions(items[1:]):
        yield [[items[0]], *rest]
        for i in range(len(rest)):
            yield [*rest[:i], [items[0], *rest[i]], *rest[i + 1 :]]


@pytest.mark.parametrize("seed", range(8))
def test_no_division_into_batches_is_cheaper_than_ours(seed: int) -> None:
    rng = random.Random(seed)
    lengths = [rng.randint(1, 40) for _ in range(7)]
    budget, overhead = rng.randint(10, 120), rng.choice((0, 5, 30))
    ours = pack(lengths, budget, overhead)
    allowed = [
        way
        for way in partitions(list(range(7)))
        if all(len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= budget for batch in way)
    ]
    assert ours in [sorted(sorted(batch) for batch in way) for way in allowed]
    assert cost(ours, lengths, overhead) == min(cost(way, lengths, overhead) for way in allowed)


def test_the_batch_of_the_oldest_text_is_the_first() -> None:
    assert pack([50, 3, 50, 3, 3], 1000, 4) == [[0, 2], [1, 3, 4]]


def test_a_lone_text_does_not_wait_for_company() -> None:
    async def scenario(batcher: Batcher) -> None:
        for _ in range(3):
            started = time.monotonic()
            await submit(batcher, Fake(), 5).done
            assert time.monotonic() - started < 0.5  # and not the second of max_wait_ms

    batching(scenario)


def test_texts_of_several_requests_are_computed_together_and_each_gets_its_own() -> None:
    async def scenario(batcher: Batcher) -> None:
        model = Fake()
        model.gate.clear()
        first = submit(batcher, model, 7)
        await until(lambda: len(model.seen) == 1)  # the only lane is taken; the others gather
        others = [submit(batcher, model, 3, 4), submit(batcher, model, 5)]
        model.gate.set()
        for ticket in (first, *others):
            await ticket.done
        assert model.seen == [[7], [3, 4, 5]]
        assert [found.tokens for ticket in others for found in ticket.found] == [3, 4, 5]
        expected = 1 / (1 + np.exp(-4.0))
        assert others[0].found[1].probabilities["yes"] == pytest.approx(expected, abs=1e-6)
        assert [ticket.batch for ticket in (first, *others)] == [1, 3, 3]

    batching(scenario)


def test_no_batch_is_larger_than_the_budget_and_like_lengths_go_together() -> None:
    async def scenario(batcher: Batcher) -> None:
        model = Fake()
        model.gate.clear()
        tickets = [submit(batcher, model, 1)]
        await until(lambda: len(model.seen) == 1)
        tickets += [submit(batcher, model, length) for length in (30, 4, 30, 4, 30, 4, 120)]
        model.gate.set()
        for ticket in tickets:
            await ticket.done
        assert model.seen == [[1], [30, 30, 30], [4, 4, 4], [120]]  # a text above the budget goes alone

    batching(scenario, max_batch_tokens=100)


def test_a_full_budget_does_not_wait_for_the_deadline() -> None:
    async def scenario(batcher: Batcher) -> None:
        model = Fake()
        await submit(batcher, model, *[10] * 8).done  # from now on eight texts are expected
        started = time.monotonic()
        await submit(batcher, model, 50, 50).done
        assert time.monotonic() - started < 0.5

    batching(scenario, max_batch_tokens=100)


def test_a_text_waits_for_those_that_came_with_the_last_batch_until_the_deadline_and_no_longer() -> None:
    async def scenario(batcher: Batcher) -> None:
        model = Fake()
        await submit(batcher, model, 5, 5).done
        started = time.monotonic()
        one = submit(batcher, model, 5)
        await asyncio.sleep(0.05)
        two = submit(batcher, model, 5)  # the second one that was expected: both go at once
        await one.done
        await two.done
        assert model.seen[1:] == [[5, 5]]
        assert time.monotonic() - started < 0.25
        started = time.monotonic()
        await submit(batcher, model, 5).done  # its company never comes
        assert 0.29 < time.monotonic() - started < 2
        started = time.monotonic()
        await submit(batcher, model, 5).done  # and is expected no more
        assert time.monotonic() - started < 0.25

    batching(scenario, max_wait_ms=300)


def test_what_nobody_waits_for_is_never_computed() -> None:
    async def scenario(batcher: Batcher) -> None:
        model = Fake()
        model.gate.clear()
        first = submit(batcher, model, 9)
        await until(lambda: len(model.seen) == 1)
        expired = submit(batcher, model, 2, 2, seconds=0.02)
        gone = submit(batcher, model, 3, 3)
        kept = submit(batcher, model, 4)
        assert batcher.waiting_texts == 5
        batcher.drop(gone)
        batcher.drop(gone)  # twice does no harm
        assert (batcher.waiting_texts, batcher.waiting_tokens) == (3, 8)
        await asyncio.sleep(0.05)
        model.gate.set()
        await first.done
        await kept.done
        assert model.seen == [[9], [4]]
        assert not expired.done.done()
        batcher.drop(expired)

    batching(scenario)


def test_a_request_that_leaves_before_it_is_tokenized_frees_its_place() -> None:
    async def scenario(batcher: Batcher) -> None:
        ticket = Ticket(Fake(), 8, time.monotonic() + 9, asyncio.get_running_loop().create_future())
        batcher.enter(ticket)
        assert batcher.waiting_texts == 8
        batcher.drop(ticket)

    batching(scenario, queue_texts=8, max_texts=8)


def test_a_full_queue_refuses_and_says_when_to_come_again_from_the_measured_rate() -> None:
    async def scenario(batcher: Batcher) -> None:
        model = Fake()
        model.gate.clear()
        batcher.measured(1000, 100)  # a tenth of a second for a token
        held = submit(batcher, model, 9)
        await until(lambda: len(model.seen) == 1)
        held2 = submit(batcher, model, *[10] * 4)  # four seconds of work
        with pytest.raises(Refusal) as refused:
            submit(batcher, model, 1)  # the fifth text
        assert (refused.value.status, refused.value.reason) == (429, "queue_full")
        assert refused.value.response().headers["retry-after"] == "4"
        assert batcher.waiting_texts == 4
        model.gate.set()
        await held.done
        await held2.done
        await submit(batcher, model, 1).done

    batching(scenario, queue_texts=4, max_texts=4, timeout=100, queue_seconds=100, max_wait_ms=1)


def test_a_queue_of_more_work_than_allowed_refuses_however_few_texts_it_holds() -> None:
    async def scenario(batcher: Batcher) -> None:
        model = Fake()
        model.gate.clear()
        batcher.measured(1000, 100)
        held = [submit(batcher, model, 9)]
        await until(lambda: len(model.seen) == 1)
        held.append(submit(batcher, model, 90))  # alone it is more than allowed, but nobody is before it
        with pytest.raises(Refusal):
            submit(batcher, model, 1)
        model.gate.set()
        for ticket in held:
            await ticket.done

    batching(scenario, queue_seconds=5)


def test_the_measured_rate_counts_lanes_together_and_no_idle_time() -> None:
    class Sleeper(Fake):
        def run(self, ids: Sequence[Sequence[int]]) -> tuple[Any, Any]:
            time.sleep(0.05)
            return super().run(ids)

    async def scenario(batcher: Batcher) -> None:
        model = Sleeper()
        for _ in range(3):
            for ticket in [submit(batcher, model, 100) for _ in range(8)]:
                await ticket.done
            await asyncio.sleep(0.2)
        # Two lanes, each 100 tokens in 0.05 seconds
        assert 0.9 * 0.05 / 200 < batcher.seconds_per_token < 2 * 0.05 / 200

    batching(scenario, parallel=2, max_batch_tokens=100, max_wait_ms=0)


def test_a_batch_that_fails_takes_only_its_own_requests_with_it() -> None:
    async def scenario(batcher: Batcher) -> None:
        model = Fake()
        model.fails = True
        with pytest.raises(RuntimeError, match="broken"):
            await submit(batcher, model, 5).done
        model.fails, model.gives_nan = False, True
        with pytest.raises(InputError, match="no numbers"):
            await submit(batcher, model, 5).done
        model.gives_nan = False
        await submit(batcher, model, 5).done

    batching(scenario)


def test_texts_of_two_models_never_share_a_batch() -> None:
    async def scenario(batcher: Batcher) -> None:
        old, new = Fake(), Fake()
        old.gate.clear()
        tickets = [submit(batcher, old, 9)]
        await until(lambda: len(old.seen) == 1)
        tickets += [submit(batcher, model, length) for model, length in ((old, 2), (old, 3), (new, 4), (new, 5))]
        old.gate.set()
        for ticket in tickets:
            await ticket.done
        assert (old.seen, new.seen) == ([[9], [2, 3]], [[4, 5]])

    batching(scenario, max_wait_ms=1)


def test_a_slow_observer_is_left_behind_and_a_broken_one_is_survived() -> None:
    counts: Counter[str] = Counter()
    gate = threading.Event()

    class Observer:
        def observe(self, probabilities: Any, embeddings: Any) -> int:
            assert gate.wait(10)
            if len(probabilities) == 3:
                raise ValueError("no")
            return 1

    def count(outcome: str, texts: int) -> None:
        counts[outcome] += texts

    watcher = Watcher(Observer(), count, room=2)
    batch = (np.ones((2, 2)), np.ones((2, 3)))
    watcher.offer(batch)
    wait_until(lambda: not watcher.batches.qsize())  # the thread has taken it
    watcher.offer((np.ones((3, 2)), np.ones((3, 3))))
    watcher.offer(batch)
    started = time.monotonic()
    watcher.offer(batch)  # no room any more
    assert time.monotonic() - started < 0.5
    gate.set()
    watcher.close()
    assert counts == {"seen": 2, "passed_over": 2, "failed": 3, "dropped": 2}


# --- The service in this process --------------------------------------------------------------------------------------


def wait_until(condition: Callable[[], Any], seconds: float = 30) -> None:
    """Wait for something that comes soon, and fail where it does not."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.01)


class Recorder:
    """An observer that keeps what it sees."""

    model = ""

    def __init__(self) -> None:
        self.rows = 0
        self.registry: Any = None
        self.last: Any = None

    def observe(self, probabilities: Any, embeddings: Any) -> int:
        assert len(probabilities) == len(embeddings)
        self.last = (probabilities, embeddings)
        self.rows += len(probabilities)
        return len(probabilities)

    def register(self, registry: Any) -> None:
        self.registry = registry

    def report(self) -> dict[str, Any]:
        return {"rows": self.rows}


@contextmanager
def serving(app: Any, ready: bool = True) -> Iterator[httpx.Client]:
    """Serve an application on a free port, from a thread."""
    listener = listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=5))
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    limits = httpx.Limits(max_connections=200, max_keepalive_connections=200)
    address = f"http://127.0.0.1:{listener.getsockname()[1]}"
    with httpx.Client(base_url=address, timeout=30, limits=limits, trust_env=False) as client:
        while not server.started or (ready and client.get("/readyz").status_code != 200):
            assert not app.state.service.failure
            time.sleep(0.01)
        yield client
    server.should_exit = True
    thread.join(20)
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def models(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of bundles: served, another one that answers the same, and ones that can't be served."""
    import onnx
    from onnxruntime.quantization import quantize_dynamic

    folder = tmp_path_factory.mktemp("models")
    shutil.copytree(tiny_bundle, folder / "served")
    card, tokenizer = read_card(tiny_bundle), (tiny_bundle / "tokenizer.json").read_text()
    graph = onnx.load(tiny_bundle / MODEL)
    graph.doc_string = "other bytes, other version"
    write_bundle(folder / "other", graph.SerializeToString(), tokenizer, card)
    names = ["bad", "good"]
    write_bundle(folder / "labels", graph.SerializeToString(), tokenizer, type(card)(names, card.max_length))
    shutil.copytree(tiny_bundle, folder / "cut")
    (folder / "cut" / MODEL).write_bytes((tiny_bundle / MODEL).read_bytes()[:1000])
    write_bundle(folder / "text", b"this is no graph", tokenizer, card)
    write_bundle(folder / "three", (tiny_bundle / MODEL).read_bytes(), tokenizer, type(card)(["a", "b", "c"], 64))
    quantize_dynamic(tiny_bundle / MODEL, folder / "dynamic.onnx")
    write_bundle(folder / "dynamic", (folder / "dynamic.onnx").read_bytes(), tokenizer, card)
    shutil.copytree(folder / "other", folder.parent / f"{folder.name}-outside")
    (folder / "way-out").symlink_to(folder.parent / f"{folder.name}-outside")
    return folder


@pytest.fixture(scope="module")
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture(scope="module")
def app(models: Path, recorder: Recorder) -> Any:
    config = ServeConfig(bundle=str(models / "served"), max_characters=2000, max_bytes=20_000, max_texts=32)
    return create_app(config, recorder)


@pytest.fixture(scope="module")
def client(app: Any) -> Iterator[httpx.Client]:
    with serving(app) as client:
        yield client


def values(client: httpx.Client) -> dict[str, float]:
    """Return all series of /metrics."""
    lines = [line for line in client.get("/metrics").text.splitlines() if not line.startswith("#")]
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}


def slowed(app: Any, until: float | threading.Event, ids_seen: list[Any] | None = None) -> Any:
    """Make an application's model sleep some seconds, or until an event, for each batch; returns it."""
    model = app.state.service.model
    run = model.run

    def slow(ids: Any) -> Any:
        if ids_seen is not None:
            ids_seen.extend(ids)
        if isinstance(until, threading.Event):
            assert until.wait(10)
        else:
            time.sleep(until)
        return run(ids)

    model.run = slow
    return model


def test_many_clients_at_once_get_what_the_model_says_by_itself(client: httpx.Client, models: Path) -> None:
    texts = sentences(200)
    expected = {
        text: found for text, found in zip(texts, OnnxClassifier(models / "served").predict(texts), strict=True)
    }
    cuts = sorted(random.Random(0).sample(range(1, 200), 60))
    requests = [texts[a:b] for a, b in itertools.pairwise([0, *cuts, 200])]

    def ask(some: list[str]) -> list[dict[str, Any]]:
        answer = client.post("/predict", json={"texts": some})
        assert answer.status_code == 200
        found: list[dict[str, Any]] = answer.json()["predictions"]
        return found

    with ThreadPoolExecutor(16) as pool:
        answers = [one for found in pool.map(ask, requests) for one in found]
    for text, one in zip(texts, answers, strict=True):
        wanted = expected[text]
        assert (one["label"], one["tokens"], one["truncated"]) == (wanted.label, wanted.tokens, wanted.truncated)
        assert one["probabilities"] == pytest.approx(wanted.probabilities, abs=2e-6)
    assert sum(one["truncated"] for one in answers) > 5


def test_whether_company_changes_answers_is_found_out_and_then_nobody_has_any(models: Path) -> None:
    assert ServedModel(models / "served", ServeConfig()).separable
    assert ServedModel(models / "dynamic", ServeConfig(allow_batch_effects=True)).separable
    texts = sentences(40, seed=1)
    expected = OnnxClassifier(models / "dynamic").predict(texts, batch_size=1)
    with serving(create_app(ServeConfig(bundle=str(models / "dynamic"), parallel=1))) as client:
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda text: client.post("/predict", json={"texts": [text]}).json(), texts))
        answers += [
            {"predictions": [one]} for one in client.post("/predict", json={"texts": texts}).json()["predictions"]
        ]
        assert [answer["predictions"][0]["probabilities"] for answer in answers] == [
            one.probabilities for one in expected
        ] * 2
        assert values(client)["classifier_batch_texts_sum"] == 80
        assert values(client)["classifier_batch_padding_share_sum"] == 0


def test_an_answer_names_the_model_and_the_request(client: httpx.Client, models: Path) -> None:
    answer = client.post("/predict", json={"texts": ["good"]}, headers={"X-Request-ID": "my-request.1"})
    assert answer.json()["request_id"] == answer.headers["x-request-id"] == "my-request.1"
    assert answer.json()["model_version"] == read_card(models / "served").sha256[MODEL][:12]
    for bad in ("a b", "x" * 65, 'a"}', "ü"):
        got = client.get("/healthz", headers={b"X-Request-ID": bad.encode("latin-1")}).headers["x-request-id"]
        assert re.fullmatch("[0-9a-f]{32}", got)


BAD: dict[str, tuple[bytes, int, str]] = {
    "no text": (b'{"texts": []}', 422, "texts"),
    "not a list": (b'{"texts": "good"}', 422, "list"),
    "a number": (b'{"texts": [1]}', 422, "texts.0"),
    "NaN": (b'{"texts": [NaN]}', 422, "texts.0"),
    "another key": (b'{"texts": ["a"], "text": "a"}', 422, "text"),
    "a list alone": (b'["good"]', 422, "dictionary"),
    "nothing": (b"", 422, "required"),
    "half of it": (b'{"texts": ["good', 422, "no JSON"),
    "no UTF-8": (b'{"texts": ["\xff\xfe"]}', 400, "body"),
    "a deep nest": (b"[" * 15_000, 400, "body"),
    "too many": (json.dumps({"texts": ["a"] * 33}).encode(), 413, "32 texts"),
    "too long": (json.dumps({"texts": ["a", "b" * 2001]}).encode(), 413, "texts.1 has 2,001"),
    "too large": (json.dumps({"texts": ["a" * 1_000_000]}).encode(), 413, "20,000 bytes"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_can_not_be_labeled_is_refused_with_a_reason_and_a_hint(client: httpx.Client, name: str) -> None:
    body, status, word = BAD[name]
    answer = client.post("/predict", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == status
    error = answer.json()["error"]
    assert set(error) == {"type", "message", "hint"}
    assert word in error["message"] and error["hint"]
    assert client.post("/predict", json={"texts": ["good"]}).status_code == 200


def test_strange_texts_are_labeled(client: httpx.Client) -> None:
    body = rb'{"texts": ["", " ", "\ud800", "\u0000", "\u623f\u95f4\u5f88\u597d", "\ud83d\ude00"]}'
    answer = client.post("/predict", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 200
    assert len(answer.json()["predictions"]) == 6


def test_a_body_without_a_length_is_counted_as_it_comes(client: httpx.Client) -> None:
    with socket.create_connection((client.base_url.host, client.base_url.port or 0), timeout=10) as raw:
        raw.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(21):  # of a body without an end
            raw.sendall(b"3e8\r\n" + b"a" * 1000 + b"\r\n")
        answer = b""
        while b"}}" not in answer:
            answer += raw.recv(10_000)
    assert answer.startswith(b"HTTP/1.1 413") and b'"TooLarge"' in answer


def test_a_body_that_does_not_come_is_given_up(models: Path) -> None:
    with serving(create_app(ServeConfig(bundle=str(models / "served"), timeout=0.2, queue_seconds=0.2))) as client:
        with socket.create_connection((client.base_url.host, client.base_url.port or 0), timeout=10) as raw:
            raw.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf")
            assert raw.recv(10_000).startswith(b"HTTP/1.1 408")


def test_other_paths_methods_and_types_get_json_errors(client: httpx.Client) -> None:
    for answer, status in (
        (client.get("/nothing"), 404),
        (client.get("/predict"), 405),
        (client.post("/predict", content=b"texts=good", headers={"Content-Type": "text/plain"}), 422),
    ):
        assert answer.status_code == status
        assert answer.json()["error"]["message"]


def test_metrics_tell_of_stages_batches_refusals_and_the_model(client: httpx.Client, models: Path) -> None:
    before = values(client)
    client.post("/predict", json={"texts": ["good", "bad bed"]})
    client.post("/predict", json={"texts": []})
    client.get("/made-up-by-a-client")
    after = values(client)

    def grown(name: str) -> float:
        return after.get(name, 0) - before.get(name, 0)

    for stage in ("tokenize", "queue", "infer", "total"):
        assert grown(f'classifier_stage_seconds_count{{stage="{stage}"}}') == 1
        assert grown(f'classifier_stage_seconds_sum{{stage="{stage}"}}') >= 0
    assert grown("classifier_batch_texts_sum") == 2
    assert 6 <= grown("classifier_batch_padded_tokens_sum") <= 8
    assert grown("classifier_batch_padding_share_count") >= 1
    assert grown('classifier_requests_total{path="/predict",status="200"}') == 1
    assert grown('classifier_requests_total{path="/predict",status="422"}') == 1
    assert grown('classifier_requests_total{path="other",status="404"}') == 1
    assert grown('classifier_rejections_total{reason="invalid"}') == 2
    labels = [name for name in after if name.startswith("classifier_predictions_total")]
    assert sum(map(grown, labels)) == 2
    assert after["classifier_queue_texts"] == 0
    version = read_card(models / "served").sha256[MODEL][:12]
    assert after[f'classifier_model_info{{techniques="fp32",version="{version}"}}'] == 1
    assert "made-up" not in str(after)


def test_an_observer_sees_every_text_and_shows_its_metrics_and_report(
    client: httpx.Client, app: Any, recorder: Recorder
) -> None:
    before = recorder.rows
    client.post("/predict", json={"texts": ["good", "bad", "room"]})
    for _ in range(500):
        if recorder.rows == before + 3:
            break
        time.sleep(0.01)
    assert recorder.rows == before + 3
    probabilities, embeddings = recorder.last
    assert probabilities.shape[1] == 2 and embeddings.shape[1] == 32
    assert np.allclose(probabilities.sum(1), 1)
    assert recorder.registry is app.state.service.metrics.registry
    assert client.get("/drift").json() == {"watching": True, "rows": recorder.rows}
    assert values(client)['classifier_observed_texts_total{outcome="seen"}'] == recorder.rows


def test_without_an_observer_there_is_no_drift_and_two_applications_share_a_process(models: Path) -> None:
    apps = [create_app(ServeConfig(bundle=str(models / "served"))) for _ in range(2)]
    with serving(apps[0]) as one, serving(apps[1]) as two:
        one.post("/predict", json={"texts": ["good"]})
        assert one.get("/drift").status_code == 404
        assert values(one)["classifier_batch_texts_count"] == 1
        assert values(two)["classifier_batch_texts_count"] == 0


def test_a_drift_monitor_is_loaded_from_its_folder(models: Path, tmp_path: Path) -> None:
    from model_optimization.monitoring.drift_detection import DriftMonitor

    rng = np.random.default_rng(0)
    share = rng.uniform(size=(200, 1))
    monitor = DriftMonitor.fit(
        np.hstack([share, 1 - share]), rng.normal(size=(200, 32)), ["negative", "positive"], window=20,
        held_out_windows=0,
    )  # fmt: skip
    monitor.save(tmp_path / "monitor")
    with serving(create_app(ServeConfig(bundle=str(models / "served"), drift=str(tmp_path / "monitor")))) as client:
        client.post("/predict", json={"texts": sentences(25)})
        for _ in range(500):
            if client.get("/drift").json()["windows"]:
                break
            time.sleep(0.01)
        assert client.get("/drift").json()["windows"] == 1
        assert values(client)["drift_windows_total"] == 1
    with pytest.raises(FileNotFoundError, match="no monitor"):
        create_app(ServeConfig(drift=str(tmp_path / "nothing")))


def test_a_monitor_sees_only_the_model_it_was_made_for(models: Path) -> None:
    recorder = Recorder()
    recorder.model = read_card(models / "served").sha256[MODEL][:12]
    with serving(create_app(ServeConfig(bundle=str(models / "served")), recorder)) as client:

        def seen_after(text: str) -> int:
            client.post("/predict", json={"texts": [text]})
            time.sleep(0.1)
            return recorder.rows

        assert seen_after("good") == 1 and client.get("/drift").json()["watching"] is True
        assert client.post("/reload", json={"bundle": "other"}).status_code == 200
        assert seen_after("bad") == 1 and client.get("/drift").json()["watching"] is False
        assert client.post("/reload", json={"bundle": "served"}).status_code == 200
        assert seen_after("room") == 2


def test_a_webhook_without_a_monitor_is_refused() -> None:
    with pytest.raises(InputError, match="webhook needs a monitor"):
        ServeConfig(webhook="https://example.org")


def test_with_a_key_all_but_the_probes_want_it(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPTIMIZATION_API_KEY", "s3cret")
    app = create_app(ServeConfig(bundle=str(models / "served")))
    monkeypatch.delenv("OPTIMIZATION_API_KEY")
    with serving(app) as client:
        for path in ("/healthz", "/readyz", "/metrics", "/openapi.json"):
            assert client.get(path).status_code == 200
        for key in (None, "", "wrong", "s3cretx", "\xff"):
            headers = {} if key is None else {b"X-API-Key": key.encode("latin-1")}
            for path in ("/predict", "/reload"):
                answer = client.post(path, json={"texts": ["good"]}, headers=headers)
                assert (answer.status_code, answer.json()["error"]["type"]) == (401, "Unauthorized")
            assert client.get("/drift", headers=headers).status_code == 401
        assert client.post("/predict", json={"texts": ["good"]}, headers={"X-API-Key": "s3cret"}).status_code == 200
        assert values(client)['classifier_rejections_total{reason="unauthorized"}'] == 15
        assert "APIKeyHeader" in client.get("/openapi.json").text


def test_until_the_model_is_loaded_the_service_lives_but_is_not_ready(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, load = threading.Event(), fastapi_server.ServedModel
    monkeypatch.setattr(fastapi_server, "ServedModel", lambda *args: (gate.wait(10), load(*args))[1])
    with serving(create_app(ServeConfig(bundle=str(models / "served"))), ready=False) as client:
        assert client.get("/healthz").status_code == 200
        assert client.get("/metrics").status_code == 200
        for answer in (
            client.get("/readyz"),
            client.post("/predict", json={"texts": ["good"]}),
            client.post("/reload"),
        ):
            assert answer.status_code == 503
            assert answer.json()["error"]["type"] == "Unavailable" and answer.headers["retry-after"] == "1"
        gate.set()
        wait_until(lambda: client.get("/readyz").status_code == 200)
        assert client.post("/predict", json={"texts": ["good"]}).status_code == 200


def test_a_request_that_takes_too_long_is_given_up_and_its_waiting_texts_are_never_computed(models: Path) -> None:
    app = create_app(
        ServeConfig(bundle=str(models / "served"), timeout=0.4, queue_seconds=0.4, parallel=1, max_wait_ms=0)
    )
    with serving(app) as client, ThreadPoolExecutor(4) as pool:
        seen: list[Any] = []
        slowed(app, 0.7, seen)
        first = pool.submit(client.post, "/predict", json={"texts": ["good"]})
        time.sleep(0.1)
        second = pool.submit(client.post, "/predict", json={"texts": ["bad bed", "room"]})
        for answer in (first.result(), second.result()):
            assert (answer.status_code, answer.json()["error"]["type"]) == (504, "TimedOut")
            assert int(answer.headers["retry-after"]) >= 1
        time.sleep(0.5)  # the lane is free again long ago
        assert len(seen) == 1
        assert app.state.service.batcher.waiting_texts == 0
        assert values(client)['classifier_rejections_total{reason="timeout"}'] == 2


def test_texts_of_a_client_that_has_gone_are_never_computed(models: Path) -> None:
    app = create_app(ServeConfig(bundle=str(models / "served"), parallel=1, max_wait_ms=0))
    with serving(app) as client, ThreadPoolExecutor(2) as pool:
        seen: list[Any] = []
        gate = threading.Event()
        slowed(app, gate, seen)
        first = pool.submit(client.post, "/predict", json={"texts": ["good"]})
        wait_until(lambda: seen)
        body = b'{"texts": ["bad bed", "room"]}'
        head = "POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        head += f"Content-Length: {len(body)}\r\n\r\n"
        batcher = app.state.service.batcher
        for _ in range(3):
            with socket.create_connection((client.base_url.host, client.base_url.port)) as raw:
                raw.sendall(head.encode() + body)
                wait_until(lambda: batcher.waiting_texts == 2)
            wait_until(lambda: batcher.waiting_texts == 0)
        gate.set()
        assert first.result().status_code == 200
        assert len(seen) == 1
        assert values(client)['classifier_rejections_total{reason="disconnected"}'] == 3


def test_under_twice_its_capacity_the_service_stays_useful_and_healthy(models: Path) -> None:
    """Two lanes that sleep 250 ms for a batch of one text: eight texts a second, of sixteen that come."""
    config = ServeConfig(bundle=str(models / "served"), max_batch_tokens=1, queue_seconds=0.5, max_wait_ms=0)
    app = create_app(config)
    body = b'{"texts": ["good"]}'
    asked = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(
        body
    )
    health: list[float] = []
    results: list[tuple[bytes, float, bytes]] = []

    async def send(address: tuple[str, int], request: bytes) -> bytes:
        reader, writer = await asyncio.open_connection(*address)
        writer.write(request)
        answer = await reader.readuntil(b"\r\n\r\n")
        writer.close()
        return answer

    async def load(address: tuple[str, int]) -> None:
        async def ask(due: float) -> None:
            await asyncio.sleep(due - time.monotonic())
            answer = await send(address, asked + body)
            again = re.search(rb"retry-after: (\d+)", answer)
            results.append((answer[9:12], time.monotonic() - due, again[1] if again else b""))

        async def probe(due: float) -> None:
            await asyncio.sleep(due - time.monotonic())
            assert b" 200 " in await send(address, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            health.append(time.monotonic() - due)

        start = time.monotonic() + 0.1
        await asyncio.gather(*(ask(start + i / 16) for i in range(48)), *(probe(start + i / 10) for i in range(30)))

    with serving(app) as client:
        slowed(app, 0.25)
        asyncio.run(load((str(client.base_url.host), client.base_url.port or 0)))
        counts = Counter(status for status, _, _ in results)
        assert set(counts) == {b"200", b"429"}
        assert counts[b"200"] > 0.7 * 24  # of the capacity of three seconds
        accepted = sorted(seconds for status, seconds, _ in results if status == b"200")
        # 0.5 in the queue, 0.25 computed, the rest this machine's own; without limits it would be 3
        assert accepted[int(0.9 * len(accepted))] < 2
        assert all(again == b"1" for status, _, again in results if status == b"429")
        assert sorted(health)[15] < 0.25
        assert values(client)['classifier_rejections_total{reason="queue_full"}'] == counts[b"429"]


def test_a_batcher_that_has_failed_is_no_longer_healthy(models: Path) -> None:
    app = create_app(ServeConfig(bundle=str(models / "served")))
    with serving(app) as client:
        assert client.get("/healthz").status_code == 200
        app.state.service._tasks[0].get_loop().call_soon_threadsafe(app.state.service._tasks[0].cancel)
        wait_until(lambda: client.get("/healthz").status_code != 200)
        answer = client.get("/healthz")
        assert answer.status_code == 503 and answer.json()["error"]["message"] == "The batcher has failed."


def test_an_error_of_the_model_is_a_500_in_json_and_the_next_request_works(models: Path) -> None:
    app = create_app(ServeConfig(bundle=str(models / "served")))
    with serving(app) as client:
        model = app.state.service.model
        run = model.run
        model.run = lambda ids: 1 / 0
        answer = client.post("/predict", json={"texts": ["good"]})
        assert (answer.status_code, answer.json()["error"]["type"]) == (500, "InternalError")
        assert "division" not in answer.text and answer.headers["x-request-id"]
        model.run = run
        assert client.post("/predict", json={"texts": ["good"]}).status_code == 200


# --- Reloads ----------------------------------------------------------------------------------------------------------

REFUSED = {
    "nothing": (404, "no bundle"),
    "cut": (422, "is not the file"),
    "text": (422, "no ONNX model"),
    "three": (422, "gives 2 logits"),
    "labels": (409, "bad, good"),
    "../models": (403, "folder of models"),
    "/etc": (403, "folder of models"),
    "way-out": (403, "folder of models"),
    ".": (404, "no bundle"),
    "a\0b": (422, "no path"),
    "a" * 999: (404, ""),
}


def test_a_bundle_that_can_not_be_served_is_refused_and_the_old_one_goes_on(models: Path) -> None:
    app = create_app(ServeConfig(bundle=str(models / "served")))
    with serving(app) as client:
        version = client.get("/readyz").json()["model_version"]
        for name, (status, word) in REFUSED.items():
            answer = client.post("/reload", json={"bundle": name})
            assert answer.status_code == status or (name == "a" * 999 and answer.status_code == 422), (
                name,
                answer.text,
            )
            assert word in answer.json()["error"]["message"]
            assert str(models) not in answer.text  # what lies where is nobody's business
        answer = client.post("/predict", json={"texts": ["good"]})
        assert (answer.status_code, answer.json()["model_version"]) == (200, version)
        assert values(client)['classifier_reloads_total{outcome="refused"}'] == 7  # all but bad paths


def test_another_bundle_and_other_labels_are_served_when_that_is_asked_for(models: Path) -> None:
    app = create_app(ServeConfig(bundle=str(models / "served")))
    with serving(app) as client:
        old = client.get("/readyz").json()["model_version"]
        answer = client.post("/reload", json={"bundle": "labels", "allow_new_labels": True})
        assert answer.json()["previous_version"] == old != answer.json()["model_version"]
        found = client.post("/predict", json={"texts": ["good"]}).json()
        assert set(found["predictions"][0]["probabilities"]) == {"bad", "good"}
        assert found["model_version"] == answer.json()["model_version"]
        assert client.post("/reload").json()["model_version"] == answer.json()["model_version"]  # the same again
        series = values(client)
        assert series[f'classifier_model_info{{techniques="fp32",version="{old}"}}'] == 0
        assert series['classifier_reloads_total{outcome="done"}'] == 2


def test_a_bundle_damaged_on_disk_is_refused_at_a_reload_of_the_same_folder(models: Path, tmp_path: Path) -> None:
    shutil.copytree(models / "served", tmp_path / "served")
    app = create_app(ServeConfig(bundle=str(tmp_path / "served")))
    with serving(app) as client:
        (tmp_path / "served" / MODEL).write_bytes(b"")
        assert client.post("/reload").status_code == 422
        shutil.rmtree(tmp_path / "served")
        assert client.post("/reload").status_code == 404
        assert client.post("/predict", json={"texts": ["good"]}).status_code == 200


def test_reloads_under_load_lose_no_request_and_mix_no_models(models: Path) -> None:
    app = create_app(ServeConfig(bundle=str(models / "served")))
    expected = OnnxClassifier(models / "served").predict(sentences(8))
    with serving(app) as client, ThreadPoolExecutor(9) as pool:
        stop = threading.Event()

        def ask() -> Counter[str]:
            versions: Counter[str] = Counter()
            while not stop.is_set():
                answer = client.post("/predict", json={"texts": sentences(8)})
                assert answer.status_code == 200
                assert [one["label"] for one in answer.json()["predictions"]] == [one.label for one in expected]
                versions[answer.json()["model_version"]] += 1
            return versions

        asking = [pool.submit(ask) for _ in range(8)]
        for name in ("other", "served") * 3:
            assert client.post("/reload", json={"bundle": name}).status_code == 200
        stop.set()
        versions = sum((one.result() for one in asking), Counter())
    assert len(versions) == 2 and min(versions.values()) > 3


def test_two_reloads_at_once_are_one_too_many(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = create_app(ServeConfig(bundle=str(models / "served")))
    with serving(app) as client, ThreadPoolExecutor(1) as pool:
        gate, load = threading.Event(), fastapi_server.ServedModel
        monkeypatch.setattr(fastapi_server, "ServedModel", lambda *args: (gate.wait(10), load(*args))[1])
        first = pool.submit(client.post, "/reload")
        wait_until(app.state.service._reloading.locked)
        assert client.post("/reload").status_code == 409
        assert client.post("/predict", json={"texts": ["good"]}).status_code == 200
        gate.set()
        assert first.result().status_code == 200


# --- The service as a process -----------------------------------------------------------------------------------------

LAUNCH = """
import sys, time

class Without:  # PyTorch and transformers, as in the image
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers", "onnx", "scipy", "sklearn"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

if __name__ == "__main__":
    sys.meta_path.insert(0, Without())
    from model_optimization.deployment import fastapi_server, onnx_conversion
    from shared.config import run_commands
    seconds, run = float(sys.argv.pop(1)), onnx_conversion.OnnxClassifier.run

    def slow(self, ids):
        time.sleep(seconds)
        return run(self, ids)

    onnx_conversion.OnnxClassifier.run = slow
    run_commands({"serve": fastapi_server.serve}, module=fastapi_server.MODULE)
"""


@contextmanager
def process(
    tmp_path: Path, bundle: Path, *flags: str, slow: float = 0
) -> Iterator[tuple[subprocess.Popen[bytes], str, Path]]:
    """Start the command of the README without PyTorch; yields process, address and log."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (tmp_path / "launch.py").write_text(LAUNCH)
    log = tmp_path / "log"
    command = [
        sys.executable,
        str(tmp_path / "launch.py"),
        str(slow),
        "serve",
        "--bundle",
        str(bundle),
        "--port",
        str(port),
    ]
    with log.open("wb") as target:
        server = subprocess.Popen(
            [*command, *flags],
            stderr=target,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(1500):
            try:
                if httpx.get(f"{address}/readyz", trust_env=False).status_code == 200:
                    break
            except httpx.TransportError:
                pass
            assert server.poll() is None, log.read_text()
            time.sleep(0.02)
        yield server, address, log
    finally:
        server.kill()
        server.wait()


def test_sigterm_in_the_middle_of_load_loses_no_request_that_was_accepted(models: Path, tmp_path: Path) -> None:
    flags = ("--drain_seconds", "0.6", "--max_batch_tokens", "64")
    with process(tmp_path, models / "served", *flags, slow=0.03) as (server, address, log):
        stopped = threading.Event()

        def ask() -> list[str]:
            told = []
            with httpx.Client(base_url=address, timeout=20, trust_env=False) as client:
                for _ in range(400):
                    try:
                        answer = client.post("/predict", json={"texts": ["good bed", "bad"]})
                    except httpx.ConnectError:  # nobody listens any more: not accepted
                        assert stopped.is_set()
                        return told
                    told.append(f"{answer.status_code} {answer.headers.get('connection', '')}".strip())
            raise AssertionError("the server never stopped")

        with ThreadPoolExecutor(12) as pool:
            asking = [pool.submit(ask) for _ in range(12)]
            time.sleep(0.5)
            stopped.set()
            server.send_signal(signal.SIGTERM)
            time.sleep(0.2)
            ready = httpx.get(f"{address}/readyz", trust_env=False)
            assert (ready.status_code, ready.json()["error"]["message"]) == (503, "It is about to stop.")
            answers = Counter(itertools.chain.from_iterable(one.result() for one in asking))
        assert set(answers) == {"200", "200 close"}
        assert answers["200 close"] >= 12  # while it drained, each client was asked to go elsewhere
        assert server.wait(10) == 0
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        assert sum(line.get("path") == "/predict" and line["status"] == 200 for line in lines) == sum(answers.values())


def test_workers_are_not_started_without_the_monitor_that_they_need(models: Path, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(FileNotFoundError, match="holds no monitor"):
        serve(ServeConfig(bundle=str(models / "served"), port=port, workers=2, drift=str(tmp_path)))


def test_logs_are_json_and_hold_no_texts(models: Path, tmp_path: Path) -> None:
    with process(tmp_path, models / "served", "--drain_seconds", "0") as (server, address, log):
        httpx.post(f"{address}/predict", json={"texts": ["good bed"]}, headers={"X-Request-ID": "one"}, trust_env=False)
        httpx.post(f"{address}/predict", json={"texts": ["secretword"], "x": 1}, trust_env=False)
        httpx.post(f"{address}/nothing/%0A%22injected", trust_env=False)
        server.send_signal(signal.SIGTERM)
        assert server.wait(10) == 0
        lines = [json.loads(line) for line in log.read_text().splitlines()]
    requests = [line for line in lines if line["message"] == "request"]
    assert [line["status"] for line in requests] == [200, 422, 404]  # probes are not logged
    first = requests[0]
    assert (first["request_id"], first["texts"], first["tokens"], first["batch"]) == ("one", 1, 4, 1)
    stages = sum(first[f"{stage}_seconds"] for stage in ("tokenize", "queue", "infer"))
    assert 0 < stages <= first["total_seconds"] + 1e-5 <= first["seconds"] + 2e-5
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", first["time"])
    assert requests[1]["reason"] == "invalid"
    assert "secretword" not in log.read_text() and "good bed" not in log.read_text()


def test_sighup_reads_the_bundle_anew_and_a_broken_one_is_survived(models: Path, tmp_path: Path) -> None:
    link = tmp_path / "current"
    link.symlink_to(models / "served")
    with process(tmp_path, link, "--drain_seconds", "0") as (server, address, log):
        with httpx.Client(base_url=address, trust_env=False) as client:
            old = client.get("/readyz").json()["model_version"]
            link.unlink()
            link.symlink_to(models / "other")
            server.send_signal(signal.SIGHUP)
            wait_until(lambda: client.get("/readyz").json()["model_version"] != old)
            new = client.get("/readyz").json()["model_version"]
            link.unlink()
            server.send_signal(signal.SIGHUP)
            wait_until(lambda: "reload refused" in log.read_text())
            assert client.get("/readyz").json()["model_version"] == new
        server.send_signal(signal.SIGTERM)
        assert server.wait(10) == 0


def test_several_workers_count_together_reload_together_and_one_that_dies_is_replaced(
    models: Path, tmp_path: Path
) -> None:
    with process(tmp_path, models / "served", "--workers", "2", "--drain_seconds", "0") as (server, address, log):

        def get(path: str) -> httpx.Response:
            return httpx.get(f"{address}{path}", trust_env=False)  # a connection of its own: any of the workers

        def lines(message: str) -> list[dict[str, Any]]:
            told = [json.loads(line) for line in log.read_text().splitlines()]
            return [line for line in told if line["message"] == message]

        wait_until(lambda: len(lines("ready")) >= 2)
        for _ in range(40):
            assert httpx.post(f"{address}/predict", json={"texts": ["good"]}, trust_env=False).status_code == 200
        for _ in range(6):  # whichever worker answers
            assert 'classifier_predictions_total{label="positive"} 40.0' in get("/metrics").text or (
                'classifier_predictions_total{label="negative"} 40.0' in get("/metrics").text
            )
        old = get("/readyz").json()["model_version"]
        new = httpx.post(f"{address}/reload", json={"bundle": "other"}, trust_env=False).json()["model_version"]
        assert old != new
        wait_until(lambda: len(lines("reloaded")) >= 2)  # the other one has followed
        assert {get("/readyz").json()["model_version"] for _ in range(12)} == {new}
        children = psutil.Process(server.pid).children()
        victim = next(child.pid for child in children if "spawn_main" in " ".join(child.cmdline()))
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: len(lines("ready")) >= 3)
        assert lines("ready")[-1]["model_version"] == new  # it serves what the others do
        assert f"worker {victim} died" in log.read_text()
        for _ in range(6):
            assert get("/readyz").status_code == 200
        server.send_signal(signal.SIGTERM)
        assert server.wait(15) == 0


def test_what_can_not_be_served_is_one_line_and_a_status(
    models: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.config.setup_logging", lambda package: None)  # it would outlive this test

    def failed(*flags: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as ended:
            run_commands({"serve": fastapi_server.serve}, module=fastapi_server.MODULE, argv=["serve", *flags])
        return int(ended.value.code or 0), capsys.readouterr().err

    for flag in (
        "--port=0",
        "--workers=0",
        "--timeout=0",
        "--queue_texts=1",
        "--queue_seconds=11",
        "--max_wait_ms=-1",
        "--max_bytes=1",
    ):
        status, error = failed(flag)
        name = flag.partition("=")[0].strip("-")
        assert status == 2 and error.startswith(f"error: {name} must be in"), error
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        status, error = failed("--bundle", str(models / "served"), "--port", str(taken.getsockname()[1]))
    assert status == 1 and "Can't listen on 127.0.0.1" in error and "Traceback" not in error
    for name, status in (("nothing", 1), ("cut", 2)):
        command = [sys.executable, "-m", fastapi_server.MODULE, "serve", "--bundle", str(models / name)]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        done = subprocess.run([*command, "--port", port], cwd=ROOT, capture_output=True, text=True, timeout=30)
        assert done.returncode == status
        assert done.stderr.splitlines()[-1].startswith(("error: ", "hint: ")) and "Traceback" not in done.stderr
