"""The docs name what there is: sections that exist, files that exist; the page with the whole loop runs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("store", "conf", "speech", "rollout", "judge", "learner", "actors", "commands", "report", "bench", "examples", "tests")
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", ["method", "design"])
def test_every_section_that_is_referred_to_exists(page: str) -> None:
    text = (ROOT / "docs" / f"{page}.md").read_text()
    sections = set(re.findall(r"^#+ (\d+(?:\.\d+)?)\.? ", text, re.MULTILINE))
    referred = {
        (str(path.relative_to(ROOT)), number)
        for path in [*SOURCES, *PAGES]
        for number in re.findall(rf"{page}\.md\s+§(\d+(?:\.\d+)?)", path.read_text())
    }
    assert referred and {number for _, number in referred} <= sections, sorted(referred)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_are_there(page: Path) -> None:
    named = set(re.findall(rf"`((?:{'|'.join(FOLDERS)})/[\w/]+\.(?:py|yaml|sh))`", page.read_text()))
    assert [name for name in sorted(named) if not (ROOT / name).is_file()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.long
def test_the_page_with_the_whole_loop_runs() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "examples.loop", "1"],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert re.search(r"step 1  reward [1-5]\.\d\d  lambda 0\.\d{3}", done.stdout)
    assert len((ROOT / "examples/loop.py").read_text().splitlines()) <= 120
