"""Notebooks run in a real JupyterLab, in a real browser, as ``make lab`` opens them: all cells, figures, sliders.

    python tests/lab.py OUT [NOTEBOOK ...]

Works on copies. Leaves the executed copies and screenshots in OUT, in the light and the dark theme, to be looked at.
It takes minutes, needs Chromium, its driver and selenium (pip install 'ccrepro[browser]'), and is no part of the tests:
without these it says so and ends with 0.
"""

import contextlib
import itertools
import json
import secrets
import shlex
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

ROOT = Path(__file__).parents[1]
NOTEBOOKS = ["01_method.ipynb", "10_your_images.ipynb"]
OPTIONS = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-sync"


class Lab:
    """JupyterLab as the Makefile starts it, on copies of the notebooks in ``folder``."""

    def __init__(self, folder: Path):
        for name in ("notebooks", "docs", "results/figures"):
            shutil.copytree(ROOT / name, folder / name)
        (folder / ".venv").symlink_to(ROOT / ".venv")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.folder, self.url, self.token = folder, f"http://127.0.0.1:{port}", secrets.token_hex(8)
        dry = subprocess.run(["make", "-C", ROOT, "-n", "lab"], capture_output=True, text=True, check=True).stdout
        command = next(line for line in dry.splitlines() if "jupyter lab" in line)
        ours = [f"--port={port}", f"--IdentityProvider.token={self.token}", "--no-browser", "--allow-root"]
        log = (folder / "lab.log").open("w")
        self.process = subprocess.Popen([*shlex.split(command), *ours], cwd=folder, stdout=log, stderr=log)
        until("JupyterLab answers", lambda: self.ask("GET", "/api/status").ok)

    def ask(self, method: str, path: str, **more: Any) -> requests.Response:
        headers = {"Authorization": f"token {self.token}"}
        return requests.request(method, self.url + path, headers=headers, timeout=30, **more)

    def state(self, notebook: str) -> str:
        """Of the notebook's kernel: idle, busy, ..."""
        sessions = self.ask("GET", "/api/sessions").json()
        return next((s["kernel"]["execution_state"] for s in sessions if s["path"] == notebook), "none")

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(30)


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
def page(lab: Lab, notebook: str, theme: str) -> Iterator[Any]:
    """A browser with the notebook open in JupyterLab."""
    from selenium import webdriver

    setting = {"raw": json.dumps({"theme": f"JupyterLab {theme}"})}
    lab.ask("PUT", "/lab/api/settings/@jupyterlab/apputils-extension:themes", json=setting)
    options = webdriver.ChromeOptions()
    profile = tempfile.mkdtemp()
    for option in [*OPTIONS.split(), "--window-size=1400,1000", f"--user-data-dir={profile}"]:
        options.add_argument(option)
    options.binary_location = shutil.which("chromium")
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        browser.get(f"{lab.url}/lab/tree/{notebook}?token={lab.token}&reset")
        until("cells are there", lambda: browser.find_elements("css selector", ".jp-Notebook .jp-Cell"))
        until("the kernel is idle", lambda: lab.state(notebook) == "idle")
        yield browser
    finally:
        browser.quit()
        shutil.rmtree(profile, ignore_errors=True)


def run_all(lab: Lab, browser: Any, notebook: str) -> None:
    """Run > Run All Cells, and save when the kernel has been idle for some seconds."""
    from selenium.webdriver import ActionChains, Keys

    menu = "//div[contains(@class, 'lm-MenuBar-itemLabel') and text()='Run']"
    until("the menu", lambda: browser.find_element("xpath", menu)).click()
    items = until("its items", lambda: browser.find_elements("css selector", ".lm-Menu-item"))
    next(item for item in items if item.text.startswith("Run All Cells")).click()
    until("the kernel is busy", lambda: lab.state(notebook) == "busy")
    until("all cells have run", lambda: idle_for_long(lab, notebook), 1_200)
    ActionChains(browser).key_down(Keys.CONTROL).send_keys("s").key_up(Keys.CONTROL).perform()
    time.sleep(3)


def idle_for_long(lab: Lab, notebook: str) -> bool:
    """Ten looks in a row: between two cells a kernel is idle for a moment."""
    return all(lab.state(notebook) == "idle" and not time.sleep(0.3) for _ in range(10))


def problems(path: Path) -> list[str]:
    """What is wrong with an executed copy."""
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    outputs = [output for cell in cells for output in cell.outputs]
    found = [f"{o.ename}: {o.evalue}" for o in outputs if o.output_type == "error"]
    found += [f"not run: {cell.source[:60]!r}" for cell in cells if cell.execution_count is None]
    return found + ([] if any("image/png" in o.get("data", {}) for o in outputs) else ["no figure"])


def slider_problems(browser: Any) -> list[str]:
    """Move the first slider, where there is one: its picture must change."""
    from selenium.webdriver import Keys

    def picture() -> str:
        return browser.find_element("css selector", ".widget-image").get_attribute("src")

    panel = browser.find_element("css selector", ".jp-WindowedPanel-outer")
    browser.execute_script("arguments[0].scrollTop = 0", panel)
    for _ in range(30):
        if handles := browser.find_elements("css selector", ".noUi-handle"):
            before = picture()
            handles[0].send_keys(Keys.ARROW_LEFT * 5)
            time.sleep(5)
            return [] if picture() != before else ["a slider was moved and its picture stayed"]
        browser.execute_script("arguments[0].scrollTop += 500", panel)
        time.sleep(0.3)
    return []


def screenshots(browser: Any, stem: Path) -> int:
    """Down the notebook, a screen at a time."""
    panel = browser.find_element("css selector", ".jp-WindowedPanel-outer")
    browser.execute_script("arguments[0].scrollTop = 0", panel)
    for number in itertools.count(1):
        time.sleep(0.7)
        browser.save_screenshot(f"{stem}-{number:02d}.png")
        before = browser.execute_script("return arguments[0].scrollTop", panel)
        browser.execute_script("arguments[0].scrollTop += 820", panel)
        if browser.execute_script("return arguments[0].scrollTop", panel) == before:
            return number


def check(lab: Lab, name: str, out: Path) -> list[str]:
    notebook, stem = f"notebooks/{name}", Path(name).stem
    with page(lab, notebook, "Light") as browser:
        run_all(lab, browser, notebook)
        found = problems(lab.folder / notebook) + slider_problems(browser)
        taken = screenshots(browser, out / f"{stem}-light")
    shutil.copy(lab.folder / notebook, out / name)
    with page(lab, notebook, "Dark") as browser:
        taken += screenshots(browser, out / f"{stem}-dark")
    print(f"{name}: {'; '.join(found) or 'all cells ran'}; {taken} screenshots in {out}", flush=True)
    return found


def main(out: str, *names: str) -> int:
    try:
        import selenium  # noqa: F401
    except ImportError:
        print("skipped: selenium is not installed")
        return 0
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        print("skipped: no chromium with chromedriver here")
        return 0
    Path(out).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        lab = Lab(Path(folder))
        try:
            return int(sum(len(check(lab, name, Path(out))) for name in names or NOTEBOOKS) > 0)
        finally:
            lab.stop()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
