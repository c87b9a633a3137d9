import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from ccrepro.runtime.signals import StopSignal

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that runs the tests in the background ignores it


def test_a_second_ctrl_c_acts_at_once():
    with StopSignal() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.signal == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_outside_the_main_thread_nothing_is_noted():
    def handler():
        with StopSignal():
            return signal.getsignal(signal.SIGINT)

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(handler).result() == signal.default_int_handler


def test_workers_end_with_a_parent_that_is_killed():
    code = """
import time
from concurrent.futures import ProcessPoolExecutor
from ccrepro.runtime.signals import end_with_parent
pool = ProcessPoolExecutor(2, initializer=end_with_parent)
waiting = [pool.submit(time.sleep, 0.2) for _ in "ab"]
print([job.result() for job in waiting], flush=True)
time.sleep(60)
"""
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    parent.stdout.readline()
    workers = psutil.Process(parent.pid).children()
    assert len(workers) == 2
    parent.kill()
    parent.wait()
    assert psutil.wait_procs(workers, timeout=20)[1] == []
