import json
import re
from html.parser import HTMLParser

import pytest
from records import record, records

from ccrepro import claims, report, tables
from ccrepro.cli import main
from ccrepro.config import recipe
from ccrepro.errors import ConfigError
from ccrepro.files import atomic_write

PIXEL = bytes.fromhex("89504e470d0a1a0a")


def publish(root, made):
    for r in made:
        cell = f"{r['profile']}/{r['dataset']}/{r['variant']}-seed{r['seed']}"
        atomic_write(root / f"results/runs/{cell}.json", json.dumps(r))


@pytest.fixture
def published(root):
    """Runs of the demo, one of them on another machine, and a figure."""
    made = records(cc=[0.9, 0.8], kmeans_pixels=[0.7, 0.72], views_one=[0.5])
    made[0] |= {"hardware": made[0]["hardware"] | {"gpu": "a GPU"}, "commit": "d" * 40, "seconds": 1234.0}
    publish(root, made)
    atomic_write(root / "results/figures/demo/main_results.png", PIXEL)
    return root


class Page(HTMLParser):
    """The texts of all table cells, the pictures, and what the page would fetch."""

    def __init__(self, text):
        super().__init__()
        self.cells, self.sources, self.open = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.sources += [attributes[name] for name in ("src", "href") if name in attributes]
        if tag not in ("meta", "img", "link"):
            self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.cells[-1] += data


def test_page_is_whole_and_fetches_nothing(published):
    html, _ = report.save_report("demo")
    page = Page(html.read_text())
    assert page.open == []
    assert all(source.startswith(("#", "data:image/png;base64,")) for source in page.sources)
    assert "data:image/png;base64,iVBORw0KGgo=" in page.sources
    assert "prefers-color-scheme: dark" in html.read_text()
    assert "@media print" in html.read_text()


def test_page_and_markdown_hold_the_same_numbers(published):
    html, markdown = report.save_report("demo")
    cells, text = set(Page(html.read_text()).cells), markdown.read_text()
    for shown in (
        "0.850 ± 0.071 (2)",
        "0.710 ± 0.014 (2)",
        "0.500 (1)",
        "dddddddddd",
        "1,234",
        "a GPU",
        "not measured",
    ):
        assert shown in cells
        assert f"| {shown} " in text
    assert all(claim.sentence in cells and claim.sentence in text for claim in claims.CLAIMS)
    assert "](../figures/demo/main_results.png)" in text


def test_one_run_is_told_of_in_the_singular(root):
    pixels = [record("kmeans-pixels", 0.7, seed, epochs=0, seconds=seed + 1.0) for seed in (0, 1)]
    publish(root, [record("cc", 0.9, seconds=1234.0), *pixels])
    told = report.provenance("demo")
    assert told.startswith("Profile `demo`: 1 training run, 1,234 s; 2 runs without training, 1 to 2 s each, on 1 of 2")


def test_every_run_says_where_it_comes_from(published):
    text = report.save_report("demo")[1].read_text()
    origin = text.split("## Where every number comes from")[1]
    runs = re.findall(r"\| (digits/\S+) ", origin)
    assert runs == ["digits/cc-seed0", "digits/cc-seed1", "digits/kmeans-pixels-seed0", "digits/kmeans-pixels-seed1",
                    "digits/views-one-seed0"]  # fmt: skip
    assert "main_results, augmentation, heads, backbones" in origin


def test_what_was_not_run_is_listed(published):
    text = report.save_report("demo")[1].read_text().split("## What was not run")[1]
    lines = [line for line in text.splitlines() if line.startswith(f"| {tables.TABLES['augmentation'].caption}")]
    assert [" ".join(line.split("|")[3].split()) for line in lines] == [
        "x and x",
        *["T(x) and T(x), T(x) and x, x and x"] * 2,
    ]


def test_text_of_records_is_escaped(published):
    publish(published, [record("cc", 0.9, 5, hardware={"cpu": "<b>", "cores": 1, "gpu": None, "threads": 1})])
    assert "<b>" not in report.save_report("demo")[0].read_text()


def test_equal_records_make_equal_reports(published):
    first = [path.read_bytes() for path in report.save_report("demo")]
    assert [path.read_bytes() for path in report.save_report("demo")] == first


def test_report_of_nothing_is_a_mistake(root, capsys):
    with pytest.raises(ConfigError, match=r"no run of profile demo .*make reproduce PROFILE=demo"):
        report.save_report("demo")
    assert main(["report", "--profile", "dmeo"]) == 2
    assert "Write 'demo'" in capsys.readouterr().err


def test_readme_section_is_replaced_and_nothing_else(root):
    text = f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n"
    new = report.readme_with_results(text)
    assert new.startswith("before\n")
    assert new.endswith("\nafter\n")
    assert "old" not in new
    assert "No run yet" in new
    assert report.readme_with_results(new) == new


def test_readme_shows_claims_figure_and_rows_that_were_run(published):
    publish(published, records("cifar10", "paper", kmeans_pixels=[0.2, 0.2]))
    new = report.readme_with_results(f"{report.BEGIN}\n{report.END}")
    assert "| 0.850 ± 0.071 (2) " in new
    assert "| 0.200 ± 0.000 (2) | −0.029       | below" in new
    assert "](results/figures/demo/main_results.png)" in new
    assert "STL-10 " not in new.split("### Profile")[1]
    assert new.count(tables.RULE) == new.count(claims.RULE) == 1


def test_runs_with_other_settings_are_shown_by_themselves(root):
    own = {
        "dataset": "cifar10",
        "profile": "fast",
        "n_images": 60_000,
        "config": vars(recipe("cifar10", "fast", epochs=9)),
    }
    text = f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n"
    assert report.readme_with_results(text).split(report.BEGIN)[1].startswith("\nNo run yet.")
    atomic_write(root / "results/tried/fast/cifar10/cc-seed0+epochs=9.json", json.dumps(record("cc", 0.7, **own)))
    shown = report.readme_with_results(text)
    assert "### Profile `fast`" in shown
    assert "epochs 9 (400)" in shown
    assert "0.700 (1); reported 0.790" in shown
    assert "Table 2" not in shown.split("### Profile `fast`")[1].split("Verdict")[0]
    publish(root, [record("kmeans-pixels", 0.2, dataset="cifar10", profile="fast", n_images=60_000)])
    (part,) = [s for s in report.sections("fast") if s.title == report.TRIED]
    assert part.frames[0][1]["ACC"].tolist() == ["0.700 (1); reported 0.790"]
