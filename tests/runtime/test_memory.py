import threading

import torch

from ccrepro.runtime.memory import fetched


def test_images_that_are_elsewhere_are_moved_by_the_thread_that_trains(monkeypatch):
    """CUDA's current device is a thread's own: another thread would move the batches of every rank to the first GPU."""
    images, order, threads = torch.rand(96, 1, 4, 4), torch.randperm(96).view(8, 12), []
    monkeypatch.setattr(torch.Tensor, "to", lambda x, *a, **k: threads.append(threading.current_thread()) or x)
    found = list(fetched(images, order, torch.device("meta")))
    assert torch.equal(torch.stack(found), images[order])
    assert threads == [threading.current_thread()] * 8
