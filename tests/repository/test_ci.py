"""CI runs what the README says, and the pins fit the declared dependencies."""

import re
import sys
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
REQUIREMENTS = [Requirement(text) for group in (PROJECT["dependencies"], *EXTRAS.values()) for text in group]
DIRECT = [requirement for requirement in REQUIREMENTS if requirement.name != PROJECT["name"]]
PINS = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
PYTHONS = ["3.10", "3.11", "3.12", "3.13"]


def commands(script: str) -> list[str]:
    return [line for line in script.splitlines() if line and not line.startswith("#")]


def test_ci_ends_with_the_test_command_of_the_readme() -> None:
    last = commands((ROOT / ".ci/run").read_text())[-1]
    blocks = re.findall(r"^```bash\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S)
    assert last == "make test"
    assert any(last == line.partition("#")[0].strip() for block in blocks for line in block.splitlines())


def test_make_test_is_pytest_without_the_hub() -> None:
    makefile = (ROOT / "Makefile").read_text()
    command = "$(VENV_PYTHON) -m pytest -n auto --dist loadfile --no-loadscope-reorder $(ARGS)"
    assert f"\tHF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 {command}\n" in makefile
    assert "\nVENV_PYTHON := .venv/bin/python\n" in makefile


def test_the_workflow_runs_ci_on_the_oldest_and_newest_python() -> None:
    job = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]["test"]
    assert {"run": ".ci/run"} in job["steps"]
    assert job["strategy"]["matrix"]["python"] == [PYTHONS[0], PYTHONS[-1]]
    supported = SpecifierSet(PROJECT["requires-python"])
    assert list(supported.filter(["3.9", *PYTHONS, "3.14"])) == PYTHONS


def test_every_dependency_has_a_lower_and_an_upper_bound() -> None:
    unbounded = [str(r) for r in DIRECT if {">=", "<"} != {specifier.operator for specifier in r.specifier}]
    assert unbounded == []


def test_all_holds_every_extra() -> None:
    (everything,) = EXTRAS["all"]
    assert Requirement(everything).extras == set(EXTRAS) - {"all"}


def test_constraints_pin_each_direct_dependency_once_for_every_python() -> None:
    pins = [Requirement(line) for line in PINS]
    for python in PYTHONS:
        environment = {"python_version": python, "python_full_version": f"{python}.0", "sys_platform": "linux"}
        pinned: dict[str, str] = {}
        for pin in pins:
            if pin.marker is None or pin.marker.evaluate(environment):
                assert canonicalize_name(pin.name) not in pinned, f"{pin.name} is pinned twice on Python {python}"
                (specifier,) = pin.specifier
                assert specifier.operator == "=="
                pinned[canonicalize_name(pin.name)] = specifier.version
        for requirement in DIRECT:
            version = pinned.get(canonicalize_name(requirement.name))
            assert version, f"{requirement.name} is not pinned on Python {python}: make constraints"
            assert requirement.specifier.contains(version, prereleases=True), f"{requirement}: pinned {version}"


def test_constraints_name_no_host_path_extra_or_local_version() -> None:
    text = (ROOT / "constraints.txt").read_text()
    assert re.findall(r"\S*(?:://|\+|\[|@|(?<![\w.])/)\S*", text) == []
    assert not [line for line in PINS if line.startswith("-")]
