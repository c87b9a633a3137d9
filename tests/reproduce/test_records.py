import pytest
from made_records import HARDWARE, record, records, write

from ccrepro.errors import ConfigError, DataError
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


def test_a_record_is_read_with_what_was_measured_of_its_stream_and_named_if_damaged(root):
    made = records(cc=[0.9, 0.8])
    write(root / "results/local", made)
    write(root / "results/local", made[1:], kind="streaming")
    assert load_records("demo", "results/local") == [made[0], made[1] | {"streaming": made[1]}]
    (root / "results/local/runs/demo/digits/cc-seed0.json").write_text("{")
    with pytest.raises(DataError, match=r"cc-seed0.json is not JSON"):
        load_records("demo", "results/local")


def test_provenance_tells_times_machines_and_commits():
    made = [record("cc", 0.9, s, seconds=s + 1234.0, hardware=HARDWARE | {"gpu": "a GPU", "ranks": 2}) for s in (0, 1)]
    made += [record("kmeans-pixels", 0.7, s, epochs=0, seconds=s + 1.0, commit="d" * 40 + "-dirty") for s in (0, 1)]
    assert [machine(r) for r in made[1:3]] == ["2 × a GPU", "1 of 2 cores of a CPU"]
    for told in ("1,234 to 1,235 s", "1 to 2 s", "1 of 2 cores of a CPU, 2 × a GPU", "cccccccccc, dddddddddd-dirty"):
        assert told in provenance(made)
