"""The docs name what there is: sections that exist, files that exist; the page with the whole loop runs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import BaseModel

from conf.schema import Config

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = (
    "store",
    "conf",
    "speech",
    "rollout",
    "judge",
    "learner",
    "actors",
    "commands",
    "report",
    "bench",
    "examples",
    "tests",
)
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


def is_setting(name: str) -> bool:
    group, field = name.split(".")[:2]
    annotation = Config.model_fields[group].annotation if group in Config.model_fields else None
    return isinstance(annotation, type) and issubclass(annotation, BaseModel) and field in annotation.model_fields


def is_defined(name: str) -> bool:
    """A module of the project, or what its text names; folders stand for their ``__init__``."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        place = ROOT.joinpath(*parts[:length])
        file = place.with_suffix(".py") if place.with_suffix(".py").is_file() else place / "__init__.py"
        if file.is_file():
            return set(parts[length:]) <= set(re.findall(r"\w+", file.read_text()))
    return False


def test_every_dotted_name_in_a_docstring_is_there() -> None:
    dotted = re.compile(rf"``((?:{'|'.join(FOLDERS)})\.[\w.]*\w)``")
    named = {(str(path.relative_to(ROOT)), name) for path in SOURCES for name in dotted.findall(path.read_text())}
    missing = [(path, name) for path, name in sorted(named) if not name.endswith(".py")]
    assert [item for item in missing if not is_defined(item[1]) and not is_setting(item[1])] == []


@pytest.mark.long
def test_the_page_with_the_whole_loop_runs() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "examples.loop", "1"],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert re.search(r"step 1  reward [1-5]\.\d\d  lambda 0\.\d{3}", done.stdout)
    assert len((ROOT / "examples/loop.py").read_text().splitlines()) <= 120


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_lines_of_prose_end_before_column_120(page: Path) -> None:
    prose = re.sub(r"^ *```.*?^ *```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE).splitlines()
    assert [line for line in prose if len(line) >= 120 and not line.startswith("|")] == []


def test_the_table_of_contents_has_every_page() -> None:
    links = re.findall(r"\]\(([^)#:\s]+)\)", (ROOT / "docs/README.md").read_text())
    pages = {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")} - {"README.md"}
    assert pages <= set(links)


@pytest.mark.parametrize("page", ["design", "method", "add-a-family", "extend"])
def test_every_name_of_code_on_a_page_for_readers_of_the_code_is_there(page: str) -> None:
    text = (ROOT / "docs" / f"{page}.md").read_text()
    spans = " ".join(re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)))
    spans = re.sub(r"<\|.*?\|>", "", spans)  # tokens of a vocabulary
    names = set(re.findall(r"\b(?:[a-z]\w*_\w*[a-z]|[A-Z][a-z]+[A-Z]\w+)\b", spans))
    settings = [path for folder in ("conf", "examples") for path in (ROOT / folder).rglob("*.yaml")]
    code = [path for path in SOURCES if path.relative_to(ROOT).parts[0] != "tests"]
    written = set(re.findall(r"\w+", " ".join(path.read_text() for path in [*code, *settings])))
    files = {path.stem for path in SOURCES}
    assert names and sorted(names - written - files) == []
