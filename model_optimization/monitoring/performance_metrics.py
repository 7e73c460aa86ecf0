"""How fast, how large and how right: variants of a model side by side, and a server under load.

    python -m model_optimization.monitoring.performance_metrics compare --bundles my-bundle,my-bundle-int8
    python -m model_optimization.monitoring.performance_metrics load --url http://localhost:8000/predict --rate 200
    python -m model_optimization.monitoring.performance_metrics knee --url http://localhost:8000/predict

Users of a real service do not wait for one another. A test whose clients each send when their last answer has come
sends less the slower the server gets, and never sees the queue ("coordinated omission", Gil Tene, 2015). So load is
open loop here: requests are due at times fixed beforehand, and latency counts from when one was due. Closed loop is
there too, for throughput.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import logging
import os
import select
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar
from urllib.parse import urlsplit

import aiohttp
import numpy as np
from numpy.typing import ArrayLike, NDArray

from model_optimization.deployment.onnx_conversion import PROJECT, OnnxClassifier, TextEncoder, megabytes
from shared.config import check_range, run_commands
from shared.errors import InputError
from shared.logs import progress_bar
from shared.results import Run

if TYPE_CHECKING:
    from rich.progress import Progress

MODULE = "model_optimization.monitoring.performance_metrics"
NOT_RECIPE = {"recipe": False}
SINGLE, MIXED = "batch 1 × 128 tokens", "batch 32, mixed lengths"
LATE = 0.05  # seconds; a generator whose 99th percentile is later than this measures itself too
Ids = Sequence[Sequence[int]]
Result = TypeVar("Result")
logger = logging.getLogger(MODULE)


# --- Variants of a model ----------------------------------------------------------------------------------------------


class Runner(Protocol):
    """What can be timed: a bundle, a PyTorch subject, or anything with these two."""

    encoder: TextEncoder

    def run(self, ids: Ids) -> Any:
        """Compute one batch."""


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one batch."""

    median: float
    p95: float


def standard_batches(encoder: TextEncoder, texts: Sequence[str]) -> dict[str, list[list[int]]]:
    """Make the two batches of every table here: one text of exactly 128 tokens, and 32 texts as they come.

    Args:
        encoder: The model's; where it reads fewer than 128 tokens, the one text is as long as it reads.
        texts: Some; they are repeated where they do not suffice.

    Raises:
        InputError: There is no text.
    """
    mixed = [texts[i % len(texts)] for i in range(32)] if texts else []
    long = encoder.encode([" ".join([max(texts, key=len, default="")[:1000]] * 128)])[0]
    tokens = min(128, encoder.max_length)
    if len(long) < tokens:
        raise InputError("There is no text to measure with.")
    return {SINGLE: [long[: tokens - 1] + long[-1:]], MIXED: encoder.encode(mixed)}


def measure_latency(
    runners: Sequence[Runner],
    texts: Sequence[str] = (),
    *,
    batches: Mapping[str, Ids] | None = None,
    repeats: int = 30,
    warmup: int = 3,
    what: str = "measure latency",
) -> list[dict[str, Latency]]:
    """Time several models in turn, so that a machine that slows down slows all of them.

    Args:
        runners: The models.
        texts: What each makes its own :func:`standard_batches` of.
        batches: Name → ids; in place of ``texts``, for models of one vocabulary.
        repeats: Timed runs of each batch, > 0.
        warmup: Runs before them that are not counted: the first ones allocate memory.
        what: Name of the progress bar.

    Returns:
        For each model: name of the batch → median and 95th percentile.

    Raises:
        InputError: There are no texts and no batches.
    """
    check_range("repeats", repeats, 1)
    check_range("warmup", warmup, 0)
    jobs = [batches or standard_batches(runner.encoder, texts) for runner in runners]
    times: list[dict[str, list[float]]] = [{name: [] for name in its} for its in jobs]
    with progress_bar() as bar:
        task = bar.add_task(what, total=repeats + warmup, figures="")
        for repeat in range(repeats + warmup):
            for runner, its, its_times in zip(runners, jobs, times, strict=True):
                for name, ids in its.items():
                    started = time.perf_counter()
                    runner.run(ids)
                    if repeat >= warmup:
                        its_times[name].append((time.perf_counter() - started) * 1000)
            bar.advance(task)
    return [
        {name: Latency(float(np.median(ms)), float(np.percentile(ms, 95))) for name, ms in its.items()} for its in times
    ]


def process_memory(bundle: Path) -> float:
    """Return what a process that serves a bundle holds after some batches, in MB of a million bytes.

    Raises:
        InputError: The process failed.
    """
    command = [sys.executable, "-m", MODULE, "memory", "--bundle", str(bundle)]
    process = subprocess.run(command, capture_output=True, text=True)
    if process.returncode:
        lines = process.stderr.strip().splitlines() or ["no reason given"]
        raise InputError(f"The memory of {bundle} can't be measured: {lines[-1][:200]}")
    return float(process.stdout)


def pareto_front(costs: ArrayLike) -> NDArray[np.bool_]:
    """Find the points that no other beats: none is at most as large in every cost and smaller in one.

    Args:
        costs: (N, D); less is better.

    Returns:
        (N,) whether each is on the front.
    """
    points = np.asarray(costs, dtype=float).reshape(len(np.asarray(costs)), -1)
    no_worse = (points[:, None] <= points).all(-1)  # (N, N): i in every cost at most j
    better = (points[:, None] < points).any(-1)
    return ~(no_worse & better).any(0)


@dataclass(frozen=True)
class Variant:
    """One row of the comparison."""

    name: str
    accuracy: float
    agreement: float
    """Share of texts that get the same label as from the first variant."""
    megabytes: float
    """Of the model's file."""
    memory: float | None
    """Of a process that serves it, MB; None where it is not served."""
    latency: dict[str, Latency]
    """Batch → milliseconds."""

    def costs(self) -> tuple[float, float, float]:
        """Return what should be small: latency of a single text, errors, size."""
        return self.latency[SINGLE].median, 1 - self.accuracy, self.megabytes


def table_of_variants(variants: Sequence[Variant]) -> str:
    """Return the comparison as a table in Markdown; speedups are against the first, and ★ is the Pareto front's."""
    lines = [f"| variant | accuracy | agreement | MB | memory, MB | {SINGLE}, ms (p95) | speedup | {MIXED}, ms (p95) "
             "| speedup | front |", "|---|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
    front = pareto_front([variant.costs() for variant in variants])
    for variant, best in zip(variants, front, strict=True):
        memory = "–" if variant.memory is None else f"{variant.memory:.0f}"
        cells = [
            variant.name,
            f"{variant.accuracy:.4f}",
            f"{variant.agreement:.4f}",
            f"{variant.megabytes:.1f}",
            memory,
        ]
        for batch in (SINGLE, MIXED):
            own = variant.latency[batch]
            cells += [f"{own.median:.2f} ({own.p95:.2f})", f"{variants[0].latency[batch].median / own.median:.2f}×"]
        lines.append(f"| {' | '.join(cells)} | {'★' if best else ''} |")
    return "\n".join(lines)


def plot_variants(variants: Sequence[Variant], path: Path) -> None:
    """Draw accuracy against latency; a bubble's area is the size, and the Pareto front is filled."""
    import matplotlib

    from shared.plots import drawing

    front = pareto_front([variant.costs() for variant in variants])
    colors = matplotlib.colormaps["tab10"].colors
    with drawing(path, 9, 4.5) as figure:
        axes = figure.add_subplot()
        for i, (variant, best) in enumerate(zip(variants, front, strict=True)):
            color = colors[i % len(colors)]
            axes.scatter(variant.latency[SINGLE].median, variant.accuracy * 100, s=20 + 6 * variant.megabytes,
                         color=(*color, 0.5) if best else "none", edgecolor=color, linewidth=1.5,
                         label=f"{variant.name.replace('$', '')}, {variant.megabytes:.0f} MB")  # fmt: skip
        axes.set(xscale="log", xlabel=f"median latency of {SINGLE}, ms", ylabel="accuracy, %")
        axes.set_title("filled: no other is faster, smaller and as right")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("{x:g}")
        axes.margins(0.15)
        axes.grid(alpha=0.3, which="both")
        legend = axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), labelspacing=1, frameon=False)
        for handle in legend.legend_handles:
            handle.set_sizes([60])


# --- Load -------------------------------------------------------------------------------------------------------------


@dataclass
class Load:
    """What came of a load: one entry per request in each list, in the order in which they were due."""

    seconds: float
    """From the first request until the last answer."""
    rate: float | None
    """Requests due a second; None in closed loop."""
    statuses: list[str] = field(default_factory=list)
    """The HTTP status, ``timeout``, or ``failed`` where the connection did."""
    latencies: list[float] = field(default_factory=list)
    """Seconds until the answer, from when the request was due (open loop) or sent (closed loop)."""
    lateness: list[float] = field(default_factory=list)
    """Seconds from when it was due until the generator got to it: its own delay, part of the latency."""
    memory: list[tuple[float, float]] = field(default_factory=list)
    """(Second, MB that the server's processes hold), twice a second, where a process was named."""
    probes: list[float] = field(default_factory=list)
    """Seconds of each request to the probe's address; infinite where it failed."""

    def accepted(self) -> NDArray[np.float64]:
        """Return the latencies of those answered by 200, in seconds."""
        pairs = zip(self.statuses, self.latencies, strict=True)
        return np.array([latency for status, latency in pairs if status == "200"])

    def generator_was_late(self) -> bool:
        """Tell whether the generator was a bottleneck itself; what it sends late comes in a burst, too."""
        return bool(self.lateness) and float(np.percentile(self.lateness, 99)) > LATE

    def figures(self, limit_ms: float | None = None) -> dict[str, float]:
        """Return the figures of a table.

        Args:
            limit_ms: Answers later than this are no good to a user; without it every 200 is.

        Returns:
            ``requests``, ``throughput`` (answers of any status a second), ``goodput`` (200s within the limit a second),
            ``rejected`` (share of 429 and 503), ``failed`` (share of all else but 200), ``p50``, ``p95``, ``p99`` of
            200s in ms (infinite without any), ``late_p99`` in ms, and where measured ``memory_first``, ``memory_peak``,
            ``memory_last`` in MB, ``probe_max`` in ms and ``probe_failed``, a number of probes.
        """
        counts, latencies = Counter(self.statuses), self.accepted() * 1000
        total = max(1, len(self.statuses))
        rejected = counts["429"] + counts["503"]
        answered = total - counts["timeout"] - counts["failed"]
        good = latencies if limit_ms is None else latencies[latencies <= limit_ms]
        percentiles = np.percentile(latencies, [50, 95, 99]) if len(latencies) else [float("inf")] * 3
        figures = {
            "requests": len(self.statuses), "throughput": answered / self.seconds, "goodput": len(good) / self.seconds,
            "rejected": rejected / total, "failed": (total - rejected - counts["200"]) / total,
            **{name: float(value) for name, value in zip(("p50", "p95", "p99"), percentiles, strict=True)},
            "late_p99": float(np.percentile(self.lateness, 99)) * 1000 if self.lateness else 0.0,
        }  # fmt: skip
        if self.memory:
            held = [megabytes for _, megabytes in self.memory]
            figures |= {"memory_first": held[0], "memory_peak": max(held), "memory_last": held[-1]}
        if self.probes:
            answered_probes = [seconds for seconds in self.probes if np.isfinite(seconds)]
            figures["probe_max"] = max(answered_probes, default=float("inf")) * 1000
            figures["probe_failed"] = len(self.probes) - len(answered_probes)
        return figures


@dataclass(frozen=True)
class Target:
    """Where load goes, and what is watched meanwhile.

    Attributes:
        url: Requests are posted there.
        bodies: JSON bodies, sent in turn.
        timeout: Seconds after which a client gives up.
        most_open: Requests that are open at once; further ones wait here, which counts as latency.
        headers: Sent with each request, such as an API key.
        pid: The server's process, whose memory is watched with its children's; 0 is none.
        probe: An address that is read ten times a second, such as ``/healthz``.
        on_answer: Called with each request's number and the content of its 200.
    """

    url: str
    bodies: Sequence[bytes]
    timeout: float = 30
    most_open: int = 1000
    headers: Mapping[str, str] = field(default_factory=dict)
    pid: int = 0
    probe: str = ""
    on_answer: Callable[[int, bytes], None] | None = None

    def __post_init__(self) -> None:
        """Check it."""
        for name, url in (("url", self.url), ("probe", self.probe or self.url)):
            try:
                parts = urlsplit(url)
                right = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
            except ValueError:  # such as a port of 99999
                right = False
            if not right:
                raise InputError(f"{name} must be an address such as http://localhost:8000/predict. Got {url!r}.")
        if not self.bodies:
            raise InputError("There is no text to send.")
        check_range("timeout", self.timeout, 0, open_low=True)
        check_range("most_open", self.most_open, 1)


def bodies_of(texts: Sequence[str], template: str = '{"texts": ["{text}"]}') -> list[bytes]:
    """Put each text in a JSON body.

    Args:
        texts: What to send.
        template: JSON in which ``"{text}"``, with its quotes, stands for the text.

    Raises:
        InputError: The template has no such place, or is no JSON.
    """
    if '"{text}"' not in template:
        raise InputError(f'body must hold "{{text}}", with its quotes. Got {template!r}.')
    try:
        json.loads(template)
    except ValueError as error:
        raise InputError(f"body is no JSON: {error}.") from None
    return [template.replace('"{text}"', json.dumps(text)).encode() for text in texts]


def key_header() -> dict[str, str]:
    """Return the header with the service's key, from OPTIMIZATION_API_KEY in the environment; nothing without one."""
    key = os.environ.get("OPTIMIZATION_API_KEY")
    return {"X-API-Key": key} if key else {}


def due_times(rate: float, seconds: float, *, poisson: bool = False, seed: int = 0) -> NDArray[np.float64]:
    """Return the seconds at which requests are due, in [0, seconds): ``rate`` a second, evenly or at random.

    Args:
        rate: Requests a second, > 0.
        seconds: How long.
        poisson: Gaps are drawn from an exponential distribution, as those between independent users are.
        seed: Of the gaps.
    """
    check_range("rate", rate, 0, open_low=True)
    check_range("seconds", seconds, 0, open_low=True)
    if not poisson:
        return np.arange(int(np.ceil(rate * seconds))) / rate
    gaps = np.random.default_rng(seed).exponential(1 / rate, int(rate * seconds + 10 * np.sqrt(rate * seconds) + 10))
    times = np.cumsum(gaps)
    return times[times < seconds]


def open_loop(
    target: Target, rate: float, seconds: float, *, poisson: bool = False, seed: int = 0, what: str = "load"
) -> Load:
    """Send requests when they are due, whatever became of the earlier ones.

    Args:
        target: Where to.
        rate: Requests a second.
        seconds: How long requests are due; answers may come later.
        poisson: See :func:`due_times`.
        seed: Of random gaps.
        what: Name of the progress bar.

    Raises:
        ConnectionError: Nothing answers at the address.
    """
    due = due_times(rate, seconds, poisson=poisson, seed=seed)
    if not len(due):
        raise InputError("No request is due in that time.", hint="a higher rate, or more seconds")

    async def load(session: _Session) -> float | None:
        started = time.perf_counter()
        tasks = []
        for number, moment in enumerate(due.tolist()):
            await asyncio.sleep(max(0.0, started + moment - time.perf_counter()))
            tasks.append(asyncio.create_task(session.send(number, started + moment)))
        await asyncio.gather(*tasks)
        return rate

    return _run(_measure(target, load, len(due), what))


def closed_loop(target: Target, clients: int, requests: int, *, what: str = "load") -> Load:
    """Let clients send one request after the other, each when its last was answered: for throughput, not for latency.

    Args:
        target: Where to.
        clients: How many send at once, > 0.
        requests: Of all together.
        what: Name of the progress bar.

    Raises:
        ConnectionError: Nothing answers at the address.
    """
    check_range("clients", clients, 1)
    check_range("requests", requests, 1)

    async def load(session: _Session) -> None:
        numbers = iter(range(requests))

        async def client() -> None:
            for number in numbers:  # shared: each number is taken once
                await session.send(number, time.perf_counter())

        await asyncio.gather(*(client() for _ in range(clients)))

    return _run(_measure(target, load, requests, what))


class _Session:
    """The requests of one load, and what became of them."""

    def __init__(self, target: Target, client: aiohttp.ClientSession, count: int, bar: Progress, task: Any) -> None:
        self.target, self.client, self.bar, self.task = target, client, bar, task
        self.free = asyncio.Semaphore(target.most_open)
        self.statuses = [""] * count
        self.latencies = [0.0] * count
        self.lateness = [0.0] * count
        self.counts: Counter[str] = Counter()

    async def send(self, number: int, due: float) -> None:
        self.lateness[number] = time.perf_counter() - due
        async with self.free:
            status, content = await self.ask(self.target.bodies[number % len(self.target.bodies)])
            self.latencies[number] = time.perf_counter() - due
        self.statuses[number] = status
        self.counts[status] += 1
        if self.target.on_answer and status == "200":
            self.target.on_answer(number, content)
        figures = ", ".join(f"{name} × {count}" for name, count in sorted(self.counts.items()))
        self.bar.update(self.task, advance=1, figures=figures)

    async def ask(self, body: bytes) -> tuple[str, bytes]:
        try:
            status, content = await _post(self.client, self.target.url, body)
            return str(status), content
        except (asyncio.TimeoutError, TimeoutError):  # one class from Python 3.11 on
            return "timeout", b""
        except (aiohttp.ClientError, OSError):
            return "failed", b""


async def _post(client: aiohttp.ClientSession, url: str, body: bytes) -> tuple[int, bytes]:
    async with client.post(url, data=body, allow_redirects=False) as answer:
        return answer.status, await answer.read()


async def _measure(
    target: Target, load: Callable[[_Session], Coroutine[Any, Any, float | None]], count: int, what: str
) -> Load:
    watcher = _Watcher(target)
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(target.timeout),
        headers={"Content-Type": "application/json", **target.headers},
    ) as client:  # fmt: skip
        await _try_out(client, target)
        with progress_bar() as bar, watcher:
            session = _Session(target, client, count, bar, bar.add_task(what, total=count, figures=""))
            started = time.perf_counter()
            rate = await load(session)
            seconds = time.perf_counter() - started
    return Load(seconds, rate, session.statuses, session.latencies, session.lateness, watcher.memory, watcher.probes)


async def _try_out(client: aiohttp.ClientSession, target: Target) -> None:
    """Send one request before anything counts: it opens a connection, and finds out whether there is a point."""
    try:
        status, content = await _post(client, target.url, target.bodies[0])
    except (asyncio.TimeoutError, aiohttp.ClientError, OSError) as error:
        reason = str(error) or type(error).__name__
        raise ConnectionError(f"no answer from {target.url}: {reason}") from None
    if 400 <= status < 500 and status != 429:
        refusal = content.decode("utf-8", "replace")[:200]
        raise InputError(f"{target.url} refuses the first request with {status}: {refusal}")


class _Watcher:
    """Reads memory in a thread, and the probe's address in a process, which the load does not hold up."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.memory: list[tuple[float, float]] = []
        self.probes: list[float] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch_memory, daemon=True)

    def __enter__(self) -> None:
        if self.target.pid:
            self._thread.start()
        if self.target.probe:
            code = f"import sys; from {MODULE} import probe; probe(sys.argv[1])"
            self._process = subprocess.Popen([sys.executable, "-c", code, self.target.probe], stdin=subprocess.PIPE,
                                             stdout=subprocess.PIPE, text=True)  # fmt: skip
            assert self._process.stdout
            self._process.stdout.readline()  # it has begun

    def __exit__(self, *_: object) -> None:
        if self.target.pid:
            self._stop.set()
            self._thread.join()
        if self.target.probe:
            self.probes += map(float, self._process.communicate()[0].split())  # which ends its input

    def _watch_memory(self) -> None:
        import psutil

        started = time.perf_counter()
        while not self._stop.wait(0.5 if self.memory else 0):
            try:
                process = psutil.Process(self.target.pid)
                held = sum(one.memory_info().rss for one in [process, *process.children(recursive=True)])
            except psutil.Error:  # it has ended, or a child of it just now
                self._stop.wait(0.1)
                continue
            self.memory.append((time.perf_counter() - started, held / 1e6))


def probe(url: str) -> None:
    """Read an address ten times a second until standard input ends; then print the seconds of each, inf if it failed.

    The first line is empty, and tells that it has begun. Ctrl-C is left to the process that started this one.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.stdout.write("\n")
    sys.stdout.flush()
    found: list[float] = []
    waiting: list[Any] = []
    while not waiting:
        started = time.perf_counter()
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                answer.read()
            seconds = time.perf_counter() - started
        except (OSError, ValueError, http.client.HTTPException):  # any status but a good one is an OSError too
            seconds = float("inf")
        found.append(seconds)
        waiting = select.select([sys.stdin], [], [], 0.1)[0]
    sys.stdout.write("".join(f"{seconds}\n" for seconds in found))


def _run(coroutine: Coroutine[Any, Any, Result]) -> Result:
    """Run to the end; in a thread of its own where an event loop runs already, as in notebooks."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    results: list[Any] = []

    def call() -> None:
        try:
            results.append((asyncio.run(coroutine), None))
        except BaseException as error:  # handed on to the caller's thread
            results.append((None, error))

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    result, error = results[0]
    if error:
        raise error
    value: Result = result
    return value


# --- The knee ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Knee:
    """What a server bears."""

    rate: float
    """The highest rate that it bore, requests a second; 0 where it bore none."""
    reason: str
    """Why the next higher one was too much."""
    loads: list[Load]
    """All that were tried, by rate."""


def find_knee(
    target: Target,
    *,
    start: float = 25,
    factor: float = 1.5,
    most: float = 5000,
    seconds: float = 5,
    limit_ms: float = 500,
    refine: int = 2,
) -> Knee:
    """Raise the rate until the server rejects, or its 99th percentile exceeds a limit; then halve the last step.

    Args:
        target: Where to.
        start: First rate, requests a second.
        factor: From rate to rate, > 1.
        most: No higher rate is tried.
        seconds: Of each rate.
        limit_ms: Longest p99 that is borne.
        refine: How often the step between the last rate that was borne and the first that was not is halved.

    Raises:
        ConnectionError: Nothing answers at the address.
    """
    check_range("factor", factor, 1, open_low=True)
    check_range("limit_ms", limit_ms, 0, open_low=True)
    check_range("most", most, start)
    loads: list[Load] = []
    low, high, reason = 0.0, float("inf"), f"no higher rate than {most:g} was tried"
    rate = start
    while rate <= most:
        for _ in range(2):  # once more where the machine, not the server, may have been to blame
            load = open_loop(target, rate, seconds, what=f"{rate:.0f} a second")
            too_much = why_too_much(load, limit_ms)
            time.sleep(0.5)  # let queues run empty
            if not (too_much and load.generator_was_late()):
                break
        loads.append(load)
        if too_much:
            high, reason = rate, too_much
        else:
            low = rate
        if high == float("inf"):
            rate *= factor
        elif refine > 0:
            rate, refine = (low + high) / 2, refine - 1
        else:
            break
    return Knee(low, reason, sorted(loads, key=lambda load: load.rate or 0))


def why_too_much(load: Load, limit_ms: float) -> str:
    """Say why a load is more than the server bears; empty where it is not."""
    figures = load.figures(limit_ms)
    if figures["rejected"] + figures["failed"] > 0.01:
        why = f"{figures['rejected']:.0%} were rejected and {figures['failed']:.0%} failed"
    elif figures["p99"] > limit_ms:
        why = f"p99 was {figures['p99']:.0f} ms, over {limit_ms:g}"
    else:
        return ""
    return (
        f"{why}; but the generator itself was late, so the server may bear more" if load.generator_was_late() else why
    )


def table_of_loads(loads: Sequence[Load], limit_ms: float) -> str:
    """Return loads as a table in Markdown, a row each."""
    names = ("throughput", "goodput", "rejected", "failed", "p50", "p95", "p99", "late_p99")
    lines = [f"| rate | {' | '.join(names)} |", "|---" * (1 + len(names)) + "|"]
    for load in loads:
        figures = load.figures(limit_ms)
        rate = "closed" if load.rate is None else f"{load.rate:.0f}"
        lines.append(f"| {rate} | {' | '.join(f'{figures[name]:.4g}' for name in names)} |")
    return "\n".join(lines)


def plot_load(load: Load, path: Path) -> None:
    """Draw each request's latency by when it was due, colored by status; and the server's memory if it was watched."""
    from shared.plots import drawing

    with drawing(path, 8, 6 if load.memory else 4) as figure:
        upper, *lower = np.atleast_1d(figure.subplots(2 if load.memory else 1))
        numbers, milliseconds = np.arange(len(load.statuses)), np.array(load.latencies) * 1000
        seconds = numbers / load.rate if load.rate else numbers
        statuses = np.array(load.statuses)
        for status in sorted(set(load.statuses)):
            upper.plot(seconds[statuses == status], milliseconds[statuses == status], ".", ms=3, label=status)
        upper.set(xlabel="due at, s" if load.rate else "request", ylabel="latency, ms", yscale="log")
        upper.legend()
        upper.grid(alpha=0.3)
        for axes in lower:
            axes.plot(*zip(*load.memory, strict=True))
            axes.set(xlabel="s", ylabel="memory of the server, MB", ylim=(0, None))
            axes.grid(alpha=0.3)


def plot_knee(knee: Knee, limit_ms: float, path: Path) -> None:
    """Draw latency and rejections against the rate, with the knee."""
    from shared.plots import drawing

    rates = [load.rate or 0 for load in knee.loads]
    figures = [load.figures(limit_ms) for load in knee.loads]
    with drawing(path, 8, 5) as figure:
        upper, lower = figure.subplots(2, sharex=True, height_ratios=[2, 1])
        for name in ("p50", "p95", "p99"):
            upper.plot(rates, [one[name] for one in figures], "o-", ms=4, label=name)
        upper.axhline(limit_ms, color="tab:red", ls=":", label=f"limit, {limit_ms:g} ms")
        upper.set(yscale="log", ylabel="latency of 200s, ms")
        lower.plot(rates, [one["goodput"] for one in figures], "o-", ms=4, label="good answers a second")
        lower.plot(rates, rates, color="gray", ls=":", label="due a second")
        lower.set(xlabel="requests due a second", ylabel="a second")
        for axes in (upper, lower):
            axes.axvline(knee.rate, color="black", ls="--", label=f"knee, {knee.rate:.0f} a second")
            axes.legend(fontsize="small")
            axes.grid(alpha=0.3)


# --- The commands -----------------------------------------------------------------------------------------------------


@dataclass
class CompareConfig:
    """Measure bundles side by side: accuracy, agreement with the first, size, memory and latency."""

    bundles: list[str] = field(default_factory=lambda: ["outputs/model_optimization/bundles/float32"])
    """The bundles' folders; speedups are against the first."""
    data: str = "builtin:stays"
    """Labeled texts, whose test split is classified: builtin:stays, builtin:apps, a folder or a hub id."""
    repeats: int = 30
    """Timed runs of each batch."""
    threads: int = field(default=1, metadata=NOT_RECIPE)
    """CPU threads of each model; 0 is all cores."""
    run: str = field(default="", metadata=NOT_RECIPE)
    """Name of this run's own folder; by default the time."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_range("repeats", self.repeats, 1)
        check_range("threads", self.threads, 0)
        if not self.bundles:
            raise InputError("bundles must name one folder at least.")


def compare(config: CompareConfig) -> None:
    """Compare bundles; see :class:`CompareConfig`."""
    from model_optimization.builtin.subject import check_labels, load_data

    data = load_data(config.data)
    classifiers = [OnnxClassifier(bundle, config.threads) for bundle in config.bundles]
    for classifier in classifiers:
        check_labels(classifier, data)
    run = Run(PROJECT, MODULE, "compare", config, name=config.run)
    texts, labels = data.texts("test"), data.labels("test")
    predicted = []
    with progress_bar() as bar:
        task = bar.add_task("classify", total=len(classifiers), figures="")
        for classifier in classifiers:
            predicted.append(classifier.logits(texts).argmax(1))
            bar.update(task, advance=1, figures=f"accuracy {(predicted[-1] == labels).mean():.4f}")
    memory = [process_memory(classifier.folder) for classifier in classifiers]
    latencies = measure_latency(classifiers, texts, repeats=config.repeats)
    variants = [
        Variant(str(bundle), float((own == labels).mean()), float((own == predicted[0]).mean()),
                megabytes(classifier.folder), held, latency)
        for bundle, own, classifier, held, latency in zip(
            config.bundles, predicted, classifiers, memory, latencies, strict=True)
    ]  # fmt: skip
    plot_variants(variants, run.folder / "variants.png")
    metrics = {
        f"{variant.name} {name}": value
        for variant in variants
        for name, value in (
            ("accuracy", variant.accuracy), ("agreement", variant.agreement), ("MB", variant.megabytes),
            ("memory MB", variant.memory), (f"{SINGLE} ms", variant.latency[SINGLE].median),
            (f"{MIXED} ms", variant.latency[MIXED].median),
        )
    }  # fmt: skip
    run.finish(model=", ".join(config.bundles), data=data.name, seed=0, metrics=metrics)
    sys.stdout.write(table_of_variants(variants) + "\n")
    logger.info("plot and figures in %s", run.folder)


@dataclass
class MemoryConfig:
    """Print what this process holds after it has loaded a bundle and run batches, in MB."""

    bundle: str = "outputs/model_optimization/bundles/float32"
    """The bundle."""
    batches: int = 2
    """Of 32 texts; more take no more memory."""


def memory(config: MemoryConfig) -> None:
    """Measure this process; see :class:`MemoryConfig`."""
    import psutil

    classifier = OnnxClassifier(config.bundle)
    for _ in range(config.batches):
        classifier.run([[0] * min(128, classifier.encoder.max_length)] * 32)
    sys.stdout.write(f"{psutil.Process().memory_info().rss / 1e6:.1f}\n")


@dataclass
class TargetConfig:
    """Where load goes."""

    url: str = "http://localhost:8000/predict"
    """Requests are posted there."""
    texts: str = "builtin:stays"
    """What is sent: a file with a text a line, .jsonl, or builtin texts."""
    body: str = '{"texts": ["{text}"]}'
    """JSON of a request, in which "{text}" stands for a text."""
    seconds: float = 10
    """How long requests are due; of each rate."""
    limit_ms: float = 500
    """Answers later than this are no good."""
    timeout: float = 30
    """Seconds after which a client gives up."""
    most_open: int = 1000
    """Requests that are open at once."""
    pid: int = field(default=0, metadata=NOT_RECIPE)
    """The server's process, to watch its memory."""
    probe: str = ""
    """An address to read ten times a second meanwhile, such as http://localhost:8000/healthz."""
    run: str = field(default="", metadata=NOT_RECIPE)
    """Name of this run's own folder; by default the time."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_range("seconds", self.seconds, 0, open_low=True)
        check_range("limit_ms", self.limit_ms, 0, open_low=True)
        check_range("pid", self.pid, 0)

    def target(self) -> Target:
        """Read the texts and return where they go."""
        from model_optimization.monitoring.drift_detection import read_texts

        bodies = bodies_of(read_texts(self.texts)[0], self.body)
        return Target(self.url, bodies, self.timeout, self.most_open, key_header(), self.pid, self.probe)


@dataclass
class LoadConfig(TargetConfig):
    """Send requests at a rate, whatever the server does; or, with --clients, as fast as it answers.

    OPTIMIZATION_API_KEY in the environment is sent as the server's key.
    """

    rate: float = 50
    """Requests a second."""
    poisson: bool = False
    """At random moments, as independent users send."""
    clients: int = 0
    """With a number, closed loop: so many clients, each with one request at a time; rate is then not used."""
    requests: int = 1000
    """Of all clients together, in closed loop."""
    seed: int = field(default=0, metadata=NOT_RECIPE)
    """Of random moments."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        check_range("rate", self.rate, 0, open_low=True)
        check_range("clients", self.clients, 0)
        check_range("requests", self.requests, 1)


def load_command(config: LoadConfig) -> None:
    """Load a server; see :class:`LoadConfig`."""
    target = config.target()
    run = Run(PROJECT, MODULE, "load", config, name=config.run)
    if config.clients:
        load = closed_loop(target, config.clients, config.requests)
    else:
        load = open_loop(target, config.rate, config.seconds, poisson=config.poisson, seed=config.seed)
    figures = load.figures(config.limit_ms)
    plot_load(load, run.folder / "load.png")
    statuses = {f"status {name}": count for name, count in sorted(Counter(load.statuses).items())}
    metrics = {name: value for name, value in figures.items() if np.isfinite(value)} | statuses  # JSON knows no inf
    run.finish(model=config.url, data=config.texts, seed=config.seed, metrics=metrics)
    sys.stdout.write("".join(f"{name:14} {value:.4g}\n" for name, value in (figures | statuses).items()))
    if load.generator_was_late():
        logger.warning("the generator itself was late (late_p99): latencies and rejections are in part its own")
    logger.info("plot and figures in %s", run.folder)


@dataclass
class KneeConfig(TargetConfig):
    """Raise the rate until the server rejects or its 99th percentile is too long.

    OPTIMIZATION_API_KEY in the environment is sent as the server's key.
    """

    seconds: float = 5
    """Of each rate."""
    start: float = 25
    """First rate, requests a second."""
    factor: float = 1.5
    """From rate to rate."""
    most: float = 5000
    """No higher rate is tried."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        check_range("start", self.start, 0, open_low=True)
        check_range("factor", self.factor, 1, open_low=True)
        check_range("most", self.most, self.start)


def knee_command(config: KneeConfig) -> None:
    """Find the knee; see :class:`KneeConfig`."""
    target = config.target()
    run = Run(PROJECT, MODULE, "knee", config, name=config.run)
    knee = find_knee(target, start=config.start, factor=config.factor, most=config.most, seconds=config.seconds,
                     limit_ms=config.limit_ms)  # fmt: skip
    plot_knee(knee, config.limit_ms, run.folder / "knee.png")
    run.finish(model=config.url, data=config.texts, seed=0, metrics={"knee": knee.rate, "reason": knee.reason})
    sys.stdout.write(f"{table_of_loads(knee.loads, config.limit_ms)}\n\nknee: {knee.rate:.0f} a second; above, "
                     f"{knee.reason}\n")  # fmt: skip
    logger.info("plot and figures in %s", run.folder)


if __name__ == "__main__":
    commands = {"compare": compare, "load": load_command, "knee": knee_command, "memory": memory}
    run_commands(commands, module=MODULE, extra="optimization")
