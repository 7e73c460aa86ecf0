"""Importing a module only defines: no file, no network, no log handler, no random number drawn, no heavy library."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for package in sorted(ROOT.glob("*/__init__.py"))
    for path in sorted(package.parent.rglob("*.py"))
    if path.name != "__main__.py"
]

# Runs in a process of its own: imports sys.argv[1] with the network shut. Libraries may draw random numbers and set
# variables when they load (rich and torch do), so what our own code does shows in a second import, with the libraries
# loaded and every state moved away from what the first one may have set.
PROBE = """
import importlib, json, logging, os, random, socket, sys

def refuse(*arguments, **options):
    raise AssertionError("the network was asked for")

def state():
    numpy, torch = sys.modules.get("numpy"), sys.modules.get("torch")
    return {
        "random": random.getstate(),
        "numpy": numpy and repr(numpy.random.get_state()),
        "torch": torch and torch.get_rng_state().tolist(),
        "threads": torch and torch.get_num_threads(),
        "environment": dict(os.environ),
        "logging": (logging.root.level, [repr(handler) for handler in logging.root.handlers]),
    }

def disturb():
    random.seed(7)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(7)
    if torch := sys.modules.get("torch"):
        torch.manual_seed(7)
        torch.set_num_threads(7)
    os.environ.clear()
    logging.root.setLevel(7)
    logging.root.handlers.clear()

socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = socket.create_connection = refuse
module = importlib.import_module(sys.argv[1])
modules = set(sys.modules)
tops = ("shared", sys.argv[1].partition(".")[0])
for name in modules:
    if name.partition(".")[0] in tops:
        del sys.modules[name]
disturb()
before = state()
importlib.import_module(sys.argv[1])
after = state()
json.dump({
    "file": module.__file__,
    "changed": [key for key in before if before[key] != after[key]],
    "modules": sorted({name.partition(".")[0] for name in modules}),
}, sys.stdout)
"""
HEAVY = {"wandb", "datasets", "matplotlib", "accelerate", "transformers"}


@pytest.mark.parametrize("module", MODULES)
def test_import_has_no_side_effect(module: str, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), "TMPDIR": str(home), "PYTHONDONTWRITEBYTECODE": "1"}
    run = subprocess.run(
        [sys.executable, "-c", PROBE, module], cwd=home, env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    seen = json.loads(run.stdout)
    assert Path(seen["file"]).is_relative_to(ROOT), "an installed package of another project shadows ours"
    assert (seen["changed"], run.stderr) == ([], "")
    assert HEAVY & set(seen["modules"]) == set(), "import it where it is used"
    assert list(home.rglob("*")) == []
