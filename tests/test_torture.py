"""A tenth of `make torture`, and every bad input and hostile file of it."""

import random

import bad_inputs
import hostile_files
import pytest
import torture


@pytest.mark.parametrize("case", bad_inputs.CASES, ids=lambda case: f"{case.number} {case.what}")
def test_a_bad_input_is_told_in_one_line(case, tmp_path):
    assert bad_inputs.try_out(case, tmp_path) is None


def test_bad_inputs_are_numbered_as_in_the_list():
    numbers = [case.number for case in bad_inputs.CASES]
    assert numbers == list(range(1, 41))


@pytest.mark.parametrize("name", hostile_files.FILES)
def test_a_hostile_file_is_refused_without_effect(name, tmp_path):
    assert hostile_files.try_out(name, tmp_path) == (True, False)


def test_a_tenth_of_the_corruptions():
    counts = torture.corrupt(2, 30, random.Random(1))
    assert counts == {"corruptions": 33, "detected": 33, "previous used": 33, "both named": 33}


def test_training_killed_twice_ends_identical():
    counts = torture.kill_training(2, random.Random(1), sample=320, batch_size=64, epochs=8)
    runs = counts.pop("runs")  # one, unless a run was over before it could be killed again
    assert counts == {"kills": 2, "runs identical": runs, "checkpoints lost": 0}
