"""The service as a container: write what builds and runs it, check that, and try it out without Docker too.

    python -m model_optimization.deployment.docker_deployment write --bundle outputs/model_optimization/bundles/float32
    python -m model_optimization.deployment.docker_deployment verify        # no Docker needed
    python -m model_optimization.deployment.docker_deployment build         # needs Docker
    python -m model_optimization.deployment.docker_deployment run --port 8000
    docker compose --project-directory outputs/model_optimization/image up  # with Prometheus and Grafana
    kubectl apply --filename outputs/model_optimization/image/kubernetes.yaml

``write`` makes a folder with a Dockerfile, the few source files that serving needs, the bundle, and requirements pinned
to what is installed here: no PyTorch, so the image is a tenth of one that trains. It runs as nobody in particular, with
a file system that it only reads. ``verify`` executes the Dockerfile's own steps in an empty folder, with an empty
virtual environment in place of the base image, and starts the very command of its ``CMD``.
"""

from __future__ import annotations

import fnmatch
import importlib.metadata
import json
import logging
import math
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from string import Template
from typing import Any

import yaml

from model_optimization.deployment.fastapi_server import Metrics, ServeConfig, create_app
from model_optimization.deployment.onnx_conversion import CARD, MODEL, TOKENIZER, OnnxClassifier, megabytes
from shared.config import check_range, parse, run_commands
from shared.errors import InputError
from shared.results import write_atomic

MODULE = "model_optimization.deployment.docker_deployment"
SERVER = "model_optimization.deployment.fastapi_server"
CONTEXT = "outputs/model_optimization/image"
MARK = f"# Written by python -m {MODULE} write: change that, not this.\n"
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
ROOT = Path(__file__).parents[2]
logger = logging.getLogger(MODULE)

SOURCE = (
    "shared/__init__.py", "shared/config.py", "shared/errors.py", "shared/logs.py", "shared/results.py",
    "shared/runtime.py", "model_optimization/__init__.py", "model_optimization/deployment/__init__.py",
    "model_optimization/deployment/fastapi_server.py", "model_optimization/deployment/onnx_conversion.py",
)  # fmt: skip
DRIFT_SOURCE = ("model_optimization/monitoring/__init__.py", "model_optimization/monitoring/drift_detection.py")
PACKAGES = (
    "fastapi", "jsonargparse[signatures]", "numpy", "onnxruntime", "prometheus-client", "pyyaml", "rich", "tokenizers",
    "uvicorn",
)  # fmt: skip
DRIFT_PACKAGES = ("safetensors", "scipy")
UNUSED = ("coloredlogs", "huggingface-hub", "sympy")  # for downloads and for changing graphs: serving does neither
HEAVY = re.compile(r"torch|transformers|nvidia|cuda|triton|accelerate|tensorflow")

# --- What is written --------------------------------------------------------------------------------------------------

DOCKERFILE = """\
FROM $base
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 \\
    OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
WORKDIR /app
# Dependencies first: their layer stays as it is when only code or model change. The list is complete, hence --no-deps.
COPY requirements.txt ./
RUN pip install --no-cache-dir --no-deps --requirement requirements.txt
COPY app/ ./
COPY models/ /models/
# A number: Kubernetes can tell that it is not root. Nothing below belongs to it, so it can't change what it runs.
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 \\
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/healthz', timeout=2)"]
# A list, not a line for a shell, which would take SIGTERM for itself and never hand it on.
CMD $command
"""

DOCKERIGNORE = """\
# Nothing but this goes to the builder.
*
!requirements.txt
!app
!models
**/__pycache__
"""

COMPOSE = """\
# docker compose up; then http://localhost:8000/docs, http://localhost:9090/alerts and http://localhost:3000
services:
  server:
    build: .
    image: $image
    ports: ["127.0.0.1:8000:8000"]
    environment:
      OPTIMIZATION_API_KEY: $${OPTIMIZATION_API_KEY:-}
    read_only: true
    tmpfs: [/tmp]
    cap_drop: [ALL]
    security_opt: ["no-new-privileges:true"]
    stop_grace_period: ${grace}s # above what the server itself takes: ${needed}s
    restart: unless-stopped
    deploy:
      resources:
        limits: {cpus: "$cpus", memory: ${memory}M}
  prometheus:
    image: prom/prometheus:v3.5.0
    ports: ["127.0.0.1:9090:9090"]
    volumes: ["./prometheus:/etc/prometheus:ro", "prometheus:/prometheus"]
    restart: unless-stopped
  grafana:
    image: grafana/grafana:12.1.0
    ports: ["127.0.0.1:3000:3000"]
    environment: # whoever reaches this port of this machine may look; nobody may change anything
      GF_AUTH_ANONYMOUS_ENABLED: "true"
      GF_AUTH_DISABLE_LOGIN_FORM: "true"
      GF_ANALYTICS_REPORTING_ENABLED: "false"
    volumes: ["./grafana:/etc/grafana/provisioning:ro"]
    depends_on: [prometheus]
    restart: unless-stopped
volumes:
  prometheus: {}
"""

PROMETHEUS = """\
global: {scrape_interval: 5s, evaluation_interval: 15s}
rule_files: [alerts.yml]
scrape_configs:
  - job_name: classifier
    static_configs:
      - targets: ["server:8000"]
"""

ALERTS = """\
groups:
  - name: classifier
    rules:
      - alert: ClassifierDown
        expr: up{job="classifier"} == 0
        for: 1m
        labels: {severity: page}
        annotations: {summary: "The service doesn't answer Prometheus."}
      - alert: ClassifierFails
        expr: >-
          sum(rate(classifier_requests_total{status=~"500|504"}[5m]))
          > 0.01 * sum(rate(classifier_requests_total[5m]))
        for: 5m
        labels: {severity: page}
        annotations: {summary: "More than 1 % of all requests fail or run out of time."}
      - alert: ClassifierOverloaded
        expr: >-
          sum(rate(classifier_rejections_total{reason="queue_full"}[5m]))
          > 0.05 * sum(rate(classifier_requests_total{path="/predict"}[5m]))
        for: 5m
        labels: {severity: ticket}
        annotations: {summary: "More than 5 % of all requests are refused: more replicas are needed."}
      - alert: ClassifierSlow
        expr: histogram_quantile(0.99, sum by (le) (rate(classifier_stage_seconds_bucket{stage="total"}[5m]))) > 2
        for: 10m
        labels: {severity: ticket}
        annotations: {summary: "One answer in a hundred takes longer than 2 seconds."}
      - alert: ClassifierReloadRefused
        expr: increase(classifier_reloads_total{outcome="refused"}[10m]) > 0
        labels: {severity: ticket}
        annotations: {summary: "A new model was refused; the old one is still served."}
"""

DRIFT_ALERT = """\
      - alert: ClassifierDrift
        expr: increase(drift_alerts_total[1h]) > 0
        labels: {severity: ticket}
        annotations: {summary: "Live texts are no longer like those the model was made for; see /drift."}
"""

DATASOURCE = """\
apiVersion: 1
datasources:
  - {name: Prometheus, uid: prometheus, type: prometheus, url: "http://prometheus:9090", isDefault: true}
"""

DASHBOARDS = """\
apiVersion: 1
providers:
  - {name: classifier, type: file, options: {path: /etc/grafana/provisioning/dashboards}}
"""

# Title, unit of Grafana, and what is drawn: expression → legend
PANELS: list[tuple[str, str, dict[str, str]]] = [
    ("Requests a second", "reqps", {
        'sum by (status) (rate(classifier_requests_total{path="/predict"}[1m]))': "{{status}}"}),
    ("Latency of answers", "s", {
        f'histogram_quantile({q}, sum by (le) (rate(classifier_stage_seconds_bucket{{stage="total"}}[1m])))': f"p{name}"
        for q, name in ((0.5, "50"), (0.95, "95"), (0.99, "99"))}),
    ("Where the time goes, on average", "s", {
        "rate(classifier_stage_seconds_sum[1m]) / rate(classifier_stage_seconds_count[1m])": "{{stage}}"}),
    ("Texts that wait", "short", {"sum(classifier_queue_texts)": "texts"}),
    ("Refused or given up, a second", "reqps", {
        "sum by (reason) (rate(classifier_rejections_total[1m]))": "{{reason}}"}),
    ("Batches, on average", "short", {
        "rate(classifier_batch_texts_sum[1m]) / rate(classifier_batch_texts_count[1m])": "texts",
        "rate(classifier_batch_padded_tokens_sum[1m]) / rate(classifier_batch_padded_tokens_count[1m])": "tokens"}),
    ("Padding, on average", "percentunit", {
        "rate(classifier_batch_padding_share_sum[1m]) / rate(classifier_batch_padding_share_count[1m])": "share"}),
    ("Time of a batch", "s", {
        "histogram_quantile(0.5, sum by (le) (rate(classifier_batch_seconds_bucket[1m])))": "p50",
        "histogram_quantile(0.99, sum by (le) (rate(classifier_batch_seconds_bucket[1m])))": "p99"}),
    ("Labels, texts a second", "short", {"sum by (label) (rate(classifier_predictions_total[5m]))": "{{label}}"}),
    ("Models served", "short", {"sum by (version, techniques) (classifier_model_info)": "{{version}} {{techniques}}"}),
    ("Reloads in an hour", "short", {"sum by (outcome) (increase(classifier_reloads_total[1h]))": "{{outcome}}"}),
    ("Memory", "bytes", {"process_resident_memory_bytes": "{{instance}}"}),
]  # fmt: skip

DRIFT_PANELS: list[tuple[str, str, dict[str, str]]] = [
    ("Drift: p-values", "short", {"drift_p_value": "{{test}}"}),
    ("Drift: sizes of differences", "short", {"drift_effect": "{{test}}"}),
    ("Accuracy, as guessed without labels", "percentunit", {"drift_estimated_accuracy": "{{method}}"}),
    ("Texts watched, a second", "short", {
        "sum by (outcome) (rate(classifier_observed_texts_total[1m]))": "{{outcome}}"}),
]  # fmt: skip

KUBERNETES = """\
apiVersion: apps/v1
kind: Deployment
metadata: {name: classifier, labels: {app: classifier}}
spec:
  # No number of replicas: the autoscaler below decides, and applying this file anew must not reset it.
  selector: {matchLabels: {app: classifier}}
  strategy: {rollingUpdate: {maxUnavailable: 0, maxSurge: 1}}
  template:
    metadata:
      labels: {app: classifier}
      annotations: {prometheus.io/scrape: "true", prometheus.io/port: "8000"}
    spec:
      terminationGracePeriodSeconds: $grace # above what the server itself takes: ${needed}s
      automountServiceAccountToken: false
      securityContext:
        runAsNonRoot: true
        runAsUser: 10001
        runAsGroup: 10001
        seccompProfile: {type: RuntimeDefault}
      containers:
        - name: server
          image: $image
          ports: [{name: http, containerPort: 8000}]
          env:
            - name: OPTIMIZATION_API_KEY
              valueFrom: {secretKeyRef: {name: classifier, key: api-key, optional: true}}
          startupProbe: # until the model is loaded
            httpGet: {path: /readyz, port: http}
            periodSeconds: 1
            failureThreshold: 120
          readinessProbe: # says no as soon as the server is told to stop, and it goes on answering for a while
            httpGet: {path: /readyz, port: http}
            periodSeconds: 2
            failureThreshold: 1
          livenessProbe: # says yes under any load: a busy server must not be killed for it
            httpGet: {path: /healthz, port: http}
            periodSeconds: 10
            timeoutSeconds: 3
            failureThreshold: 3
          resources:
            requests: {cpu: "$cpus", memory: ${memory}Mi}
            limits: {cpu: "$cpus", memory: ${memory}Mi}
          securityContext:
            allowPrivilegeEscalation: false
            readOnlyRootFilesystem: true
            capabilities: {drop: [ALL]}
          volumeMounts: [{name: tmp, mountPath: /tmp}]
      volumes: [{name: tmp, emptyDir: {medium: Memory, sizeLimit: 16Mi}}]
---
apiVersion: v1
kind: Service
metadata: {name: classifier, labels: {app: classifier}}
spec:
  selector: {app: classifier}
  ports: [{name: http, port: 80, targetPort: http}]
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: classifier}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: classifier}
  minReplicas: $min_replicas
  maxReplicas: $max_replicas
  metrics: # of what a pod requests; a queue begins well below 100
    - type: Resource
      resource: {name: cpu, target: {type: Utilization, averageUtilization: 70}}
  behavior: {scaleDown: {stabilizationWindowSeconds: 300}}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: classifier}
spec:
  maxUnavailable: 1
  selector: {matchLabels: {app: classifier}}
"""


@dataclass
class WriteConfig:
    """Write the folder that an image is built from, with files for compose, Prometheus, Grafana and Kubernetes."""

    bundle: str = "outputs/model_optimization/bundles/float32"
    """The bundle's folder."""
    output: str = CONTEXT
    """Where to write; what an earlier ``write`` left there is replaced."""
    drift: str = ""
    """A drift monitor's folder, to watch live traffic with; empty is none."""
    base: str = f"python:{PYTHON}-slim-bookworm"
    """The base image, with its tag or digest. Its Python must be the one that runs this, for which packages are
    pinned."""
    image: str = ""
    """Name and tag of the image; by default classifier and the model's version."""
    parallel: int = 2
    """Batches computed at once, in [1, 64]; with ``threads`` also the cores that a container gets."""
    threads: int = 1
    """CPU threads of one batch, in [1, 64]."""
    drain_seconds: float = 5
    """Seconds in which /readyz says no and requests are still answered, in [0, 600]: load balancers need time."""
    min_replicas: int = 2
    """Fewest replicas in Kubernetes, >= 1."""
    max_replicas: int = 10
    """Most replicas in Kubernetes, >= min_replicas."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_range("parallel", self.parallel, 1, 64)
        check_range("threads", self.threads, 1, 64)
        check_range("drain_seconds", self.drain_seconds, 0, 600)
        check_range("min_replicas", self.min_replicas, 1)
        check_range("max_replicas", self.max_replicas, self.min_replicas)
        for name, text in (("base", self.base), ("image", self.image)):
            if not re.fullmatch(r"[A-Za-z0-9._:/@-]*", text):
                raise InputError(f"{name} must be the name of an image. Got {text!r}.")
        version = re.search(r"python:(\d+\.\d+)", self.base)
        if version and version[1] != PYTHON:
            raise InputError(
                f"base has Python {version[1]}, but packages are pinned for {PYTHON}.",
                hint=f"--base python:{PYTHON}-slim-bookworm, or run this with Python {version[1]}",
            )


def write(config: WriteConfig) -> None:
    """Write the folder, lint it, and say where it is; see :class:`WriteConfig`.

    Raises:
        FileNotFoundError: There is no bundle, or no monitor.
        InputError: One of them is damaged, the folder holds something else, or lint finds fault.
    """
    model = OnnxClassifier(config.bundle)  # what can't be served needs no image
    output = Path(config.output)
    if output.exists() and not (output.is_dir() and (_is_ours(output) or not any(output.iterdir()))):
        raise InputError(f"{output} holds something that write has not written.", hint="another --output")
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as folder:
        made = Path(folder) / "image"
        _write_files(config, model, made)
        problems = lint(made)
        if problems:
            raise InputError("; ".join(problems) + ".")
        if output.exists():
            output.replace(Path(folder) / "before")
        made.replace(output)
    sys.stdout.write(f"{output}: {size_of(output) / 1e6:.1f} MB, image {image_of(output)}\n")


def _is_ours(folder: Path) -> bool:
    path = folder / "Dockerfile"
    return path.is_file() and path.read_text(encoding="utf-8", errors="replace").startswith(MARK)


def _write_files(config: WriteConfig, model: OnnxClassifier, output: Path) -> None:
    command = ["python", "-m", SERVER, "serve", "--bundle", "/models/served", "--host", "0.0.0.0", "--port", "8000",
               "--parallel", str(config.parallel), "--threads", str(config.threads),
               "--drain_seconds", f"{config.drain_seconds:g}"]  # fmt: skip
    command += ["--drift", "/models/monitor"] if config.drift else []
    needed = math.ceil(served_as(command).grace)
    values = {
        "base": config.base, "command": json.dumps(command), "image": config.image or f"classifier:{model.version}",
        "cpus": config.parallel * config.threads, "memory": memory_needed(model), "needed": needed,
        "grace": needed + 10, "min_replicas": config.min_replicas, "max_replicas": config.max_replicas,
    }  # fmt: skip
    drift = bool(config.drift)
    templates = {
        "Dockerfile": MARK + DOCKERFILE, "compose.yaml": MARK + COMPOSE, "kubernetes.yaml": MARK + KUBERNETES,
    }  # fmt: skip
    files = {name: Template(text).substitute(values) for name, text in templates.items()} | {
        ".dockerignore": DOCKERIGNORE,
        "requirements.txt": MARK + "\n".join(pinned((*PACKAGES, *(DRIFT_PACKAGES if drift else ())))) + "\n",
        "prometheus/prometheus.yml": PROMETHEUS,
        "prometheus/alerts.yml": ALERTS + (DRIFT_ALERT if drift else ""),
        "grafana/datasources/prometheus.yaml": DATASOURCE,
        "grafana/dashboards/dashboards.yaml": DASHBOARDS,
        "grafana/dashboards/classifier.json": json.dumps(dashboard(PANELS + (DRIFT_PANELS if drift else [])), indent=1),
    }
    for name, text in files.items():
        write_atomic(output / name, text)
    for name in SOURCE + (DRIFT_SOURCE if drift else ()):
        write_atomic(output / "app" / name, (ROOT / name).read_bytes())
    for name in (MODEL, TOKENIZER, CARD):
        write_atomic(output / "models" / "served" / name, (model.folder / name).read_bytes())
    if drift:
        from model_optimization.monitoring.drift_detection import FILE, DriftMonitor

        DriftMonitor.load(config.drift)
        write_atomic(output / "models" / "monitor" / FILE, (Path(config.drift) / FILE).read_bytes())


def memory_needed(model: OnnxClassifier) -> int:
    """Return the memory of a container, in MiB: Python with its libraries, and at a reload two models, each twice."""
    return 64 * math.ceil((320 + 4 * megabytes(model.folder)) / 64)


def pinned(roots: Sequence[str]) -> list[str]:
    """Return ``name==version`` of packages and of all that they need here, as they are installed.

    Args:
        roots: Requirements such as ``jsonargparse[signatures]``.

    Raises:
        InputError: One is not installed.
    """
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    versions: dict[str, str] = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    waiting = [Requirement(root) for root in roots]
    while waiting:
        needed = waiting.pop()
        name, extras = canonicalize_name(needed.name), frozenset(needed.extras)
        if (name, extras) in seen or name in UNUSED:
            continue
        seen.add((name, extras))
        try:
            found = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            raise InputError(f"The package {name!r} is not installed, so its version can't be pinned.",
                             hint='pip install "llm-roadmap[optimization]"') from None  # fmt: skip
        versions[name] = found.version.partition("+")[0]  # a local build has no place in an index
        for text in found.requires or ():
            other = Requirement(text)
            if any(other.marker is None or other.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
                waiting.append(other)
    return [f"{name}=={version}" for name, version in sorted(versions.items())]


def dashboard(panels: Sequence[tuple[str, str, dict[str, str]]]) -> dict[str, Any]:
    """Return a Grafana dashboard, three panels a row."""
    source = {"type": "prometheus", "uid": "prometheus"}
    drawn = [
        {
            "id": number + 1, "title": title, "type": "timeseries", "datasource": source,
            "gridPos": {"x": number % 3 * 8, "y": number // 3 * 7, "w": 8, "h": 7},
            "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
            "targets": [{"refId": chr(65 + i), "expr": expr, "legendFormat": legend, "datasource": source}
                        for i, (expr, legend) in enumerate(targets.items())],
        }
        for number, (title, unit, targets) in enumerate(panels)
    ]  # fmt: skip
    return {"uid": "classifier", "title": "Text classification", "schemaVersion": 39, "editable": False,
            "refresh": "5s", "time": {"from": "now-30m", "to": "now"}, "panels": drawn}  # fmt: skip


# --- Dockerfiles ------------------------------------------------------------------------------------------------------


def instructions(text: str) -> list[tuple[str, str]]:
    """Return a Dockerfile's instructions, (name in capitals, the rest), without comments, lines joined.

    Raises:
        InputError: A line is no instruction.
    """
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    found = []
    for line in re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines():
        name, _, rest = line.strip().partition(" ")
        if not (name.isalpha() and rest):
            raise InputError(f"The Dockerfile has a line that is no instruction: {line[:80]!r}.")
        found.append((name.upper(), rest.strip()))
    return found


def exec_form(text: str) -> list[str] | None:
    """Return the words of a command written as a JSON list; None where it is a line for a shell."""
    try:
        words = json.loads(text)
    except ValueError:
        return None
    return words if isinstance(words, list) and words and all(isinstance(word, str) for word in words) else None


def served_as(command: Sequence[str]) -> ServeConfig:
    """Return how a command of the server's module serves.

    Raises:
        InputError: It is no such command, or has a flag that the server does not know.
    """
    if list(command[1:4]) != ["-m", SERVER, "serve"]:
        raise InputError(f"CMD must be python -m {SERVER} serve …. Got {shlex.join(command)}.")
    config: ServeConfig = parse(ServeConfig, command[4:], " ".join(command[:4]))
    return config


def image_of(context: Path) -> str:
    """Return the image's name, from the compose file."""
    return str(yaml.safe_load((context / "compose.yaml").read_text(encoding="utf-8"))["services"]["server"]["image"])


# --- Lint -------------------------------------------------------------------------------------------------------------


def lint(context: Path) -> list[str]:
    """Return what is wrong with a folder that ``write`` made, a sentence without a full stop each; empty is good.

    Raises:
        FileNotFoundError: A file is missing.
        InputError: One can't be parsed.
    """
    dockerfile = instructions(_text(context, "Dockerfile"))
    problems = [*_lint_dockerfile(dockerfile), *_lint_requirements(_text(context, "requirements.txt"))]
    command = exec_form(dict(dockerfile).get("CMD", ""))
    if command is None:
        return problems
    served = served_as(command)
    problems += _lint_compose(context, served) + _lint_kubernetes(_kubernetes(context), served)
    return problems + _lint_monitoring(context, drift=bool(served.drift))


def _lint_dockerfile(steps: Sequence[tuple[str, str]]) -> list[str]:
    problems = []
    values = dict(steps)  # the last of each name
    for name, rest in steps:
        if name == "FROM" and not is_pinned(rest.split()[0]):
            problems.append(f"FROM {rest} is not pinned to a version")
        if name == "ADD":
            problems.append("ADD unpacks and downloads: use COPY")
        if name == "COPY" and rest.split()[0] in (".", "./"):
            problems.append("COPY . takes whatever lies around")
        if name == "RUN" and "pip install" in rest and "--no-cache-dir" not in rest:
            problems.append("pip install keeps a cache in the image: --no-cache-dir")
        if name == "ENV" and re.search(r"(KEY|TOKEN|PASSWORD|SECRET)=", rest):
            problems.append("ENV holds a secret, which everybody can read in the image")
    names = [name for name, _ in steps]
    if names[:1] != ["FROM"]:
        problems.append("the Dockerfile must begin with FROM")
    if values.get("USER", "root").partition(":")[0] in ("root", "0"):
        problems.append("the last USER must not be root")
    elif not values["USER"].partition(":")[0].isdigit():
        problems.append("USER must be a number: Kubernetes can't tell that a name is not root")
    elif "RUN" in names and names[::-1].index("USER") > names[::-1].index("RUN"):
        problems.append("RUN after USER can't install anything")
    if exec_form(values.get("CMD", "")) is None:
        problems.append("CMD must be a JSON list: a shell does not hand SIGTERM on")
    if exec_form(values.get("HEALTHCHECK", "").partition("CMD ")[2]) is None:
        problems.append("HEALTHCHECK must be there, with a JSON list")
    return problems


def is_pinned(image: str) -> bool:
    """Tell whether an image's name has a digest, or a tag with a number in it."""
    tag = image.rpartition("/")[2].partition(":")[2]
    return "@sha256:" in image or bool(re.search(r"[0-9]", tag))


def _lint_requirements(text: str) -> list[str]:
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    loose = [line for line in lines if not re.fullmatch(r"[a-z0-9.-]+==[A-Za-z0-9.!]+", line)]
    heavy = [line for line in lines if HEAVY.search(line)]
    return [f"{line!r} is not pinned" for line in loose] + [f"{line!r} does not belong in a server" for line in heavy]


def _lint_compose(context: Path, served: ServeConfig) -> list[str]:
    services = _yaml(context, "compose.yaml")["services"]
    server = services["server"]
    problems = [f"image {service['image']} of {name} is not pinned" for name, service in services.items()
                if not is_pinned(service["image"])]  # fmt: skip
    if not {"cpus", "memory"} <= set(server.get("deploy", {}).get("resources", {}).get("limits", {})):
        problems.append("compose: the server needs limits of cpus and memory")
    if int(server.get("stop_grace_period", "10s").removesuffix("s")) <= served.grace:
        problems.append(f"compose: stop_grace_period must be above {served.grace:g} seconds")
    if not str(server["ports"][0]).endswith(f":{served.port}"):
        problems.append(f"compose: the server listens on port {served.port}")
    targets = [target for job in _yaml(context, "prometheus/prometheus.yml")["scrape_configs"]
               for group in job["static_configs"] for target in group["targets"]]  # fmt: skip
    if targets != [f"server:{served.port}"]:
        problems.append(f"Prometheus must read server:{served.port}, not {', '.join(targets)}")
    for service in services.values():
        for volume in service.get("volumes", ()):
            source = volume.partition(":")[0]
            if source.startswith(".") and not (context / source).is_dir():
                problems.append(f"compose: there is no folder {source}")
    return problems


def _lint_kubernetes(documents: dict[str, Any], served: ServeConfig) -> list[str]:
    wanted = ("Deployment", "Service", "HorizontalPodAutoscaler", "PodDisruptionBudget")
    missing = [kind for kind in wanted if kind not in documents]
    if missing:
        return [f"Kubernetes: there is no {kind}" for kind in missing]
    problems = []
    deployment, service, scaler, budget = (documents[kind] for kind in wanted)
    template = deployment["spec"]["template"]
    pod, labels = template["spec"], template["metadata"]["labels"]
    container = pod["containers"][0]
    paths = {getattr(route, "path", "") for route in create_app(ServeConfig()).routes}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        path = container.get(probe, {}).get("httpGet", {}).get("path")
        if path not in paths:
            problems.append(f"Kubernetes: {probe} reads {path}, which the server does not have")
    if container["ports"][0]["containerPort"] != served.port:
        problems.append(f"Kubernetes: the server listens on port {served.port}")
    for kind in ("requests", "limits"):
        if not {"cpu", "memory"} <= set(container.get("resources", {}).get(kind, {})):
            problems.append(f"Kubernetes: {kind} of cpu and memory must be set")
    if pod.get("terminationGracePeriodSeconds", 30) <= served.grace:
        problems.append(f"Kubernetes: terminationGracePeriodSeconds must be above {served.grace:g}")
    secure = pod.get("securityContext", {}) | container.get("securityContext", {})
    if not (secure.get("runAsNonRoot") and secure.get("readOnlyRootFilesystem")
            and secure.get("allowPrivilegeEscalation") is False
            and secure.get("capabilities", {}).get("drop") == ["ALL"]):  # fmt: skip
        problems.append("Kubernetes: the securityContext must give all rights away")
    for name, selector in (
        ("Deployment", deployment["spec"]["selector"]["matchLabels"]),
        ("Service", service["spec"]["selector"]),
        ("PodDisruptionBudget", budget["spec"]["selector"]["matchLabels"]),
    ):
        if not selector.items() <= labels.items():
            problems.append(f"Kubernetes: the {name} selects {selector}, but pods are {labels}")
    if scaler["spec"]["scaleTargetRef"]["name"] != deployment["metadata"]["name"]:
        problems.append("Kubernetes: the autoscaler scales something else")
    if not is_pinned(container["image"]):
        problems.append(f"Kubernetes: image {container['image']} is not pinned")
    return problems


def _lint_monitoring(context: Path, drift: bool) -> list[str]:
    rules = [rule for group in _yaml(context, "prometheus/alerts.yml")["groups"] for rule in group["rules"]]
    board = json.loads(_text(context, "grafana/dashboards/classifier.json"))
    targets = [target for panel in board["panels"] for target in panel["targets"]]
    sources = {source["uid"] for source in _yaml(context, "grafana/datasources/prometheus.yaml")["datasources"]}
    known = metric_names(drift) | {"up"}
    problems = []
    for expression in [rule["expr"] for rule in rules] + [target["expr"] for target in targets]:
        for name in sorted(names_in(expression) - known):
            problems.append(f"there is no metric {name}, which {expression!r} reads")
    problems += [f"there is no data source {target['datasource']['uid']}" for target in targets
                 if target["datasource"]["uid"] not in sources]  # fmt: skip
    return problems


def names_in(expression: str) -> set[str]:
    """Return the names of metrics in an expression of Prometheus: words that no parenthesis and no operator follows."""
    bare = re.sub(r'"[^"]*"|\{[^}]*\}|\[[^]]*\]|\b(by|without|ignoring|on)\s*\([^)]*\)', " ", expression)
    words = set(re.findall(r"\b[a-z_][a-z0-9_]*\b(?!\s*\()", bare))
    return words - {"and", "or", "unless", "group_left", "group_right", "bool", "offset"}


def metric_names(drift: bool) -> set[str]:
    """Return the names of all time series that the server has."""
    suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}
    registry = Metrics().registry
    if drift:
        from model_optimization.monitoring.drift_detection import DriftMetrics

        DriftMetrics(registry)
    return {metric.name + suffix for metric in registry.collect() for suffix in suffixes.get(metric.type, ("",))}


def _text(context: Path, name: str) -> str:
    path = context / name
    if not path.is_file():
        raise FileNotFoundError(f"{context} has no {name}: write it first.")
    return path.read_text(encoding="utf-8")


def _yaml(context: Path, name: str) -> Any:
    return next(iter(_documents(context, name)))


def _documents(context: Path, name: str) -> list[Any]:
    try:
        return list(yaml.safe_load_all(_text(context, name)))
    except yaml.YAMLError as error:
        raise InputError(f"{name} is no YAML: {' '.join(str(error).split())[:200]}.") from None


def _kubernetes(context: Path) -> dict[str, Any]:
    return {document["kind"]: document for document in _documents(context, "kubernetes.yaml")}


# --- Trying it out without Docker -------------------------------------------------------------------------------------


@dataclass
class Sandbox:
    """A folder that stands for the image's file system, and a virtual environment that stands for its Python.

    Attributes:
        root: The folder.
        context: What the image is built from.
        variables: Of ``ENV``.
        workdir: Of ``WORKDIR``, inside.
        base_bytes: What ``FROM`` took.
    """

    root: Path
    context: Path
    variables: dict[str, str] = field(default_factory=dict)
    workdir: str = "/"
    base_bytes: int = 0

    def inside(self, path: str) -> Path:
        """Return where a path of the image lies."""
        absolute = os.path.normpath(os.path.join(self.workdir, path))
        return self.root / "files" / absolute.lstrip("/")

    @property
    def environment(self) -> dict[str, str]:
        """What processes get: nothing of this one but where files and pip's settings are."""
        kept = {name: value for name, value in os.environ.items()
                if name in ("HOME", "LANG", "TMPDIR", "SSL_CERT_FILE") or name.startswith("PIP_")}  # fmt: skip
        return {**kept, **self.variables, "PATH": f"{self.root / 'venv' / 'bin'}:/usr/bin:/bin"}

    def words(self, command: Sequence[str]) -> list[str]:
        """Return a command whose paths lie in the folder."""
        return [str(self.inside(word)) if word.startswith("/") and self.inside(word).exists() else word
                for word in command]  # fmt: skip

    def execute(self, command: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command to its end, in ``WORKDIR``."""
        return subprocess.run(
            self.words(command), cwd=self.inside("."), env=self.environment, capture_output=True, text=True, **options
        )

    def step(self, name: str, rest: str) -> None:
        """Do what an instruction says; USER, EXPOSE, HEALTHCHECK and CMD have nothing to do while building.

        Raises:
            InputError: It fails, or is not known here.
        """
        if name == "FROM":
            made = subprocess.run([sys.executable, "-m", "venv", self.root / "venv"], capture_output=True)
            if made.returncode:
                raise InputError("Python can't make a virtual environment.", hint="apt-get install python3-venv")
            self.inside("/").mkdir()
            self.base_bytes = size_of(self.root)
        elif name == "ENV":
            self.variables |= dict(word.split("=", 1) for word in shlex.split(rest))
        elif name == "WORKDIR":
            self.workdir = os.path.join(self.workdir, rest)
            self.inside(".").mkdir(parents=True, exist_ok=True)
        elif name == "COPY":
            self._copy(*rest.split())
        elif name == "RUN":
            done = self.execute(exec_form(rest) or ["/bin/sh", "-c", rest])
            if done.returncode:
                lines = done.stderr.strip().splitlines() or ["no reason given"]
                raise InputError(f"RUN {rest} failed: {lines[-1][:300]}", hint="does pip reach its index?")
        elif name not in ("USER", "EXPOSE", "HEALTHCHECK", "CMD"):
            raise InputError(f"verify can't do what {name} says.")

    def _copy(self, source: str, target: str) -> None:
        excluded, *kept = [
            line for line in _text(self.context, ".dockerignore").splitlines() if line[:1] not in ("#", "")
        ]
        if excluded != "*" or not any(fnmatch.fnmatch(source.strip("/").split("/")[0], line[1:]) for line in kept):
            raise InputError(f"COPY {source} finds nothing: .dockerignore keeps it out.")
        place = self.inside(target)
        if (self.context / source).is_dir():
            shutil.copytree(self.context / source, place, dirs_exist_ok=True)
        else:
            shutil.copy(self.context / source, place)


def size_of(folder: Path) -> int:
    """Return the bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


@dataclass
class ContextConfig:
    """Work on a folder that ``write`` made."""

    context: str = CONTEXT
    """The folder."""


def verify(config: ContextConfig) -> None:
    """Lint the files, execute the Dockerfile's steps and the command of its CMD, ask it, and stop it.

    Raises:
        InputError: Something is wrong, or pip does not reach its index.
    """
    context = Path(config.context).resolve()
    problems = lint(context)
    if problems:
        raise InputError("; ".join(problems) + ".")
    with tempfile.TemporaryDirectory(prefix="image-") as folder:
        sandbox = Sandbox(Path(folder), context)
        steps = instructions(_text(context, "Dockerfile"))
        for name, rest in steps:
            logger.info("%s %s", name, rest[:90])
            sandbox.step(name, rest)
        for package in ("torch", "transformers"):
            if sandbox.execute(["python", "-c", f"import {package}"]).returncode == 0:
                raise InputError(f"The image can import {package}, which it must not have.")
        size = size_of(sandbox.root) - sandbox.base_bytes
        seconds = _try_out(sandbox, dict(steps))
    sys.stdout.write(f"{context.name}: good; {size / 1e6:.0f} MB above its base image, ready after {seconds:.1f} s, "
                     "answers, healthy, exits with 0 at SIGTERM\n")  # fmt: skip


def _try_out(sandbox: Sandbox, steps: dict[str, str]) -> float:
    """Start the command of CMD on a free port, ask it, and stop it; returns the seconds until it was ready."""
    command, health = exec_form(steps["CMD"]), exec_form(steps["HEALTHCHECK"].partition("CMD ")[2])
    assert command and health
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address, served = f"http://127.0.0.1:{port}", served_as(command)
    started = time.monotonic()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [*sandbox.words(command), "--host", "127.0.0.1", "--port", str(port)], cwd=sandbox.inside("."),
            env=sandbox.environment, stderr=log,
        )  # fmt: skip
        try:
            while _status(f"{address}/readyz") != 200:
                if process.poll() is not None or time.monotonic() - started > 60:
                    log.seek(0)
                    last = (log.read().decode("utf-8", "replace").strip().splitlines() or ["nothing"])[-1]
                    raise InputError(f"The server did not get ready. The last it said: {last[:300]}")
                time.sleep(0.05)
            seconds = time.monotonic() - started
            _ask(address, sandbox.context / "models" / "served")
            if sandbox.execute([word.replace(f":{served.port}/", f":{port}/") for word in health]).returncode:
                raise InputError("The command of HEALTHCHECK says that the server is not healthy.")
            process.send_signal(signal.SIGTERM)
            status = process.wait(served.grace + 10)
            if status:
                raise InputError(f"After SIGTERM the server exits with {status}, not with 0.")
        except subprocess.TimeoutExpired:
            raise InputError(f"The server did not stop within {served.grace:g} seconds of SIGTERM.") from None
        finally:
            process.kill()
            process.wait()
    return seconds


def _ask(address: str, bundle: Path) -> None:
    texts = ["The room was clean.", "The bed was cold, and the staff rude.", "", "房间很干净。"]
    request = urllib.request.Request(
        f"{address}/predict", json.dumps({"texts": texts}).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as response:
        labels = [one["label"] for one in json.load(response)["predictions"]]
    expected = [one.label for one in OnnxClassifier(bundle).predict(texts)]
    if labels != expected:
        raise InputError(f"The server labels {labels}, the bundle by itself {expected}.")


def _status(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


# --- Docker -----------------------------------------------------------------------------------------------------------


@dataclass
class RunConfig(ContextConfig):
    """Run the image as it will run elsewhere: nobody in particular, a file system that it only reads."""

    port: int = 8000
    """Port of this machine, in [1, 65535]."""

    def __post_init__(self) -> None:
        """Check the range."""
        check_range("port", self.port, 1, 65535)


def build(config: ContextConfig) -> None:
    """Build the image with Docker.

    Raises:
        InputError: The files have a fault, or Docker is not here.
        OSError: Docker fails.
    """
    context = Path(config.context)
    problems = lint(context)
    if problems:
        raise InputError("; ".join(problems) + ".")
    _docker("build", "--tag", image_of(context), str(context))


def run(config: RunConfig) -> None:
    """Run the image with Docker until Ctrl-C.

    Raises:
        InputError: Docker is not here.
        OSError: It fails.
    """
    key = ["--env", "OPTIMIZATION_API_KEY"] if "OPTIMIZATION_API_KEY" in os.environ else []
    _docker("run", "--rm", "--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--security-opt", "no-new-privileges",
            "--publish", f"127.0.0.1:{config.port}:8000", *key, image_of(Path(config.context)))  # fmt: skip


def _docker(*arguments: str) -> None:
    if not shutil.which("docker") or subprocess.run(["docker", "info"], capture_output=True).returncode:
        raise InputError(
            "Docker is not here, or its daemon does not run.", hint="`verify` does the same steps without it"
        )
    status = subprocess.run(["docker", *arguments]).returncode
    if status:
        raise OSError(f"docker {arguments[0]} failed with {status}; its output tells why")


if __name__ == "__main__":
    run_commands({"write": write, "verify": verify, "build": build, "run": run}, module=MODULE, extra="optimization")
