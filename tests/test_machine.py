import dataclasses

import pytest
import torch

from ccrepro import machine
from ccrepro.config import recipe


@pytest.fixture
def fast(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return recipe("cifar10", "fast")


@pytest.mark.parametrize(
    ("amx", "avx512_bf16", "name", "precision"),
    [
        (True, True, "Intel(R) Xeon(R) Processor", "bf16"),
        (False, True, "Intel(R) Xeon(R) Processor", "fp32"),  # measured slower
        (False, True, "AMD EPYC", "bf16"),
        (False, False, "AMD EPYC 7742", "fp32"),
    ],
)
def test_auto_on_a_cpu_takes_bf16_where_it_is_faster(fast, monkeypatch, amx, avx512_bf16, name, precision):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
    monkeypatch.setattr(machine, "cpu_name", lambda: name)
    found = machine.resolve(fast)
    assert (found.device, found.compile, found.precision) == ("cpu", "off", precision)
    assert machine.resolve(dataclasses.replace(fast, stem="imagenet")).precision == "fp32"  # maps of 8×8: no gain


def test_auto_on_a_gpu(fast, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    found = machine.resolve(fast)
    assert (found.device, found.precision, found.compile) == ("cuda", "bf16", "reduce-overhead")
    assert machine.resolve(dataclasses.replace(fast, image_size=224)).compile == "default"
    assert machine.resolve(dataclasses.replace(fast, devices=2)).compile == "off"  # between its graphs, ranks wait
    assert machine.resolve(recipe("cifar10", "paper")).precision == "fp32"
