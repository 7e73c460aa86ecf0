"""Latency is measured honestly: variants in turn, load from when it was due, against a server whose time is known."""

import asyncio
import json
import math
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from model_optimization.deployment.onnx_conversion import OnnxClassifier, TextEncoder
from model_optimization.monitoring import performance_metrics
from model_optimization.monitoring.performance_metrics import (
    MIXED,
    MODULE,
    SINGLE,
    Latency,
    Load,
    Target,
    Variant,
    bodies_of,
    closed_loop,
    compare,
    due_times,
    find_knee,
    knee_command,
    load_command,
    measure_latency,
    memory,
    open_loop,
    pareto_front,
    plot_variants,
    process_memory,
    standard_batches,
    table_of_variants,
    why_too_much,
)
from shared.config import run_commands
from shared.errors import InputError

COMMANDS = {"compare": compare, "load": load_command, "knee": knee_command, "memory": memory}
RUNS = Path("outputs/model_optimization")


class Server:
    """Answers one request after the other, each in a known time; a full queue is 429.

    Args:
        service: Seconds a request.
        queue: Most requests that wait or are served.
        stall: Number of a request → seconds that it takes instead.
        status: Of every answer.
        hang_up: Number of the first request whose connection is closed without an answer.
    """

    def __init__(
        self, service: float, *, queue: int = 10**6, stall: dict[int, float] | None = None, status: int = 200,
        hang_up: int = 10**6,
    ) -> None:  # fmt: skip
        self.service, self.queue, self.stall, self.status, self.hang_up = service, queue, stall or {}, status, hang_up
        self.present = self.taken = self.connections = 0
        self.bodies: list[bytes] = []
        self.keys: set[bytes] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = int(head.partition(b"content-length:")[2].split(b"\r\n")[0] or 0)
                self.keys.add(head.partition(b"x-api-key:")[2].split(b"\r\n")[0].strip())
                body = await reader.readexactly(length)
                status = await self.answer(body) if head.startswith(b"post") else 200
                writer.write(f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def answer(self, body: bytes) -> int:
        if self.taken >= self.hang_up:
            raise ConnectionError
        if self.present >= self.queue:
            return 429
        self.present += 1
        try:
            async with self.lock:
                number, self.taken = self.taken, self.taken + 1
                self.bodies.append(body)
                await asyncio.sleep(self.stall.get(number, self.service))
        finally:
            self.present -= 1
        return self.status

    async def main(self, started: Callable[[int], None]) -> None:
        self.lock, self.stop, self.loop = asyncio.Lock(), asyncio.Event(), asyncio.get_running_loop()
        server = await asyncio.start_server(self.serve, "127.0.0.1", 0, backlog=1000)
        started(server.sockets[0].getsockname()[1])
        await self.stop.wait()


@contextmanager
def serving(*arguments: Any, **options: Any) -> Iterator[tuple[str, Server]]:
    server, ports, ready = Server(*arguments, **options), [], threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(server.main(lambda port: (ports.append(port), ready.set()))))
    thread.start()
    ready.wait(10)
    try:
        yield f"http://127.0.0.1:{ports[0]}/predict", server
    finally:
        server.loop.call_soon_threadsafe(server.stop.set)
        thread.join(10)


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        run_commands(COMMANDS, module=MODULE, argv=arguments, extra="optimization")
    return int(end.value.code)


# --- Load -------------------------------------------------------------------------------------------------------------


def test_open_loop_shows_the_queue_that_closed_loop_hides() -> None:
    with serving(0.01) as (url, _):  # 100 a second at best
        target = Target(url, [b"{}"])
        hidden = closed_loop(target, 1, 30).figures()
        shown = open_loop(target, 200, 0.6).figures()  # 120 requests take 1.2 s, the last was due after 0.6
    assert hidden["p50"] < 150
    assert shown["p50"] > 250 and shown["p99"] > 500
    assert shown["requests"] == 120 and shown["throughput"] < 110


def test_a_stall_of_the_server_delays_all_that_were_due_meanwhile() -> None:
    with serving(0.001, stall={20: 0.5}) as (url, _):
        closed = np.array(closed_loop(Target(url, [b"{}"]), 1, 60).latencies)
    with serving(0.001, stall={20: 0.5}) as (url, _):
        open_ = np.array(open_loop(Target(url, [b"{}"]), 100, 0.8).latencies)
    assert 1 <= (closed > 0.25).sum() <= 3
    assert (open_ > 0.25).sum() > 15  # those due in the first half of the stall waited for half of it at least


def test_latency_counts_from_when_a_request_was_due_even_if_this_end_held_it_back() -> None:
    with serving(0.02) as (url, _):
        load = open_loop(Target(url, [b"{}"], most_open=1), 200, 0.2)
    assert max(load.latencies) > 0.4  # 40 requests of 20 ms, the last due after 0.2 s
    assert np.median(load.lateness) < np.median(load.latencies) / 2  # it is not the generator that was late


def test_a_generator_that_was_held_up_counts_it_and_catches_up() -> None:
    def hold_up(number: int, _: bytes) -> None:
        if number == 5:
            time.sleep(0.4)  # in the generator's own event loop

    with serving(0) as (url, _):
        load = open_loop(Target(url, [b"{}"], on_answer=hold_up), 50, 1)
    late, latencies = np.array(load.lateness), np.array(load.latencies)
    assert (
        late > 0.2
    ).sum() >= 8 and load.generator_was_late()  # 20 were due meanwhile, half of them in its first half
    assert (latencies >= late).all()  # what this end was late is part of what a user would have waited
    assert np.median(late[-10:]) < 0.2


def test_every_status_is_counted_and_only_200_counts_as_accepted() -> None:
    with serving(0.02, queue=3) as (url, _):
        load = open_loop(Target(url, [b"{}"]), 200, 0.3)
    figures = load.figures()
    accepted = load.statuses.count("200")
    assert set(load.statuses) == {"200", "429"} and len(load.statuses) == 60
    assert figures["rejected"] == load.statuses.count("429") / 60
    assert len(load.accepted()) == accepted and figures["goodput"] == pytest.approx(accepted / load.seconds)
    assert figures["failed"] == 0


def test_an_answer_that_does_not_come_is_a_timeout() -> None:
    with serving(0.01, stall={1: 5}) as (url, _):
        load = closed_loop(Target(url, [b"{}"], timeout=1), 1, 1)
    assert load.statuses == ["timeout"]
    assert load.figures()["p99"] == math.inf and load.figures()["failed"] == 1


def test_a_server_that_hangs_up_is_counted_and_raises_nothing() -> None:
    with serving(0.001, hang_up=6) as (url, _):  # the one that tries out, and five more, are answered
        load = closed_loop(Target(url, [b"{}"], timeout=5), 1, 8)
    assert load.statuses == ["200"] * 5 + ["failed"] * 3


def test_a_client_uses_its_connection_again() -> None:
    with serving(0.001) as (url, server):
        closed_loop(Target(url, [b"{}"]), 1, 5)
    assert server.connections == 1


def test_closed_loop_sends_each_request_once_and_hands_on_the_answers() -> None:
    answers: dict[int, bytes] = {}
    bodies = [b"0", b"1", b"2"]
    with serving(0.001) as (url, server):
        load = closed_loop(Target(url, bodies, on_answer=answers.__setitem__), 4, 30)
    assert answers == {number: bodies[number % 3] for number in range(30)}
    assert len(server.bodies) == 31  # and the one that tries out
    assert load.rate is None and load.statuses == ["200"] * 30


def test_memory_and_the_probe_are_watched_meanwhile() -> None:
    with serving(0.001) as (url, _):
        probe = url.replace("predict", "healthz")
        load = open_loop(Target(url, [b"{}"], pid=os.getpid(), probe=probe), 50, 0.7)
    figures = load.figures()
    assert 20 < figures["memory_first"] <= figures["memory_peak"]
    assert figures["memory_last"] == load.memory[-1][1]
    assert load.probes and figures["probe_max"] == max(load.probes) * 1000 < math.inf
    assert figures["probe_failed"] == 0


def test_probes_that_fail_are_counted_and_not_taken_for_slow_ones() -> None:
    with serving(0.001) as (url, _), socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # and nobody listens
        load = open_loop(Target(url, [b"{}"], probe=f"http://127.0.0.1:{closed.getsockname()[1]}"), 50, 0.5)
    assert load.figures()["probe_failed"] == len(load.probes) > 0
    assert load.figures()["probe_max"] == math.inf
    assert Load(1, 1, ["200"], [0.1], [0.0], probes=[0.1, math.inf]).figures()["probe_max"] == 100


def test_a_load_in_which_nothing_is_due_is_refused() -> None:
    with pytest.raises(InputError, match="No request is due"):
        open_loop(Target("http://localhost:1", [b"{}"]), 0.01, 0.1, poisson=True)


def test_it_runs_inside_a_running_event_loop_as_notebooks_have_one() -> None:
    async def notebook(url: str) -> Load:
        return closed_loop(Target(url, [b"{}"]), 1, 2)

    with serving(0.001) as (url, _):
        assert asyncio.run(notebook(url)).statuses == ["200", "200"]
    with pytest.raises(ConnectionError, match="no answer"):
        asyncio.run(notebook("http://127.0.0.1:9/predict"))


def test_a_generator_that_comes_late_is_told_from_a_slow_server() -> None:
    slow_server = Load(1, 10, ["200"] * 10, [0.9] * 10, [0.01] * 10)
    slow_generator = Load(1, 10, ["200"] * 10, [0.9] * 10, [0.001] * 8 + [0.5] * 2)
    assert not slow_server.generator_was_late() and slow_generator.generator_was_late()
    assert why_too_much(slow_server, 500) == "p99 was 900 ms, over 500"
    assert why_too_much(slow_generator, 500).startswith("p99 was 900 ms, over 500; but the generator itself was late")
    assert why_too_much(slow_server, 1000) == why_too_much(slow_generator, 1000) == ""
    assert (
        why_too_much(Load(1, 10, ["200"] * 8 + ["429", "500"], [0.1] * 10), 500) == "10% were rejected and 10% failed"
    )


def test_a_rate_that_was_too_much_while_the_generator_was_late_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def fake(target: Target, rate: float, seconds: float, what: str) -> Load:
        tried.append(rate)
        late = len(tried) == 1  # the machine stalls once, at the beginning
        slow = late or rate > 50
        return Load(1, rate, ["200"] * 10, [2.0 if slow else 0.01] * 10, [1.0 if late else 0.0] * 10)

    monkeypatch.setattr(performance_metrics, "open_loop", fake)
    monkeypatch.setattr(performance_metrics.time, "sleep", lambda _: None)
    knee = find_knee(Target("http://x", [b"{}"]), start=20, factor=2, refine=2)
    assert tried == [20, 20, 40, 80, 60, 50]
    assert knee.rate == 50 and knee.reason == "p99 was 2000 ms, over 500"


def test_figures_are_those_of_numpy() -> None:
    latencies = np.random.default_rng(0).exponential(0.1, 500)
    statuses = ["200"] * 400 + ["429"] * 60 + ["500"] * 30 + ["timeout"] * 10
    figures = Load(5, 100, statuses, latencies.tolist()).figures(limit_ms=100)
    accepted = latencies[:400] * 1000
    assert [figures[name] for name in ("p50", "p95", "p99")] == pytest.approx(np.percentile(accepted, [50, 95, 99]))
    assert figures["goodput"] == pytest.approx((accepted <= 100).sum() / 5)
    assert figures["throughput"] == pytest.approx(490 / 5)
    assert (figures["rejected"], figures["failed"]) == pytest.approx((60 / 500, 40 / 500))


@given(rate=st.floats(0.5, 500), seconds=st.floats(0.01, 20))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_due_times_are_even_and_within_the_time(rate: float, seconds: float) -> None:
    times = due_times(rate, seconds)
    assert times[0] == 0 and times[-1] < seconds + 1e-9
    assert len(times) == math.ceil(rate * seconds)
    assert np.allclose(np.diff(times), 1 / rate)


def test_random_due_times_are_those_of_a_poisson_process() -> None:
    times = due_times(100, 50, poisson=True, seed=3)
    assert 0 < times[0] and times[-1] < 50 and (np.diff(times) > 0).all()
    assert stats.kstest(np.diff(times), stats.expon(scale=1 / 100).cdf).pvalue > 0.01
    assert abs(len(times) - 5000) < 4 * np.sqrt(5000)
    assert (times == due_times(100, 50, poisson=True, seed=3)).all()


def test_the_knee_lies_where_the_server_is_at_its_limit() -> None:
    with serving(0.01, queue=8) as (url, _):  # at most 100 a second
        knee = find_knee(Target(url, [b"{}"]), start=20, factor=2.5, seconds=0.6, limit_ms=300, refine=1)
    rates = [load.rate for load in knee.loads]
    assert knee.rate <= 110 and (knee.rate in rates or knee.rate == 0)  # a machine that stalls may bear less
    assert rates == sorted(rates) and rates[-1] > knee.rate
    assert "rejected" in knee.reason or "p99" in knee.reason


def test_the_knee_is_the_highest_rate_where_none_was_too_much() -> None:
    with serving(0) as (url, _):
        knee = find_knee(Target(url, [b"{}"]), start=10, factor=2, most=20, seconds=0.3, limit_ms=2000)
    assert knee.rate == 20 and "no higher rate than 20" in knee.reason


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"url": "localhost:8000"}, "url must be an address"),
        ({"url": "http:///predict"}, "url must be an address"),
        ({"url": "http://x:99999"}, "url must be an address"),
        ({"url": "http://[::1/predict"}, "url must be an address"),
        ({"url": "http://x", "probe": "healthz"}, "probe must be an address"),
        ({"url": "http://x", "bodies": []}, "no text to send"),
        ({"url": "http://x", "timeout": 0}, "timeout must be"),
        ({"url": "http://x", "most_open": 0}, "most_open must be"),
    ],
)
def test_a_wrong_target_is_told(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Target(**{"bodies": [b"{}"], **options})


def test_wrong_loads_are_told() -> None:
    target = Target("http://127.0.0.1:9/predict", [b"{}"])
    for wrong in (lambda: open_loop(target, 0, 1), lambda: open_loop(target, 1, 0), lambda: closed_loop(target, 0, 1),
                  lambda: closed_loop(target, 1, 0), lambda: find_knee(target, factor=1)):  # fmt: skip
        with pytest.raises(InputError, match="must be in"):
            wrong()
    with pytest.raises(ConnectionError, match="no answer from http://127.0.0.1:9/predict"):
        open_loop(target, 10, 0.1)


def test_a_request_that_the_server_refuses_is_told_before_the_load() -> None:
    with serving(0, status=422) as (url, _), pytest.raises(InputError, match="refuses the first request with 422"):
        open_loop(Target(url, [b"{}"]), 10, 0.1)


def test_texts_are_put_into_bodies_as_json() -> None:
    text = 'She said "no" \\ 早餐\n'
    assert [json.loads(body) for body in bodies_of([text])] == [{"texts": [text]}]
    assert json.loads(bodies_of([text], '{"inputs": "{text}", "top": 1}')[0]) == {"inputs": text, "top": 1}
    with pytest.raises(InputError, match="body must hold"):
        bodies_of([text], '{"texts": []}')
    with pytest.raises(InputError, match="body is no JSON"):
        bodies_of([text], '{"texts": ["{text}"]')


# --- Variants ---------------------------------------------------------------------------------------------------------

POINTS = st.lists(st.tuples(*[st.integers(0, 5)] * 3), min_size=1, max_size=12)


@given(points=POINTS)
@settings(max_examples=150, deadline=None, derandomize=True)
def test_the_pareto_front_is_its_definition(points: list[tuple[int, ...]]) -> None:
    def beats(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
        return all(x <= y for x, y in zip(a, b, strict=True)) and a != b

    front = pareto_front(points)
    assert front.tolist() == [not any(beats(other, point) for other in points) for point in points]
    assert front.any()
    best = [point for point, on in zip(points, front, strict=True) if on]
    assert all(on or any(beats(one, point) for one in best) for point, on in zip(points, front, strict=True))
    assert pareto_front(np.array(points) * 3.5 - 1).tolist() == front.tolist()


class Recorder:
    """A model that notes when it is run, and takes a known time."""

    def __init__(self, name: str, log: list[tuple[str, int]], seconds: float = 0.0):
        self.name, self.log, self.seconds = name, log, seconds
        self.encoder = SimpleNamespace(max_length=128, encode=lambda texts: [[1] * 128 for _ in texts])

    def run(self, ids: Any) -> None:
        self.log.append((self.name, len(ids)))
        time.sleep(self.seconds)


def test_models_are_timed_in_turn_and_warm_ups_do_not_count() -> None:
    log: list[tuple[str, int]] = []
    first, second = measure_latency([Recorder("a", log), Recorder("b", log, 0.01)], ["text"], repeats=4, warmup=2)
    assert log == [("a", 1), ("a", 32), ("b", 1), ("b", 32)] * 6
    assert first.keys() == second.keys() == {SINGLE, MIXED}
    assert second[SINGLE].median >= 10 > first[SINGLE].median
    assert second[SINGLE].median <= second[SINGLE].p95

    class Cold(Recorder):
        def run(self, ids: Any) -> None:
            self.seconds = 0.6 if len(self.log) < 2 else 0
            super().run(ids)

    assert measure_latency([Cold("c", [])], ["text"], repeats=5, warmup=1)[0][SINGLE].p95 < 250
    own = measure_latency([Recorder("d", log)], batches={"mine": [[1, 2]]}, repeats=1)
    assert list(own[0]) == ["mine"]


def test_the_standard_batches_are_one_text_of_128_tokens_and_32_as_they_come(tiny_bundle: Path) -> None:
    encoder = TextEncoder((tiny_bundle / "tokenizer.json").read_text(encoding="utf-8"), 512)
    texts = ["the room was clean", "bad", "the staff were not very good"]
    batches = standard_batches(encoder, texts)
    assert [len(row) for row in batches[SINGLE]] == [128]
    assert batches[SINGLE][0][-1] == encoder.encode(["bad"])[0][-1]  # it still ends with [SEP]
    assert batches[MIXED] == encoder.encode([texts[i % 3] for i in range(32)])
    short = OnnxClassifier(tiny_bundle).encoder
    assert [len(row) for row in standard_batches(short, texts)[SINGLE]] == [64]
    for nothing in ([], ["", "  "]):
        with pytest.raises(InputError, match="no text to measure"):
            standard_batches(encoder, nothing)


def test_the_table_shows_speedups_and_the_front_and_the_plot_is_drawn(tmp_path: Path) -> None:
    def variant(name: str, accuracy: float, size: float, ms: float, memory: float | None = 100) -> Variant:
        return Variant(name, accuracy, 1, size, memory, {SINGLE: Latency(ms, ms * 1.1), MIXED: Latency(8 * ms, 9 * ms)})

    variants = [variant("full", 0.95, 90, 40, None), variant("int8", 0.94, 23, 10), variant("poor", 0.9, 30, 20)]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table_of_variants(variants).splitlines()]
    assert [(row[0], row[-1]) for row in rows[2:]] == [("full", "★"), ("int8", "★"), ("poor", "")]
    assert rows[3][6] == rows[3][8] == "4.00×" and rows[2][4] == "–"
    plot_variants(variants, tmp_path / "variants.png")
    assert (tmp_path / "variants.png").read_bytes().startswith(b"\x89PNG")


def test_memory_is_that_of_a_process_of_its_own(tiny_bundle: Path, tmp_path: Path) -> None:
    assert 20 < process_memory(tiny_bundle) < 1000
    with pytest.raises(InputError, match="can't be measured"):
        process_memory(tmp_path)


# --- Commands ---------------------------------------------------------------------------------------------------------


def test_bundles_are_compared_by_one_command(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    bundles = f"{tiny_bundle},{tiny_bundle}"
    assert run("compare", "--bundles", bundles, "--repeats", "2", "--run", "both") == 0
    metrics = json.loads((RUNS / "both" / "results.json").read_text())["metrics"]
    assert metrics[f"{tiny_bundle} agreement"] == 1
    assert metrics[f"{tiny_bundle} {SINGLE} ms"] > 0
    assert (RUNS / "both" / "variants.png").exists()
    assert capsys.readouterr().out.count(str(tiny_bundle)) == 2
    assert run("compare", "--bundles", "missing") == 1
    assert run("compare", "--bundles", "[]") == 2


def test_a_server_is_loaded_by_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("texts.txt").write_text("The bed was cold.\nLovely.\n", encoding="utf-8")
    monkeypatch.setenv("OPTIMIZATION_API_KEY", "the-key")
    with serving(0.001) as (url, server):
        common = ("--url", url, "--texts", "texts.txt")
        assert run("load", *common, "--rate", "50", "--seconds", "0.4", "--run", "open") == 0
        assert run("load", *common, "--clients", "4", "--requests", "12", "--run", "closed") == 0
        assert run("knee", *common, "--start", "20", "--most", "20", "--seconds", "0.2", "--run", "knee",
                   "--limit_ms", "5000") == 0  # fmt: skip
    assert server.keys == {b"the-key"}  # and it is written nowhere
    assert not any("the-key" in path.read_text("utf-8", "replace") for path in RUNS.rglob("*") if path.is_file())
    assert {json.loads(body)["texts"][0] for body in server.bodies} == {"The bed was cold.", "Lovely."}
    results = {name: json.loads((RUNS / name / "results.json").read_text()) for name in ("open", "closed", "knee")}
    assert results["open"]["metrics"]["status 200"] == 20 and results["closed"]["metrics"]["status 200"] == 12
    assert results["knee"]["metrics"]["knee"] == 20
    assert (RUNS / "open" / "load.png").exists() and (RUNS / "knee" / "knee.png").exists()
    assert "knee: 20 a second" in capsys.readouterr().out
    assert run("load", "--url", "http://127.0.0.1:9/predict", "--texts", "texts.txt") == 1
    error = capsys.readouterr().err
    assert "no answer" in error and "Traceback" not in error
    assert run("load", "--rate", "0") == 2
    assert run("load", "--texts", "texts.txt", "--body", "{}") == 2
