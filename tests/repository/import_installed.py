"""Import every module of the installed distribution, and fail if one comes from this tree.

python tests/repository/import_installed.py
"""

import importlib
import sys
from importlib.metadata import files
from pathlib import Path

TREE = Path(__file__).resolve().parents[2]

names = [str(file) for file in files("llm-roadmap") or () if file.suffix == ".py"]
for name in sorted(names):
    module = importlib.import_module(name.removesuffix(".py").removesuffix("/__init__").replace("/", "."))
    if TREE in Path(module.__file__ or "").resolve().parents:
        sys.exit(f"{module.__name__} comes from the tree: {module.__file__}")
if not names:
    sys.exit("The installed distribution holds no module (an editable one never does).")
sys.stdout.write(f"{len(names)} modules imported\n")
