"""What the READMEs say is true: their commands run, their links lead somewhere, and the two languages agree."""

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ENGLISH, CHINESE = ROOT / "README.md", ROOT / "README.zh-CN.md"
PROJECT_READMES = sorted(path for path in ROOT.glob("*/README.md") if (path.parent / "__init__.py").exists())
DOCUMENTS = [ENGLISH, CHINESE, ROOT / "CONTRIBUTING.md", *PROJECT_READMES]

BLOCK = re.compile(r"^```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^```\s*$", re.M | re.S)
RUNNABLE = re.compile(
    r"(?P<excuse><!-- not run: [^>]+-->\s*)?(?P<flags>(?:<!-- tests add to [^>]+?-->\s*)*)"
    r"^```bash[^\n]*\n(?P<text>.*?)^```\s*$",
    re.M | re.S,
)
ADDED = re.compile(r"<!-- tests add to (?P<which>\d+): (?P<flags>[^>]+?) -->")
LINK = re.compile(r"""\]\(<?([^)\s>]+)>?[^)]*\)|(?:src|href|srcset)="([^"\s]+)""")


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def commands_in(readme: str) -> list[str]:
    """Return the commands of all ```bash blocks that no ``<!-- not run: reason -->`` stands before.

    ``<!-- tests add to 1: --steps 50 -->`` makes the block's first command short, whose full length `make demo` runs.
    """
    commands = []
    for match in RUNNABLE.finditer(readme):
        lines = match["text"].replace("\\\n", " ").splitlines()
        block = [line for line in lines if line.strip() and not line.lstrip().startswith("#")]
        for added in ADDED.finditer(match["flags"]):
            block[int(added["which"]) - 1] += f" {added['flags']}"
        commands += [] if match["excuse"] else block
    return commands


def table_rows(markdown: str) -> list[list[str]]:
    rows = [line.strip().strip("|") for line in BLOCK.sub("", markdown).splitlines() if line.lstrip().startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)] for row in rows]


def untranslatable(cell: str) -> tuple[list[str], list[str]]:
    """Return the code spans of a table cell, and the numbers outside them: what a translation must keep."""
    return re.findall(r"`[^`]*`", cell), sorted(re.findall(r"\d[\d.,]*\d|\d", re.sub(r"`[^`]*`", "", cell)))


def anchors_of(markdown: str) -> set[str]:
    """Return the anchors that GitHub gives the headings, and those set by hand."""
    body = BLOCK.sub("", markdown)
    seen: Counter[str] = Counter()
    anchors = set(re.findall(r"""<[^>]+(?:id|name)="([^"]+)""", body))
    for heading in re.findall(r"^#{1,6}\s+(.*?)\s*#*$", body, re.M):
        label = re.sub(r"!?\[([^\]]*)\]\([^)]*\)|<[^>]+>", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", label.strip().lower()).replace(" ", "-")
        anchors.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return anchors


@pytest.mark.slow
@pytest.mark.parametrize("readme", [ENGLISH, *PROJECT_READMES], ids=relative)
def test_every_command_runs(readme: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=":")  # `python` is the one that runs the tests
    commands = commands_in(text_of(readme))
    if readme != ENGLISH:
        assert commands, "a project's README shows no command that runs"
    for command in commands:
        run = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command],
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=1800,
        )
        assert run.returncode == 0, f"\n$ {command}\n{run.stdout[-4000:]}"


def test_both_languages_show_the_same_blocks() -> None:
    english, chinese = ([match.group() for match in BLOCK.finditer(text_of(path))] for path in (ENGLISH, CHINESE))
    assert chinese == english
    excuses = [re.findall(r"<!-- not run:", text_of(path)) for path in (ENGLISH, CHINESE)]
    assert len(excuses[0]) == len(excuses[1])


def test_both_languages_show_the_same_tables() -> None:
    english, chinese = table_rows(text_of(ENGLISH)), table_rows(text_of(CHINESE))
    assert len(chinese) == len(english)
    for ours, theirs in zip(english, chinese, strict=True):
        assert len(theirs) == len(ours), f"{ours}\n{theirs}"
        for cell, translated in zip(ours, theirs, strict=True):
            assert untranslatable(translated) == untranslatable(cell), f"{cell!r} is not {translated!r}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=relative)
def test_links_lead_somewhere(document: Path) -> None:
    body = re.sub(r"`[^`\n]*`", "", BLOCK.sub("", text_of(document)))
    for found in LINK.finditer(body):
        target, _, anchor = (found[1] or found[2]).partition("#")
        if re.match(r"[a-z]+:", target):
            continue  # another site: tests don't reach it
        file = document.parent / target if target else document
        assert file.exists(), f"{found.group()}: no such file"
        assert file.resolve().is_relative_to(ROOT), f"{found.group()}: leaves the repository"
        if anchor and file.suffix == ".md":
            assert anchor in anchors_of(text_of(file)), f"{found.group()}: no such heading"


@pytest.mark.parametrize("readme", PROJECT_READMES, ids=relative)
def test_a_project_readme_opens_with_its_chinese_overview(readme: Path) -> None:
    title, *rest = re.findall(r"^#{1,6}\s.*", BLOCK.sub("", text_of(readme)), re.M)
    assert title.startswith("# ")
    assert rest
    assert "中文速览" in rest[0]


def test_the_checks_above_can_fail() -> None:
    readme = "```bash\npython a \\\n --b\n# why\n```\n<!-- not run: gigabytes -->\n```bash\nc\n```\n```bash\nd\n```\n"
    assert commands_in(readme) == ["python a   --b", "d"]
    added = "<!-- tests add to 1: --x 1 -->\n<!-- tests add to 3: --y -->\n```bash\na\nb\nc\n```\n"
    assert commands_in(added) == ["a --x 1", "b", "c --y"]
    assert untranslatable("about 2 min, `x`") == untranslatable("约 2 分钟，`x`") != untranslatable("约 3 分钟，`x`")
    headings = "# One, `two`!\n## A b\n## A b\n```\n# no\n```\n## 中文速览\n"
    assert anchors_of(headings) == {"one-two", "a-b", "a-b-1", "中文速览"}
    assert table_rows("| a | b |\n|---|---|\n") == [["a", "b"], ["---", "---"]]
