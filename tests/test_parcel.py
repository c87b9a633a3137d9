"""Files go over in loads within the limits and come out as they were, or not at all."""

import json

import numpy as np
import pytest

from ccrepro import parcel
from ccrepro.errors import DataError

LIMITS = parcel.Limits(part=1000, load=2500, files=4)


@pytest.fixture
def sources(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "big").write_bytes(rng.bytes(4200))
    return {"small.json": b"{}", "big.bin": tmp_path / "big", "empty": b""}


@pytest.fixture
def loads(tmp_path, sources):
    return parcel.pack("things", sources, tmp_path / "send", LIMITS, {"kind": "test"})


def test_loads_keep_to_their_limits(loads):
    assert len(loads) == 3  # 2 + 1000 + 1000, 1000 + 1000, 200 + 0 bytes
    for load in loads:
        files = [p for p in load.iterdir() if p.name != parcel.MANIFEST]
        assert len(files) < LIMITS.files
        assert sum(p.stat().st_size for p in files) <= LIMITS.load
        assert all(p.stat().st_size <= LIMITS.part and parcel.SAFE.fullmatch(p.name) for p in files)


def test_files_are_whole_once_all_loads_are_there_in_any_order(loads, sources, tmp_path):
    inbox = tmp_path / "inbox"
    place, manifest = parcel.receive(loads[2], inbox)
    assert parcel.missing(place, manifest) == [1, 2]
    assert (place / "empty").read_bytes() == b""
    parcel.receive(loads[0], inbox)
    assert (place / "small.json").read_bytes() == b"{}"
    assert parcel.missing(place, manifest) == [2]
    again, _ = parcel.receive(loads[1], inbox)
    assert again == place
    assert parcel.missing(place, manifest) == []
    assert (place / "big.bin").read_bytes() == sources["big.bin"].read_bytes()
    assert sorted(p.name for p in place.iterdir()) == ["big.bin", "empty", "small.json"]
    parcel.receive(loads[1], inbox)  # a load that comes twice changes nothing that is whole
    assert (place / "big.bin").read_bytes() == sources["big.bin"].read_bytes()


def test_damaged_part_is_refused_and_not_kept(loads, tmp_path):
    part = next(p for p in loads[1].iterdir() if p.name != parcel.MANIFEST)
    part.write_bytes(part.read_bytes()[:-1] + b"?")
    with pytest.raises(DataError, match="do not match their SHA-256"):
        parcel.receive(loads[1], tmp_path / "inbox")
    assert not list((tmp_path / "inbox").rglob(part.name))


def test_parcels_of_other_contents_do_not_mix(tmp_path, loads, sources):
    other = parcel.pack("things", {**sources, "small.json": b"[]"}, tmp_path / "other", LIMITS)
    first, second = (parcel.receive(load, tmp_path / "inbox")[0] for load in (loads[0], other[0]))
    assert first != second
    assert (first / "small.json").read_bytes() == b"{}"


@pytest.mark.parametrize("name", ["a/b", "..\\x", "a b", "ä", "a+b"])
def test_names_that_a_transfer_may_refuse_are_refused_here(tmp_path, name):
    with pytest.raises(DataError, match="file name"):
        parcel.pack("things", {name: b""}, tmp_path / "send", LIMITS)


@pytest.mark.parametrize("text", ["", "{", "[]", json.dumps({"name": "x"})])
def test_damaged_manifest_is_named(tmp_path, text):
    (tmp_path / parcel.MANIFEST).write_text(text)
    with pytest.raises(DataError, match="manifest"):
        parcel.receive(tmp_path, tmp_path / "inbox")


def test_folder_without_manifest_is_named(tmp_path):
    with pytest.raises(DataError, match=r"no manifest.json"):
        parcel.receive(tmp_path, tmp_path / "inbox")
