"""A set that does not fit in memory; `large.py` is the same at any size."""

import dataclasses
import json
import subprocess
import sys

import large
import numpy as np
import pytest

from ccrepro.datasets import ImageSet, pack


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit on memory that leaves out mapped files")
def test_a_set_larger_than_the_memory_allowed_trains_as_one_in_memory(tmp_path):
    folder = tmp_path / "packed" / "large"
    large.make(folder, 1400, 200)
    command = [sys.executable, large.__file__, "--run", str(folder), "--allowance", "78", "--quick"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    mapped = json.loads(done.stdout.splitlines()[-1])
    assert mapped["set"] > 2 * (mapped["limit"] - mapped["before"]["VmData"])
    data = ImageSet("own", *pack.read(folder))
    in_memory = large.once(dataclasses.replace(data, images=np.array(data.images)), None)
    assert mapped["history"] == in_memory["history"]
    assert mapped["scores"] == in_memory["scores"]
    assert len(mapped["history"]) == 1
