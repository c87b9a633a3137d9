"""Tables in the documentation that follow from the code."""

from pathlib import Path

from ccrepro.config import DATASETS, RECIPES, recipe

ROOT = Path(__file__).parents[1]


def departures():
    """The table of docs/fast.md: each setting in which the fast profile departs from the paper's, by data set."""
    datasets = [name for name in RECIPES["fast"] if name in RECIPES["paper"]]
    pairs = {name: (recipe(name, "paper"), recipe(name, "fast")) for name in datasets}
    changed = {name: fast.differences(paper) for name, (paper, fast) in pairs.items()}
    settings = [s for s in dict.fromkeys(s for found in changed.values() for s in found) if s != "profile"]
    lines = [f"| setting | paper | {' | '.join(DATASETS[name].title for name in datasets)} |"]
    lines.append("|" + "---|" * (len(datasets) + 2))
    for setting in settings:
        paper = {shown(getattr(pairs[name][0], setting)) for name in datasets}
        assert len(paper) == 1, setting
        cells = [shown(changed[name][setting]) if setting in changed[name] else "as there" for name in datasets]
        lines.append(f"| `{setting}` | {paper.pop()} | {' | '.join(cells)} |")
    return "\n".join(lines)


def shown(value):
    return "–".join(f"{v:g}" for v in value) if isinstance(value, tuple) else str(value)


def test_fast_profile_lists_what_departs_from_the_paper():
    assert departures() in (ROOT / "docs/fast.md").read_text()


def test_fast_profile_has_all_data_sets_of_the_paper_and_the_stand_ins():
    assert set(RECIPES["fast"]) == {*RECIPES["paper"], "imagenette", "imagewoof"}


def test_bench_documentation_shows_a_committed_measurement():
    text = (ROOT / "docs/performance.md").read_text()
    tables = list((ROOT / "results/bench").glob("*.md"))
    assert tables
    assert all(f"results/bench/{path.name}" in text for path in tables)
