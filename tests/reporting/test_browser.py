"""What a browser makes of the pages."""

import shutil
from pathlib import Path

import pytest

from tests.reporting.test_html import page, results_html
from tests.study_results import run as study_run
from tests.study_results import write_study


@pytest.fixture
def browser(tmp_path):
    """Chromium without a network, with its log."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("chromium and chromedriver are not here: the page is not opened in a browser")
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed (extra dev)")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    quiet = ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"]
    alone = ["--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={tmp_path / 'chromium'}"]
    for argument in ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", *quiet, *alone]:
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield chrome
    chrome.quit()


def shown(browser) -> list[str]:
    return browser.execute_script("return [...document.querySelectorAll('.example')].map(e => e.dataset.id.slice(-1))")


def choose(browser, control: str, text: str) -> None:
    from selenium.webdriver.support.select import Select

    Select(browser.find_element("id", control)).select_by_visible_text(text)


def open_page(browser, path: Path, text: str) -> None:
    path.write_text(text)
    browser.get(path.as_uri())


@pytest.mark.slow
def test_sorting_and_filtering_in_a_browser(browser, first, second, tmp_path):
    """FIRST and SECOND by hand; d has no IoU in the first run and stays last in any order.

    Slow: starts a browser.
    """
    open_page(browser, tmp_path / "page.html", page(first, second))
    assert shown(browser) == list("bacd")
    choose(browser, "order", "best first")
    assert shown(browser) == list("cabd")
    choose(browser, "by-run", "second")
    assert shown(browser) == list("bacd")  # 0.8, 0.6, 0.3, 0.1
    choose(browser, "order", "worst first")
    assert shown(browser) == list("dcab")
    choose(browser, "by-class", "car")
    assert shown(browser) == list("ab")  # the second run's car: 0.2, 0.4
    scores = browser.execute_script("return [...document.querySelectorAll('.example .scores')].map(e => e.innerText)")
    assert [row.split() for row in scores] == [
        ["IoU", "of", "car", *pair] for pair in (("0.700", "0.200"), ("–", "0.400"))
    ]
    choose(browser, "by-run", "first")
    assert shown(browser) == list("ca")  # the first run's: 0.1, 0.7
    assert browser.find_element("id", "count").text == "2 of the 4 on this page"
    choose(browser, "by-class", "all classes")
    assert shown(browser) == list("bacd")
    options = browser.find_elements("css selector", "#by-class option")
    assert [option.text for option in options] == ["all classes", "car"]
    assert browser.get_log("browser") == []


@pytest.mark.slow
def test_enlarging_by_keyboard(browser, first, second, tmp_path):
    """Slow: starts a browser."""
    open_page(browser, tmp_path / "page.html", page(first, second))
    title = browser.find_element("id", "large-title")
    browser.find_element("css selector", ".panels button").send_keys("\ue007")  # Enter
    assert title.text == "image · val/b"
    arrow = {"left": "\ue012", "right": "\ue014", "escape": "\ue00c"}
    for key, expected in (("right", "truth"), ("right", "first: prediction"), ("right", "first: errors")):
        browser.switch_to.active_element.send_keys(arrow[key])
        assert title.text == f"{expected} · val/b"
    for _ in range(4):
        browser.switch_to.active_element.send_keys(arrow["left"])
    assert title.text == "second: errors · val/b"
    browser.switch_to.active_element.send_keys(arrow["left"])
    point = (
        "const r = document.querySelector('#large img').getBoundingClientRect(); document.querySelector('#large img')"
    )
    event = "new PointerEvent('pointermove', {bubbles: true, clientX: r.left + r.width * 3 / 8, clientY: r.top + r.height / 4})"
    browser.execute_script(f"{point}.dispatchEvent({event})")
    assert browser.find_element("id", "large-class").text == "building"  # MAP[0, 1], as the second run predicts it
    browser.switch_to.active_element.send_keys(arrow["escape"])
    assert not title.is_displayed()
    assert browser.get_log("browser") == []


@pytest.mark.slow
def test_phone_and_dark_mode(browser, first, second, tmp_path):
    """Slow: starts a browser."""
    names = [f"camvid-text-{model}-seed0" for model in ("unet", "rmi")]
    write_study(tmp_path / "results" / "p", {name: study_run(name, iou=0.5) for name in names})
    screen = {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    texts = {"runs": page(f"a long name of the first run={first}", second), "one": page(first)}
    texts["results"] = results_html(tmp_path / "results")
    for name, text in texts.items():
        open_page(browser, tmp_path / f"{name}.html", text)
        browser.execute_script("document.querySelectorAll('details').forEach(d => { d.open = true; })")
        widths = browser.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
        assert widths == [360, 360], name
        colors = []
        for scheme in ("light", "dark"):
            media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
            browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
            colors.append(browser.execute_script("return getComputedStyle(document.body).backgroundColor"))
        assert colors == ["rgb(252, 252, 251)", "rgb(22, 24, 26)"]
        assert browser.get_log("browser") == []
