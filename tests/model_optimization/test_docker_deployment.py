"""The image's files: written, linted against the server itself, and executed without Docker."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from model_optimization.deployment import docker_deployment
from model_optimization.deployment.docker_deployment import (
    MODULE,
    PYTHON,
    ContextConfig,
    RunConfig,
    Sandbox,
    WriteConfig,
    build,
    instructions,
    is_pinned,
    lint,
    names_in,
    pinned,
    run,
    verify,
    write,
)
from model_optimization.deployment.onnx_conversion import MODEL
from shared.config import run_commands
from shared.errors import InputError


@pytest.fixture(scope="module")
def written(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("docker") / "image"
    write(WriteConfig(bundle=str(tiny_bundle), output=str(output)))
    return output


@pytest.fixture
def context(written: Path, tmp_path: Path) -> Path:
    """Return a copy to spoil."""
    return Path(shutil.copytree(written, tmp_path / "image"))


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_what_is_written_is_complete_and_without_fault(written: Path, tiny_bundle: Path) -> None:
    assert lint(written) == []
    assert (written / "models" / "served" / MODEL).read_bytes() == (tiny_bundle / MODEL).read_bytes()
    names = {str(path.relative_to(written)) for path in written.rglob("*") if path.is_file()}
    assert {"Dockerfile", ".dockerignore", "requirements.txt", "compose.yaml", "kubernetes.yaml"} <= names
    assert {"prometheus/prometheus.yml", "prometheus/alerts.yml", "grafana/dashboards/classifier.json"} <= names
    assert not [name for name in names if "torch" in name or "drift" in name or "__pycache__" in name]


def test_requirements_are_what_is_installed_here_with_all_it_needs_and_without_pytorch(written: Path) -> None:
    lines = (written / "requirements.txt").read_text().splitlines()[1:]
    pins = dict(line.split("==") for line in lines)
    for name in ("fastapi", "starlette", "pydantic-core", "onnxruntime", "tokenizers", "uvicorn", "h11"):
        assert pins[name] == version(name)
    assert not {"torch", "transformers", "huggingface-hub", "sympy", "scipy", "pytest"} & set(pins)
    with pytest.raises(InputError, match="'no-such-package' is not installed"):
        pinned(["no-such-package"])


def test_the_source_in_the_image_serves_without_the_repository_and_without_pytorch(written: Path) -> None:
    code = (
        "import sys\n"
        "class Without:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in ('torch', 'transformers', 'onnx', 'scipy', 'huggingface_hub', 'sympy'):\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Without())\n"
        "from model_optimization.deployment import fastapi_server as server\n"
        "config = server.ServeConfig(bundle='../models/served')\n"
        "server.create_app(config)\n"
        "model = server.ServedModel(server.Path(config.bundle), config)\n"
        "print(server.__file__, model.predict(['good'])[0].label)\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=written / "app", env=environment, capture_output=True, text=True
    )
    assert done.stdout.startswith(str(written / "app")), done.stderr


def test_kubernetes_waits_longer_than_the_server_takes_to_stop(tiny_bundle: Path, tmp_path: Path) -> None:
    config = WriteConfig(
        bundle=str(tiny_bundle), output=str(tmp_path / "image"), drain_seconds=100, parallel=3, threads=2
    )
    write(config)
    documents = list(yaml.safe_load_all((tmp_path / "image" / "kubernetes.yaml").read_text()))
    pod = documents[0]["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] > 100 + 10 + 5
    assert pod["containers"][0]["resources"]["limits"]["cpu"] == "6"
    steps = dict(instructions((tmp_path / "image" / "Dockerfile").read_text()))
    assert json.loads(steps["CMD"])[-1] == "100"


def test_a_drift_monitor_comes_with_its_source_packages_panels_and_alert(tiny_bundle: Path, tmp_path: Path) -> None:
    from model_optimization.monitoring.drift_detection import DriftMonitor

    rng = np.random.default_rng(0)
    share = rng.uniform(size=(200, 1))
    outputs = np.hstack([share, 1 - share]), rng.normal(size=(200, 32))
    DriftMonitor.fit(*outputs, ["negative", "positive"], window=20, held_out_windows=0).save(tmp_path / "monitor")
    write(WriteConfig(bundle=str(tiny_bundle), output=str(tmp_path / "image"), drift=str(tmp_path / "monitor")))
    image = tmp_path / "image"
    assert lint(image) == []
    assert "scipy==" in (image / "requirements.txt").read_text()
    assert (image / "app" / "model_optimization" / "monitoring" / "drift_detection.py").exists()
    assert "drift_alerts_total" in (image / "prometheus" / "alerts.yml").read_text()
    assert "drift_p_value" in (image / "grafana" / "dashboards" / "classifier.json").read_text()
    assert '"--drift", "/models/monitor"' in (image / "Dockerfile").read_text()
    with pytest.raises(FileNotFoundError):
        write(WriteConfig(bundle=str(tiny_bundle), output=str(tmp_path / "image"), drift=str(tmp_path / "nothing")))
    assert lint(image) == []  # the one before is untouched


SPOILED: dict[str, tuple[str, str, str, str]] = {
    "latest": ("Dockerfile", f"python:{PYTHON}-slim-bookworm", "python:latest", "not pinned"),
    "no tag": ("Dockerfile", f"python:{PYTHON}-slim-bookworm", "python", "not pinned"),
    "root": ("Dockerfile", "USER 10001:10001", "USER root", "must not be root"),
    "zero": ("Dockerfile", "USER 10001:10001", "USER 0:0", "must not be root"),
    "nobody": ("Dockerfile", "USER 10001:10001", "# nobody", "must not be root"),
    "a name": ("Dockerfile", "USER 10001:10001", "USER nobody", "must be a number"),
    "shell": ("Dockerfile", 'CMD ["python", "-m", ', 'CMD python -m "', "CMD must be a JSON list"),
    "no check": ("Dockerfile", "HEALTHCHECK --", "LABEL --", "HEALTHCHECK must be there"),
    "cache": ("Dockerfile", " --no-cache-dir", "", "keeps a cache"),
    "everything": ("Dockerfile", "COPY app/ ./", "COPY . ./", "whatever lies around"),
    "add": ("Dockerfile", "COPY app/ ./", "ADD app/ ./", "use COPY"),
    "secret": ("Dockerfile", "PIP_ROOT_USER_ACTION=ignore", "OPTIMIZATION_API_KEY=1234", "holds a secret"),
    "loose": ("requirements.txt", "fastapi==", "fastapi>=", "is not pinned"),
    "heavy": ("requirements.txt", "uvicorn==", "torch==2.13.0\nuvicorn==", "does not belong in a server"),
    "compose image": ("compose.yaml", "prom/prometheus:v3.5.0", "prom/prometheus", "prometheus is not pinned"),
    "compose grace": ("compose.yaml", "stop_grace_period: 30s", "stop_grace_period: 10s", "must be above 20"),
    "compose port": ("compose.yaml", "8000:8000", "8000:8001", "listens on port 8000"),
    "compose limits": ("compose.yaml", 'cpus: "2", ', "", "limits of cpus and memory"),
    "compose folder": ("compose.yaml", "./grafana:", "./graphs:", "there is no folder ./graphs"),
    "target": ("prometheus/prometheus.yml", "server:8000", "server:80", "must read server:8000"),
    "alert": ("prometheus/alerts.yml", "classifier_rejections_total", "rejections_total", "no metric rejections_total"),
    "panel": ("grafana/dashboards/classifier.json", "classifier_queue_texts", "queue", "no metric queue"),
    "bucket": (
        "grafana/dashboards/classifier.json",
        "batch_texts_sum",
        "batch_texts_total",
        "no metric classifier_batch",
    ),
    "source": ("grafana/datasources/prometheus.yaml", "uid: prometheus", "uid: other", "no data source prometheus"),
    "probe": ("kubernetes.yaml", "path: /healthz", "path: /health", "livenessProbe reads /health"),
    "port": ("kubernetes.yaml", "containerPort: 8000", "containerPort: 80", "listens on port 8000"),
    "limits": ("kubernetes.yaml", "limits:", "others:", "limits of cpu and memory"),
    "grace": ("kubernetes.yaml", "terminationGracePeriodSeconds: 30", "terminationGracePeriodSeconds: 20", "above 20"),
    "rights": ("kubernetes.yaml", "runAsNonRoot: true", "runAsNonRoot: false", "give all rights away"),
    "service": ("kubernetes.yaml", "  selector: {app: classifier}", "  selector: {app: x}", "the Service selects"),
    "scaler": ("kubernetes.yaml", "kind: Deployment, name: classifier", "kind: Deployment, name: x", "something else"),
    "budget": ("kubernetes.yaml", "kind: PodDisruptionBudget", "kind: Other", "there is no PodDisruptionBudget"),
}


@pytest.mark.parametrize("name", SPOILED)
def test_lint_finds(name: str, context: Path) -> None:
    file, old, new, problem = SPOILED[name]
    replace(context / file, old, new)
    found = lint(context)
    assert any(problem in one for one in found), found


def test_files_that_can_not_be_parsed_are_named(context: Path) -> None:
    replace(context / "Dockerfile", '"--parallel"', '"--paralel"')
    with pytest.raises(InputError, match="paralel"):
        lint(context)
    replace(context / "Dockerfile", '"--paralel"', '"--parallel"')
    (context / "compose.yaml").write_text("services: [")
    with pytest.raises(InputError, match="compose.yaml is no YAML"):
        lint(context)
    (context / "compose.yaml").unlink()
    with pytest.raises(FileNotFoundError, match="has no compose.yaml"):
        lint(context)


def test_instructions_are_joined_and_comments_left_out() -> None:
    text = "# a\nFROM python:3.12\nENV A=1 \\\n    # why\n    B=2\nrun  echo hello\n"
    assert instructions(text) == [("FROM", "python:3.12"), ("ENV", "A=1 B=2"), ("RUN", "echo hello")]
    with pytest.raises(InputError, match="no instruction"):
        instructions("FROM python\n<<EOF\n")


def test_an_image_is_pinned_by_a_tag_with_a_number_or_a_digest() -> None:
    assert is_pinned("python:3.12-slim") and is_pinned("host:5000/python@sha256:abc") and is_pinned("host:5000/a:1")
    assert not any(map(is_pinned, ("python", "python:latest", "host:5000/python", "python:slim")))


def test_names_of_metrics_are_found_in_expressions() -> None:
    expression = 'sum by (le, stage) (rate(a_total{path="/x",reason=~"b"}[5m])) > 0.05 * b_sum or on (job) up{job="c"}'
    assert names_in(expression) == {"a_total", "b_sum", "up"}


def test_only_a_folder_of_our_own_is_replaced(tiny_bundle: Path, tmp_path: Path, capsys: Any) -> None:
    config = WriteConfig(bundle=str(tiny_bundle), output=str(tmp_path / "out"))
    (tmp_path / "out").mkdir()
    write(config)  # an empty one is nobody's
    (tmp_path / "out" / "stale").touch()
    write(config)
    assert not (tmp_path / "out" / "stale").exists()
    assert "image classifier:" in capsys.readouterr().out
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "Dockerfile").write_text("FROM python:3.12\n")
    with pytest.raises(InputError, match="write has not written"):
        write(WriteConfig(bundle=str(tiny_bundle), output=str(tmp_path / "mine")))
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_wrong_input_is_one_line_and_a_status(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.config.setup_logging", lambda package: None)  # it would outlive this test
    commands: dict[str, Callable[[Any], None]] = {"write": write, "verify": verify, "build": build, "run": run}
    for arguments, status, message in (
        (["write", "--bundle", str(tmp_path)], 1, "is no bundle"),
        (["write", "--base", "python:2.7-slim"], 2, "base has Python 2.7"),
        (["write", "--base", "a b"], 2, "base must be the name of an image"),
        (["write", "--parallel", "0"], 2, "parallel must be in [1, 64]"),
        (["write", "--min_replicas", "3", "--max_replicas", "2"], 2, "max_replicas must be in [3, inf)"),
        (["verify", "--context", str(tmp_path)], 1, "has no Dockerfile: write it first"),
        (["run", "--port", "0"], 2, "port must be in"),
    ):
        with pytest.raises(SystemExit) as ended:
            run_commands(commands, module=MODULE, argv=arguments)
        error = capsys.readouterr().err
        assert (ended.value.code, message in error, "Traceback" in error) == (status, True, False), error


def test_an_image_that_lint_refuses_is_not_written(tiny_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not pinned"):
        write(WriteConfig(bundle=str(tiny_bundle), output=str(tmp_path / "image"), base="python"))
    assert list(tmp_path.iterdir()) == []


def test_docker_is_called_where_it_is_and_its_absence_explained(
    context: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    monkeypatch.setattr(
        docker_deployment.shutil, "which", lambda name: str(tools / name) if any(tools.iterdir()) else None
    )
    with pytest.raises(InputError, match="Docker is not here") as raised:
        build(ContextConfig(str(context)))
    assert "verify" in raised.value.hint
    docker = tools / "docker"
    docker.write_text(f'#!/bin/sh\n[ "$1" = info ] || echo "$@" >> {tmp_path}/calls\n[ "$1" != run ]\n')
    docker.chmod(0o755)
    build(ContextConfig(str(context)))
    with pytest.raises(OSError, match="docker run failed with 1"):
        run(RunConfig(str(context), port=8123))
    image = yaml.safe_load((context / "compose.yaml").read_text())["services"]["server"]["image"]
    first, second = (tmp_path / "calls").read_text().splitlines()
    assert first == f"build --tag {image} {context}"
    assert "--read-only" in second and "127.0.0.1:8123:8000" in second and second.endswith(image)


@pytest.fixture
def sandbox(context: Path, tmp_path: Path) -> Sandbox:
    """Return one whose Python is this one, which takes no time to make."""
    sandbox = Sandbox(tmp_path / "sandbox", context)
    python = sandbox.root / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    sandbox.inside("/").mkdir()
    return sandbox


def test_steps_of_the_dockerfile_are_executed(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_OF_THIS_MACHINE", "1")
    for name, rest in (
        ("ENV", 'GREETING="good day" OTHER=2'),
        ("WORKDIR", "/srv"),
        ("WORKDIR", "app"),
        ("COPY", "app/ ./"),
        ("COPY", "models/ /models/"),
        ("COPY", "requirements.txt ./"),
        ("RUN", 'echo "$GREETING, $SECRET_OF_THIS_MACHINE" > out'),
        ("RUN", '["sh", "-c", "pwd > where"]'),
        ("USER", "10001"),
    ):
        sandbox.step(name, rest)
    app = sandbox.root / "files" / "srv" / "app"
    assert (app / "out").read_text() == "good day, \n"
    assert (app / "where").read_text().strip().endswith("files/srv/app")
    assert (app / "shared" / "config.py").exists() and (app / "requirements.txt").exists()
    assert sandbox.words(["--bundle", "/models/served", "/nowhere"])[1:] == [
        str(sandbox.inside("/models/served")),
        "/nowhere",
    ]
    for name, rest, message in (
        ("RUN", "echo no index >&2; exit 3", "no index"),
        ("COPY", "compose.yaml ./", "keeps it out"),
        ("ARG", "A=1", "can't do what ARG says"),
    ):
        with pytest.raises(InputError, match=message):
            sandbox.step(name, rest)


def test_the_command_of_the_image_is_started_asked_and_stopped(sandbox: Sandbox) -> None:
    steps = instructions((sandbox.context / "Dockerfile").read_text())
    for name, rest in steps:
        if name in ("ENV", "WORKDIR", "COPY"):
            sandbox.step(name, rest.replace('"5"', '"0"'))
    values = dict(steps)
    values["CMD"] = values["CMD"].replace('"5"', '"0"')  # seconds of draining
    assert 0 < docker_deployment._try_out(sandbox, values) < 60
    (sandbox.inside("/models/served") / MODEL).write_bytes(b"")
    with pytest.raises(InputError, match="did not get ready. The last it said: .*bundle"):
        docker_deployment._try_out(sandbox, values)


@pytest.mark.slow
def test_the_image_works_in_an_empty_folder_with_an_empty_environment(context: Path, capsys: Any) -> None:
    pip = subprocess.run(
        [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", str(context.parent / "x"), "mdurl"],
        capture_output=True,
    )  # fmt: skip
    if pip.returncode:
        pytest.skip("pip does not reach its index")
    verify(ContextConfig(str(context)))
    assert "good; " in capsys.readouterr().out
