"""The page of a gallery in a real browser: what it shows, finds, moves and keeps."""

import json
import shutil
import time

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from ccrepro.data import ImageSet
from ccrepro.own_images import gallery

pytestmark = pytest.mark.slow
webdriver = pytest.importorskip("selenium.webdriver")
Keys = webdriver.Keys
OPTIONS = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --window-size=1400,1000"
ODD = 'odd/"</script>, 日本\n.png'
SIZES = (60, 30, 10)  # of clusters 0, 1, 2


@pytest.fixture(scope="module")
def made(tmp_path_factory, embedded):
    """A page of 100 images in three clusters, without the originals but for one; and what it holds."""
    out, rng = tmp_path_factory.mktemp("made"), np.random.default_rng(0)
    cluster = np.repeat([0, 1, 2], SIZES)
    z = (np.eye(8)[cluster] + rng.normal(0, 0.2, (100, 8))).astype(np.float32)
    names = [f"some/{'cat' if i % 10 == 0 else 'dog'}_{i:02d}.png" for i in range(99)] + [ODD]
    table = pd.DataFrame({"path": names, "cluster": cluster, "confidence": rng.uniform(0.3, 1, 100).round(4)})
    data = ImageSet("made", rng.integers(0, 256, (100, 3, 16, 16), dtype=np.uint8), None, (), "made here")
    Image.new("RGB", (500, 400), "red").save(out / "original.png")
    table.loc[0, "path"] = "original.png"
    page = gallery.write(out, out, data, table, z / np.linalg.norm(z, axis=1, keepdims=True), ["A note."])
    return page, embedded(page), table


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    """A browser that saves what it downloads in a folder."""
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("needs chromium and chromedriver (apt-get install chromium chromium-driver)")
    options, downloads = webdriver.ChromeOptions(), tmp_path_factory.mktemp("downloads")
    options.arguments.extend(OPTIONS.split())
    options.binary_location = shutil.which("chromium")
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    browser.downloads = downloads
    yield browser
    browser.quit()


@pytest.fixture
def browser(chromium, made):
    """The page, as new; at the end, nothing may have gone wrong in it."""
    chromium.get(made[0].as_uri())
    chromium.execute_script("localStorage.clear()")
    chromium.refresh()
    chromium.get_log("browser")
    yield chromium
    # The originals of the others are absent, as if the page had been sent by mail.
    log = [line["message"] for line in chromium.get_log("browser") if line["level"] == "SEVERE"]
    assert [message for message in log if "ERR_FILE_NOT_FOUND" not in message] == []


def all_of(browser, selector, what="textContent"):
    return browser.execute_script(f"return [...document.querySelectorAll({selector!r})].map((node) => node.{what})")


def press(browser, *keys):
    for key in keys:
        webdriver.ActionChains(browser).send_keys(key).pause(0.15).perform()


def click(browser, selector):
    browser.execute_script(
        "arguments[0].scrollIntoView({block: 'center'})", browser.find_element("css selector", selector)
    )
    browser.find_element("css selector", selector).click()
    time.sleep(0.15)


def focused(browser):
    return browser.execute_script("return document.activeElement.title")


def says(browser):
    return browser.find_element("id", "status").text


def downloaded(browser):
    for path in browser.downloads.iterdir():
        path.unlink()
    click(browser, "#csv")
    for _ in range(100):
        if (path := browser.downloads / "clusters-by-hand.csv").exists():
            return pd.read_csv(path, keep_default_na=False)
        time.sleep(0.1)
    raise AssertionError("no download")


def ink(browser):
    """How opaque each pixel of the map is."""
    get = "getContext('2d').getImageData(0, 0, c.width, c.height).data"
    return np.array(browser.execute_script(f"const c = document.querySelector('canvas'); return [...c.{get}]"))[3::4]


def order(made, k, by, ascending=True):
    """The paths of a cluster's images by confidence, or by how typical they are."""
    table = made[2].assign(typical=made[1]["typical"])
    return table[table.cluster == k].sort_values(by, ascending=ascending, kind="stable").path.tolist()


def test_clusters_show_typical_and_unsure_images_and_on_demand_all(browser, made):
    assert all_of(browser, "section", "id") == ["cluster-0", "cluster-1", "cluster-2"], "by size"
    columns = int(
        browser.execute_script(
            "return getComputedStyle(document.querySelector('.grid')).gridTemplateColumns.split(' ').length"
        )
    )
    unsure = order(made, 0, "confidence")[:columns]
    typical = [path for path in order(made, 0, "typical", ascending=False) if path not in unsure]
    assert all_of(browser, "#cluster-0 h3") == ["Most typical", "Least sure"]
    assert all_of(browser, "#cluster-0 .pic", "title") == typical[: 2 * columns] + unsure
    click(browser, "#more-0")
    assert all_of(browser, "#cluster-0 .pic", "title") == typical[: 2 * columns] + unsure + typical[2 * columns :]
    click(browser, "#more-0")
    assert len(all_of(browser, "#cluster-0 .pic", "title")) == 3 * columns
    assert all_of(browser, "#legend small") == ["60", "30", "10"]
    assert "100 images in 3 clusters" in browser.find_element("tag name", "header").text
    assert "A note." in browser.find_element("tag name", "header").text


def test_search_finds_names_at_once_and_escape_ends_it(browser):
    press(browser, "/", "CAT_")
    assert says(browser) == "9 images found"
    assert sorted(all_of(browser, ".pic", "title")) == [f"some/cat_{i}0.png" for i in range(1, 10)]
    press(browser, Keys.ENTER)
    assert focused(browser).startswith("some/cat_")
    press(browser, Keys.ESCAPE)
    assert says(browser) == ""
    press(browser, "/", "</SCRIPT>, 日")
    assert all_of(browser, "section:not([hidden]) .pic", "title") == [ODD]
    assert all_of(browser, "section:not([hidden])", "id") == ["cluster-2"]


def test_arrows_go_from_image_to_image_and_across_clusters(browser):
    press(browser, "/", Keys.ENTER)
    paths = all_of(browser, ".pic", "title")
    columns = all_of(browser, "#cluster-0 .grid", "children.length")[1]
    assert focused(browser) == paths[0]
    press(browser, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert focused(browser) == paths[2]
    press(browser, Keys.ARROW_LEFT, Keys.ARROW_DOWN)
    assert focused(browser) == paths[1 + columns]
    press(browser, Keys.ARROW_DOWN, Keys.ARROW_DOWN)
    assert focused(browser) == all_of(browser, "#cluster-1 .pic", "title")[1]
    press(browser, Keys.ARROW_UP)
    assert focused(browser) == paths[1 + 2 * columns]
    assert all_of(browser, ".pic[tabindex='0']", "title") == [focused(browser)], "Tab reaches one image"


def test_an_image_is_enlarged_and_the_arrows_go_on(browser):
    press(browser, "/", "original", Keys.ENTER, Keys.ENTER)
    shown = "return document.querySelector('#large img').naturalWidth"
    assert browser.execute_script(shown) == 500, "the original"
    press(browser, Keys.ESCAPE, Keys.ESCAPE)
    paths, at = all_of(browser, ".pic", "title"), 0
    press(browser, "/", Keys.ENTER, Keys.ENTER)
    while paths[at] == "original.png" or paths[at + 1] == "original.png":
        press(browser, Keys.ARROW_RIGHT)
        at += 1
    press(browser, Keys.ARROW_RIGHT)
    assert browser.find_element("id", "original").text == paths[at + 1]
    assert browser.execute_script(shown) == 112, "the thumbnail, 16 pixels seven times as large"
    press(browser, Keys.ESCAPE)
    assert focused(browser) == paths[at + 1]
    assert browser.execute_script("return document.getElementById('large').open") is False


def test_what_is_changed_by_hand_is_in_the_csv_and_kept(browser, made):
    pd.testing.assert_frame_equal(downloaded(browser).drop(columns="name"), made[2])
    name = browser.find_element("id", "name-2")
    name.send_keys('Cats, "wild"\n')
    press(browser, "/", "cat_", Keys.ENTER, Keys.SPACE, Keys.ARROW_RIGHT, Keys.SPACE)
    assert says(browser) == "9 images found, 2 selected, 1 change"
    moved = all_of(browser, ".pic[aria-selected=true]", "title")
    press(browser, "2", Keys.ENTER)
    assert says(browser) == "9 images found, 2 changes"
    press(browser, Keys.ESCAPE)
    click(browser, ".pic")
    first = browser.find_element("id", "original").text
    press(browser, "m")
    click(browser, "#places button:last-child")  # a new cluster
    assert browser.find_element("id", "facts").text.startswith("Cluster 3, moved from ")
    press(browser, Keys.ESCAPE)
    expected = made[2].assign(name="").set_index("path")
    expected.loc[moved, "cluster"] = 2
    expected.loc[first, "cluster"] = 3
    expected.loc[expected.cluster == 2, "name"] = 'Cats, "wild"'
    expected = expected.reset_index()[["path", "cluster", "name", "confidence"]]
    for _ in range(2):
        pd.testing.assert_frame_equal(downloaded(browser), expected)
        assert sorted(all_of(browser, "#cluster-2 [aria-label^='Moved'] .pic", "title")) == sorted(moved)
        assert all_of(browser, "#to-2 span") == ['2 Cats, "wild"']
        assert all_of(browser, "#to-2 small") == ["12"]
        browser.refresh()
    press(browser, "u")
    assert downloaded(browser).cluster.tolist() == expected.cluster.where(expected.path != first, 0).tolist()
    click(browser, "#reset")
    browser.switch_to.alert.accept()
    pd.testing.assert_frame_equal(downloaded(browser).drop(columns="name"), made[2])
    assert all_of(browser, "#name-2", "value") == [""]
    assert not browser.find_element("id", "undo").is_enabled()


def test_several_images_are_selected_by_shift_and_by_cluster(browser):
    ticks = browser.find_elements("css selector", "#cluster-1 .pic b")
    ticks[0].click()
    keys = webdriver.ActionChains(browser).key_down(Keys.SHIFT)
    keys.click(browser.find_elements("css selector", "#cluster-1 .pic")[3]).key_up(Keys.SHIFT).perform()
    assert says(browser) == "4 selected"
    click(browser, "#none")
    click(browser, "#all-1")
    assert says(browser) == "30 selected"
    click(browser, "#move")
    assert browser.find_element("id", "moving").text == "30 images"
    press(browser, Keys.ESCAPE)
    assert says(browser) == "30 selected", "nothing was moved"
    press(browser, "0", Keys.ENTER)
    assert all_of(browser, "#legend small") == ["90", "0", "10"]


def test_the_map_shows_and_opens_the_image_below_the_pointer(browser, made):
    canvas, page, row = browser.find_element("tag name", "canvas"), made[1], 42
    side = canvas.size["width"] - 2
    x, y = (round(side * (0.92 * (page[axis][row] - 0.5))) for axis in "xy")
    near = np.hypot(np.array(page["x"]) - page["x"][row], np.array(page["y"]) - page["y"][row]) * side * 0.92 < 3
    paths = [path for path, is_near in zip(page["path"], near, strict=True) if is_near]
    webdriver.ActionChains(browser).move_to_element_with_offset(canvas, x, y).pause(0.2).perform()
    tip = browser.find_element("id", "tip")
    assert tip.is_displayed()
    assert tip.text.split(": ")[1] in [path.split("/")[-1] for path in paths]
    webdriver.ActionChains(browser).move_to_element_with_offset(canvas, x, y).click().pause(0.2).perform()
    assert (opened := browser.find_element("id", "original").text) in paths
    press(browser, Keys.ESCAPE)
    assert focused(browser) == opened
    before = np.mean(ink(browser) > 200)
    click(browser, "#to-2")
    assert np.mean(ink(browser) > 200) < before / 2, "only the points of this cluster are as bright as before"


def test_a_damaged_store_is_as_good_as_none(browser, made):
    key = json.dumps(f"ccrepro gallery {made[1]['id']}")
    browser.execute_script(f"localStorage.setItem({key}, '[{{')")
    browser.refresh()
    assert len(all_of(browser, "section", "id")) == 3
