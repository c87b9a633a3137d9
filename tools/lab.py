"""Run notebooks in a real JupyterLab, in a real browser, and look at them: all cells, figures, sliders.

``python tools/lab.py OUT [NOTEBOOK ...]`` works on copies, and leaves these and screenshots in OUT, in the light and
the dark theme. It takes minutes and needs Chromium, its driver and selenium (pip install 'ccrepro[browser]').
"""

import contextlib
import itertools
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat
import requests
from selenium import webdriver
from selenium.webdriver import ActionChains, Keys

ROOT = Path(__file__).parents[1]
OPTIONS = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --window-size=1400,1000"
TOKEN = "lab"


class Lab:
    """JupyterLab on a copy of the clone, as far as notebooks need it, in ``folder``."""

    def __init__(self, folder: Path):
        for name in ("ccrepro", "notebooks", "results"):
            shutil.copytree(ROOT / name, folder / name)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.folder, self.url = folder, f"http://127.0.0.1:{port}"
        options = f"-m jupyterlab --no-browser --allow-root --port={port} --IdentityProvider.token={TOKEN}"
        with (folder / "lab.log").open("w") as log:
            self.process = subprocess.Popen([sys.executable, *options.split()], cwd=folder, stdout=log, stderr=log)
        until("JupyterLab answers", lambda: self.ask("GET", "/api/status").ok)

    def ask(self, method: str, path: str, **more: Any) -> requests.Response:
        return requests.request(method, self.url + path, params={"token": TOKEN}, timeout=30, **more)

    def state(self, notebook: str) -> str:
        """Of the notebook's kernel: idle, busy, ..."""
        sessions = self.ask("GET", "/api/sessions").json()
        return next((s["kernel"]["execution_state"] for s in sessions if s["path"] == notebook), "none")


def until(what: str, call: Callable[[], Any], seconds: float = 60) -> Any:
    """What ``call`` returns, once that is true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(Exception):  # not there yet, in many ways
            if found := call():
                return found
        time.sleep(0.3)
    raise SystemExit(f"waited {seconds:.0f} s in vain: {what}")


@contextlib.contextmanager
def page(lab: Lab, notebook: str, theme: str) -> Iterator[webdriver.Chrome]:
    """A browser with the notebook open in JupyterLab."""
    setting = {"raw": json.dumps({"theme": f"JupyterLab {theme}"})}
    lab.ask("PUT", "/lab/api/settings/@jupyterlab/apputils-extension:themes", json=setting)
    options = webdriver.ChromeOptions()
    options.arguments.extend(OPTIONS.split())
    options.binary_location = shutil.which("chromium")
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        browser.get(f"{lab.url}/lab/tree/{notebook}?token={TOKEN}&reset")
        until("cells are there", lambda: browser.find_elements("css selector", ".jp-Notebook .jp-Cell"))
        until("the kernel is idle", lambda: lab.state(notebook) == "idle")
        yield browser
    finally:
        browser.quit()


def run_all(lab: Lab, browser: webdriver.Chrome, notebook: str) -> None:
    """Run > Run All Cells, and save when the kernel has been idle for ten looks: between cells it is for a moment."""
    menu = "//div[contains(@class, 'lm-MenuBar-itemLabel') and text()='Run']"
    until("the menu", lambda: browser.find_element("xpath", menu)).click()
    items = until("its items", lambda: browser.find_elements("css selector", ".lm-Menu-item"))
    next(item for item in items if item.text.startswith("Run All Cells")).click()
    until("the kernel is busy", lambda: lab.state(notebook) == "busy")
    looks = (lab.state(notebook) == "idle" and not time.sleep(0.3) for _ in itertools.count())
    until("all cells have run", lambda: all(itertools.islice(looks, 10)), 1_200)
    ActionChains(browser).key_down(Keys.CONTROL).send_keys("s").key_up(Keys.CONTROL).perform()
    time.sleep(3)


def problems(path: Path) -> list[str]:
    """What is wrong with an executed copy."""
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    found = [f"{o.ename}: {o.evalue}" for cell in cells for o in cell.outputs if o.output_type == "error"]
    return found + [f"not run: {cell.source[:60]!r}" for cell in cells if cell.execution_count is None]


def screens(browser: webdriver.Chrome) -> Iterator[int]:
    """Scroll down the notebook, a screen at a time, from 1."""
    panel = browser.find_element("css selector", ".jp-WindowedPanel-outer")
    browser.execute_script("arguments[0].scrollTop = 0", panel)
    for number in itertools.count(1):
        time.sleep(0.7)
        yield number
        before = browser.execute_script("return arguments[0].scrollTop", panel)
        browser.execute_script("arguments[0].scrollTop += 820", panel)
        if browser.execute_script("return arguments[0].scrollTop", panel) == before:
            return


def slider_problems(browser: webdriver.Chrome) -> list[str]:
    """Move the first slider, where there is one: its figure must change."""
    for _ in screens(browser):
        if handles := browser.find_elements("css selector", ".noUi-handle"):
            figure = browser.find_element("css selector", ".widget-image")
            before = figure.get_attribute("src")
            handles[0].send_keys(Keys.ARROW_LEFT * 5)
            time.sleep(5)
            return [] if figure.get_attribute("src") != before else ["a slider was moved and its figure stayed"]
    return []


def check(lab: Lab, name: str, out: Path) -> list[str]:
    notebook, found = f"notebooks/{name}", []
    for theme in ("Light", "Dark"):
        with page(lab, notebook, theme) as browser:
            if theme == "Light":
                run_all(lab, browser, notebook)
                found = problems(lab.folder / notebook) + slider_problems(browser)
            for number in screens(browser):
                browser.save_screenshot(f"{out / Path(name).stem}-{theme.lower()}-{number:02d}.png")
    shutil.copy(lab.folder / notebook, out / name)
    print(f"{name}: {'; '.join(found) or 'all cells ran'}", flush=True)
    return found


if __name__ == "__main__":
    out, names = Path(sys.argv[1]), sys.argv[2:] or ["01_method.ipynb", "10_your_images.ipynb"]
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        lab = Lab(Path(folder))
        try:
            found = [problem for name in names for problem in check(lab, name, out)]
        finally:
            lab.process.terminate()
            lab.process.wait(30)
    sys.exit(bool(found))
