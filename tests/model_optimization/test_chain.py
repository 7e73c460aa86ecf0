"""The whole chain as its command, on a tiny classifier: variants, table, plot, service and monitor."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from model_optimization.__main__ import ChainConfig, best_of, chain, figures_of, serving
from model_optimization.builtin.subject import Data, Pair, Subject
from model_optimization.deployment.onnx_conversion import GateError
from model_optimization.monitoring.performance_metrics import MIXED, SINGLE, Latency, Variant
from shared.errors import InputError


def write(folder: Path, splits: dict[str, list[Pair]], data: Data) -> None:
    folder.mkdir()
    for split, rows in splits.items():
        lines = [json.dumps({"text": text, "label": data.label_names[label]}) for text, label in rows]
        (folder / f"{split}.jsonl").write_text("\n".join(lines))


def variant(name: str, accuracy: float, ms: float, memory: float | None = 50.0) -> Variant:
    return Variant(name, accuracy, 1.0, 10.0, memory, {SINGLE: Latency(ms, ms), MIXED: Latency(ms, ms)})


def test_the_best_is_the_fastest_that_passes_the_gate() -> None:
    variants = [variant("PyTorch", 0.90, 40, None), variant("slow", 0.90, 20), variant("fast", 0.89, 10)]
    variants.append(variant("wrong", 0.70, 1))
    assert best_of(variants, 0.03).name == "fast"
    assert best_of(variants, 0.005).name == "slow"
    with pytest.raises(GateError, match="loses more than"):
        best_of([variants[0], variants[3]], 0.03)


def test_the_figures_name_every_variant() -> None:
    variants = [variant("PyTorch", 0.90, 40, None), variant("dynamic INT8", 0.89, 10)]
    figures = figures_of(variants, variants[1])
    assert figures["dynamic_int8_speedup"] == figures["best_speedup"] == 4
    assert figures["best_loss"] == pytest.approx(0.01)


@pytest.mark.parametrize("changes", [{"heads": 1.0}, {"sparsity": -0.1}, {"layers": 0}, {"effort": 0}, {"port": 70000}])
def test_settings_outside_their_range_are_refused(changes: dict[str, float]) -> None:
    with pytest.raises(InputError, match="must be in"):
        ChainConfig(**changes)  # type: ignore[arg-type]


def test_a_port_that_is_taken_is_not_taken_for_ours(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match="Can't listen"):
        with serving(tmp_path / "bundle", taken.getsockname()[1]):
            pass


def test_what_the_chain_can_not_do_is_told_before_it_begins(
    subject: Subject, data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    subject.save(tmp_path / "model")
    few = {split: rows if split == "train" else rows[:2] for split, rows in data.splits.items()}
    write(tmp_path / "data", few, data)
    with pytest.raises(InputError, match=r"layers must be in \[1, 2\]"):
        chain(ChainConfig(model="model", data="data", layers=3))
    with pytest.raises(InputError, match="must have 80 texts together"):
        chain(ChainConfig(model="model", data="data", layers=1))
    assert not (tmp_path / "outputs").exists()


@pytest.mark.slow
def test_the_command_makes_compares_serves_and_watches(subject: Subject, data: Data, tmp_path: Path) -> None:
    subject.save(tmp_path / "model")
    write(tmp_path / "data", data.splits, data)
    command = [
        sys.executable, "-m", "model_optimization", "--model", str(tmp_path / "model"), "--data",
        str(tmp_path / "data"), "--layers", "1", "--neurons", "0.5", "--vocabulary", "75", "--most_loss", "0.5",
        "--repeats", "2", "--run", "all", "--max_length", "32",
    ]  # fmt: skip
    environment = {**os.environ, "OPTIMIZATION_API_KEY": "s3cret"}  # which its own service then wants
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, env=environment)
    assert process.returncode == 0, process.stderr[-3000:]
    folder = tmp_path / "outputs/model_optimization/all"
    metrics = json.loads((folder / "results.json").read_text())["metrics"]
    assert metrics["served_same_labels"] == 1
    assert metrics["served_one_at_a_time"] > 0 and metrics["dynamic_int8_accuracy"] > 0.8
    assert (folder / "pareto.png").stat().st_size > 10_000
    table = (folder / "variants.md").read_text()
    for name in ("PyTorch float32", "ONNX float32", "dynamic INT8", "static INT8", "QAT INT8", "pruned, PyTorch",
                 "distilled, PyTorch", "all together", "50% of weights 0"):  # fmt: skip
        assert f"| {name} |" in table
    assert f"best: {metrics['best']}" in process.stdout
