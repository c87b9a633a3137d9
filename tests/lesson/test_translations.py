"""The Korean lesson says the same as the English one, as far as a machine can tell, and the Korean README no more."""

import re
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[2]
HANGUL = re.compile(r"[가-힣]")


@pytest.fixture(scope="module")
def lessons():
    return [nbformat.read(ROOT / f"notebooks/01_method{suffix}.ipynb", as_version=4) for suffix in ("", ".ko")]


def commands(page):
    """The lines of the page's shell blocks, without their comments, which are translated."""
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / page).read_text(), flags=re.S)
    return {line.split("#")[0].strip() for line in "".join(blocks).splitlines()}


def test_korean_readme_has_no_command_that_the_english_one_lacks():
    assert commands("docs/README.ko.md") <= commands("README.md")


def test_lessons_have_the_same_code_cells(lessons):
    english, korean = ([(c.cell_type, c.id, c.metadata) for c in book.cells] for book in lessons)
    assert english == korean
    english, korean = ([c.source for c in book.cells if c.cell_type == "code"] for book in lessons)
    assert english == korean


@pytest.mark.parametrize("pattern", [r"^#+ ", r"```.*?```", r"\$\$.*?\$\$|\$[^$]+\$", r"\d+\.\d+", r"`[^`\n]+`"])
def test_lessons_have_the_same_headings_answers_formulas_numbers_and_names(lessons, pattern):
    for cells in zip(*(book.cells for book in lessons), strict=True):
        english, korean = (set(re.findall(pattern, cell.source, flags=re.S | re.M)) for cell in cells)
        assert english == korean, cells[0].id


def test_korean_lesson_is_korean(lessons):
    plain, korean = ([c for c in book.cells if c.cell_type == "markdown"] for book in lessons)
    assert all(HANGUL.search(c.source) for c in korean)
    assert not any(HANGUL.search(c.source) for c in plain)
