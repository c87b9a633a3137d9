import threading

import pytest
import torch

from ccrepro import train
from ccrepro.errors import ConfigError
from ccrepro.recipes import recipe
from ccrepro.runtime import device
from ccrepro.runtime.device import fetched

FAST = recipe("cifar10", "fast")


@pytest.mark.parametrize(
    ("amx", "avx512_bf16", "name", "precision"),
    [
        (True, True, "Intel(R) Xeon(R) Processor", "bf16"),
        (False, True, "Intel(R) Xeon(R) Processor", "fp32"),  # measured slower
        (False, True, "AMD EPYC", "bf16"),
        (False, False, "AMD EPYC 7742", "fp32"),
    ],
)
def test_auto_on_a_cpu_takes_bf16_where_it_is_faster(monkeypatch, amx, avx512_bf16, name, precision):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
    monkeypatch.setattr(device, "cpu_name", lambda: name)
    found = train.resolve(FAST)
    assert (found.device, found.compile, found.precision) == ("cpu", "off", precision)
    assert train.resolve(FAST.replace(stem="imagenet")).precision == "fp32"  # maps of 8×8: no gain


def test_auto_on_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    found = train.resolve(FAST)
    assert (found.device, found.precision, found.compile) == ("cuda", "bf16", "reduce-overhead")
    assert train.resolve(FAST.replace(image_size=224)).compile == "default"
    assert train.resolve(FAST, ranks=2).compile == "off"  # ranks wait for each other between its graphs
    assert train.resolve(recipe("cifar10", "paper")).precision == "fp32"
    assert train.resolve(found) == found


def test_mps_is_taken_only_where_it_is_asked_for_and_in_plain_fp32(monkeypatch):
    with pytest.raises(ConfigError, match=r"^No MPS device was found\. Use device=cpu\.$"):
        device.choose_device("mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert device.choose_device("auto").type != "mps"
    found = train.resolve(FAST.replace(device="mps"))
    assert (found.device, found.precision, found.compile) == ("mps", "fp32", "off")


def test_gpus_that_are_absent_hidden_or_too_small_are_told(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert device.choose_device("auto").type == "cpu"
    assert device.visible_gpus() == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, GPU-a1, 9")
    assert device.visible_gpus() == ["3", "GPU-a1"]
    with pytest.raises(ConfigError, match=r"^No CUDA device was found\. Use device=cpu\.$"):
        device.choose_device("cuda")
    said = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB. See more."
    says = r"batch_size 32: Tried to allocate 2.00 GiB\. GPU 0 has .* of 79.10 GiB\. L"
    with pytest.raises(ConfigError, match=says), device.within_memory("batch_size 32"):
        raise torch.OutOfMemoryError(said)


def test_images_that_are_elsewhere_are_moved_by_the_thread_that_trains(monkeypatch):
    """CUDA's current device is a thread's own: another thread would move the batches of every rank to the first GPU."""
    images, order, threads = torch.rand(96, 1, 4, 4), torch.randperm(96).view(8, 12), []
    monkeypatch.setattr(torch.Tensor, "to", lambda x, *a, **k: threads.append(threading.current_thread()) or x)
    found = list(fetched(images, order, torch.device("meta")))
    assert torch.equal(torch.stack(found), images[order])
    assert threads == [threading.current_thread()] * 8
