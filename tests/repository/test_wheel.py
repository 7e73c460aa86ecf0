"""The wheel holds the packages with their READMEs, YAML and weights, holds no test, and imports without the tree."""

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = [path.parent.name for path in sorted(ROOT.glob("*/__init__.py"))]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    return next(folder.glob("llm_roadmap-*-py3-none-any.whl"))


def test_the_wheel_holds_the_packages_whole_and_nothing_else(wheel: Path) -> None:
    shipped = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    ignored = subprocess.run(
        ["git", "ls-files", "--others", "--ignored", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    paths = (path for name in PACKAGES for path in (ROOT / name).rglob("*") if path.is_file())
    files = {path.relative_to(ROOT).as_posix() for path in paths if "__pycache__" not in path.parts}
    assert shipped == files - set(ignored.stdout.splitlines())


def test_every_module_imports_outside_the_tree(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=False, symlinks=True)
    python = tmp_path / "venv" / "bin" / "python"
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(tmp_path / "venv")}))
    zipfile.ZipFile(wheel).extractall(packages)
    # The libraries of this environment; a .pth file is not followed to further ones, so the editable install stays out.
    (packages / "libraries.pth").write_text(sysconfig.get_path("purelib"))
    script = ROOT / "tests" / "repository" / "import_installed.py"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    run = subprocess.run([python, script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
