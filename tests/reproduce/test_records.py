import json
import shutil

import pytest
from made_records import HARDWARE, record, records, write

from ccrepro.errors import ConfigError
from ccrepro.reproduce.records import by_preset, data_sets, find_records, load_records, machine, provenance, reported


def test_data_sets_have_the_papers_counts():
    frame = data_sets()
    ours = frame[frame["samples reported"] != "–"]
    assert len(ours) == 6
    assert ours["samples reported"].astype(int).tolist() == ours["images ours"].tolist()
    assert ours["classes reported"].astype(int).tolist() == ours["classes ours"].tolist()


def test_the_paper_reports_this_of_cc():
    paper = reported()
    own = paper[(paper.table == "2") & (paper.method == "CC")].pivot(index="dataset", columns="metric", values="value")
    assert {name: line.tolist() for name, line in own[["ACC", "ARI", "NMI"]].iterrows()} == {
        "CIFAR-10": ["0.790", "0.637", "0.705"],
        "CIFAR-100": ["0.429", "0.266", "0.431"],
        "STL-10": ["0.850", "0.726", "0.764"],
        "ImageNet-10": ["0.893", "0.822", "0.859"],
        "ImageNet-Dogs": ["0.429", "0.274", "0.445"],
        "Tiny-ImageNet": ["0.140", "0.071", "0.340"],
    }


def test_records_are_found_by_preset_data_set_and_seed(root):
    made = [*records(cc=[0.9, 0.8]), *records("cifar10", "paper", cc=[0.7], kmeans_pixels=[0.2, 0.3])]
    made += records("stl10", "paper", cc=[0.6])
    write(root / "results", made)
    assert [*by_preset()] == ["demo", "paper"]
    assert [r["seed"] for r in load_records("demo", seeds=[1, 4])] == [1]
    names = [(r["dataset"], r["variant"], r["seed"]) for r in load_records("paper", datasets=["stl10", "cifar10"])]
    assert names == [("stl10", "cc", 0), ("cifar10", "cc", 0), *(("cifar10", "kmeans-pixels", s) for s in (0, 1))]
    assert [r["dataset"] for r in find_records(load_records("paper"), "cc")] == ["cifar10"]
    assert find_records(made, "views-one") == []
    with pytest.raises(ConfigError, match=r"no such run of preset demo .*reproduce --preset demo"):
        load_records("demo", datasets=["cifar10"])


def test_a_record_is_read_with_what_was_measured_of_its_stream(root, capsys):
    made = records(cc=[0.9, 0.8])
    write(root / "results/local", made)
    write(root / "results/local", made[1:], kind="streaming")
    assert load_records("demo", "results/local") == [made[0], made[1] | {"streaming": made[1]}]
    shutil.copy(*(root / f"results/local/streaming/demo/digits/cc-seed{seed}.json" for seed in (1, 0)))
    assert load_records("demo", "results/local")[0] == made[0]
    assert "streaming/demo/digits/cc-seed0.json is not of the run" in capsys.readouterr().err


def changed(root, change):
    path = root / "results/runs/demo/digits/cc-seed1.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


def copied(root, name, change):
    """As with ``cp``, or with a seed that was edited."""
    path = root / f"results/runs/demo/{name}.json"
    path.parent.mkdir(exist_ok=True)
    r = json.loads((root / "results/runs/demo/digits/cc-seed1.json").read_text())
    path.write_text(json.dumps(r | change | {"config": r["config"] | change}))


SCORES = {"nmi": 0.4, "acc": 0.8, "ari": 0.2}
REFUSED = {
    "cut off": (lambda root: (root / "results/runs/demo/digits/cc-seed1.json").write_text("{"), "Expecting"),
    "a list": (lambda root: (root / "results/runs/demo/digits/cc-seed1.json").write_text("[]"), "valid dictionary"),
    "copied": (lambda root: copied(root, "digits/cc-seed0 (copy)", {}), "it is of the run demo/digits/cc-seed1"),
    "another seed's": (lambda root: copied(root, "digits/cc-seed5", {}), "it is of the run demo/digits/cc-seed1"),
    "another folder": (lambda root: copied(root, "cifar10/cc-seed1", {}), "it is of the run demo/digits/cc-seed1"),
    "two epochs": (lambda root: copied(root, "digits/cc-seed5", {"seed": 5, "epochs": 2}), "demo/digits/cc-2ep-seed5"),
    "cut short": (lambda root: changed(root, {"epochs": 2}), "epochs is 2, by its settings 50"),
    "overrides": (lambda root: changed(root, {"overrides": {"epochs": 2}}), "overrides is {'epochs': 2}"),
    "a variant": (lambda root: changed(root, {"variant": "views-one"}), "variant is 'views-one', by its settings 'cc'"),
    "too good": (lambda root: changed(root, {"scores": SCORES | {"acc": 1.01}}), "less than or equal to 1"),
    "no number": (lambda root: changed(root, {"scores": SCORES | {"ari": float("nan")}}), "finite number"),
    "a text": (lambda root: changed(root, {"scores": SCORES | {"nmi": "0.5"}}), "valid number"),
    "other images": (lambda root: changed(root, {"data_sha256": "other"}), "not made of the images of most runs"),
    "an older setting": (
        lambda root: changed(root, {"config": {"seed": 1, "zoom": 2}}),
        "Unknown settings: zoom; Missing settings: back",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_record_counts_only_where_its_place_and_its_content_agree(root, capsys, kind):
    write(root / "results", records(cc=[0.9, 0.8, 0.7]))
    before = load_records("demo")
    change, says = REFUSED[kind]
    change(root)
    found = load_records("demo")
    assert [r["seed"] for r in found] == [r["seed"] for r in before if r in found]
    assert len(found) == 3 - (len(list(root.rglob("*.json"))) == 3)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("refused: ")
    assert says in line


def test_one_training_under_two_seeds_counts_under_neither_and_a_baseline_may_repeat(root, capsys):
    write(root / "results", records(cc=[0.9, 0.8]))
    copied(root, "digits/cc-seed5", {"seed": 5})
    write(root / "results", [record("kmeans-pixels", 0.7, s, epochs=0, history={}, contingency=[[1]]) for s in (0, 1)])
    assert [(r["variant"], r["seed"]) for r in load_records("demo")] == [
        ("cc", 0),
        ("kmeans-pixels", 0),
        ("kmeans-pixels", 1),
    ]
    assert [line.split("/")[-1][:12] for line in capsys.readouterr().err.splitlines()] == [
        "cc-seed1.jso",
        "cc-seed5.jso",
    ]


def test_provenance_tells_times_machines_and_commits():
    made = [record("cc", 0.9, s, seconds=s + 1234.0, hardware=HARDWARE | {"gpu": "a GPU", "ranks": 2}) for s in (0, 1)]
    made += [record("kmeans-pixels", 0.7, s, epochs=0, seconds=s + 1.0, commit="d" * 40 + "-dirty") for s in (0, 1)]
    assert [machine(r) for r in made[1:3]] == ["2 × a GPU", "1 of 2 cores of a CPU"]
    for told in ("1,234 to 1,235 s", "1 to 2 s", "1 of 2 cores of a CPU, 2 × a GPU", "cccccccccc, dddddddddd-dirty"):
        assert told in provenance(made)
    assert provenance(made[:1]).startswith("1 run with training (1,234 s) on 2 × a GPU;")
