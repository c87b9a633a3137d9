"""The Korean README and the Korean lesson say the same as the English ones, as far as a machine can tell."""

import re
from pathlib import Path

import nbformat
import pytest

from ccrepro import report

ROOT = Path(__file__).parents[1]
HANGUL = re.compile(r"[가-힣]")


@pytest.fixture(scope="module")
def readmes():
    return [(ROOT / name).read_text() for name in report.READMES]


@pytest.fixture(scope="module")
def lessons():
    return [nbformat.read(ROOT / f"notebooks/01_method{suffix}.ipynb", as_version=4) for suffix in ("", ".ko")]


def heading_levels(text):
    return [len(marks) for marks in re.findall(r"^(#+) ", re.sub(r"```.*?```", "", text, flags=re.S), flags=re.M)]


def link_targets(text):
    """Where links and pictures lead to, but for the switch of language."""
    return sorted(set(re.findall(r"\]\(([^)]+)\)", text)) - set(report.READMES))


def test_readmes_have_the_same_headings(readmes):
    english, korean = map(heading_levels, readmes)
    assert english == korean


def test_readmes_have_the_same_commands(readmes):
    english, korean = (re.findall(r"```.*?```", text, flags=re.S) for text in readmes)
    assert english == korean


def test_readmes_have_the_same_links_each_leading_somewhere(readmes):
    english, korean = map(link_targets, readmes)
    assert english == korean
    assert [target for target in english if not target.startswith("http") and not (ROOT / target).exists()] == []


def test_readmes_have_the_same_tables(readmes):
    english, korean = ([line.count("|") for line in text.splitlines() if line.startswith("|")] for text in readmes)
    assert english == korean


def test_readmes_show_the_same_published_results(readmes):
    english, korean = (text.split(report.BEGIN)[1].split(report.END)[0] for text in readmes)
    assert english == korean


def test_readmes_lead_to_each_other(readmes):
    english, korean = readmes
    assert "](README.ko.md)" in english
    assert "](README.md)" in korean


def test_lessons_have_the_same_code_cells(lessons):
    english, korean = ([(c.cell_type, c.id, c.metadata) for c in book.cells] for book in lessons)
    assert english == korean
    english, korean = ([c.source for c in book.cells if c.cell_type == "code"] for book in lessons)
    assert english == korean


def test_lessons_have_the_same_headings(lessons):
    english, korean = ([heading_levels(c.source) for c in book.cells if c.cell_type == "markdown"] for book in lessons)
    assert english == korean
    assert sum(map(len, english)) > 10


@pytest.mark.parametrize("pattern", [r"```.*?```", r"\$\$.*?\$\$|\$[^$]+\$", r"\d+\.\d+", r"`[^`\n]+`"])
def test_lessons_have_the_same_answers_formulas_numbers_and_names(lessons, pattern):
    for cells in zip(*(book.cells for book in lessons), strict=True):
        english, korean = (set(re.findall(pattern, cell.source, flags=re.S)) for cell in cells)
        assert english == korean, cells[0].id


def test_korean_lesson_is_korean(lessons):
    plain, korean = ([c for c in book.cells if c.cell_type == "markdown"] for book in lessons)
    assert all(HANGUL.search(c.source) for c in korean)
    assert not any(HANGUL.search(c.source) for c in plain)
