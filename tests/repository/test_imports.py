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

PACKAGES = sorted({module.partition(".")[0] for module in MODULES})

# Runs in a process of its own: imports each of sys.argv[1:], of one package, as if it were the first, with the network
# shut. Libraries may draw random numbers and set variables when they load (rich and torch do), so what our own code
# does shows in a second import, with the libraries loaded and every state moved away from what the first may have set.
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
tops, seen = ("shared", sys.argv[1].partition(".")[0]), {}

def forget():
    for name in [name for name in sys.modules if name.partition(".")[0] in tops]:
        del sys.modules[name]

for name in sys.argv[1:]:
    forget()
    file = importlib.import_module(name).__file__
    modules = sorted({name.partition(".")[0] for name in sys.modules})
    forget()
    disturb()
    before = state()
    importlib.import_module(name)
    after = state()
    seen[name] = {"file": file, "changed": [key for key in before if before[key] != after[key]], "modules": modules}
json.dump(seen, sys.stdout)
"""
HEAVY = {"wandb", "datasets", "matplotlib", "accelerate", "transformers"}


@pytest.mark.parametrize("package", PACKAGES)
def test_import_has_no_side_effect(package: str, tmp_path: Path) -> None:
    modules = [module for module in MODULES if module.partition(".")[0] == package]
    home = tmp_path / "home"
    home.mkdir()
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), "TMPDIR": str(home), "PYTHONDONTWRITEBYTECODE": "1"}
    run = subprocess.run(
        [sys.executable, "-c", PROBE, *modules], cwd=home, env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    for module, seen in json.loads(run.stdout).items():
        assert Path(seen["file"]).is_relative_to(ROOT), f"an installed package of another project shadows {module}"
        assert seen["changed"] == [], module
        assert HEAVY & set(seen["modules"]) == set(), f"{module} or one before it: import it where it is used"
    assert list(home.rglob("*")) == []
