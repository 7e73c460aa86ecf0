"""Hypothesis' settings; and a page of Streamlit in a real browser, which a test module names in ``PAGE``."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

settings.register_profile("project", deadline=None, derandomize=True)  # machines are noisy, and CI's must not roll dice
settings.load_profile("project")

ROOT = Path(__file__).parents[1]
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def address(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Start the module's page as a user would, on a free port of this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    flags = ["--server.headless=true", "--server.address=127.0.0.1", f"--server.port={port}",
             "--browser.gatherUsageStats=false"]  # fmt: skip
    home = tmp_path_factory.mktemp("home")
    process = subprocess.Popen(
        [sys.executable, "-m", "streamlit", "run", str(request.module.PAGE), *flags],
        cwd=home, env={**os.environ, "HOME": str(home), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(300):
            try:
                with urllib.request.urlopen(f"{url}/_stcore/health", timeout=1) as answer:
                    if answer.status == 200:
                        break
            except OSError:
                time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture
def page(address: str) -> Iterator[Any]:
    """Open the module's page in a new tab."""
    if not BROWSER:
        pytest.skip("there is no chromium here")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 1300, "height": 1100})
        tab.set_default_timeout(120_000)
        tab.goto(address)
        yield tab
        browser.close()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the two longest files, so that no core is left alone with one of them at the end."""
    items.sort(key=lambda item: item.path.name not in ("test_readmes.py", "test_notebooks.py"))
