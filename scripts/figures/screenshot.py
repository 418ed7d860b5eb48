"""A picture of an HTML page, by headless Chromium: the one in the README.

    python -m scripts.figures.screenshot PAGE.html [--section=images] [--width=1000] [--height=1100] [--output=page.png]

Needs Chromium with its driver (Debian: chromium, chromium-driver) and jaxseg[dev].
"""

import argparse
import shutil
import tempfile
from pathlib import Path

from selenium import webdriver

from jaxseg.errors import InputError
from scripts.entry import options_of, run

SWITCHES = (
    "headless=new",
    "no-sandbox",
    "disable-gpu",
    "hide-scrollbars",
    "no-first-run",
    "disable-background-networking",
)


def main(given: argparse.Namespace) -> None:
    if not given.page.is_file():
        raise InputError(f"{given.page}: there is no such file.")
    chromium = shutil.which("chromium")
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        raise InputError("chromium and chromedriver are not on PATH; on Debian: apt install chromium chromium-driver.")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    with tempfile.TemporaryDirectory() as profile:
        for switch in (*SWITCHES, f"window-size={given.width},{given.height}", f"user-data-dir={profile}"):
            options.add_argument(f"--{switch}")
        with webdriver.Chrome(options=options, service=webdriver.ChromeService(driver)) as browser:
            browser.get(f"{given.page.resolve().as_uri()}#{given.section}")
            browser.save_screenshot(str(given.output))
    print(f"written: {given.output}")


if __name__ == "__main__":
    parser = options_of(__doc__, width=1000, height=1100)
    parser.add_argument("page", type=Path)
    parser.add_argument("--section", default="", help="the id to scroll to")
    parser.add_argument("--output", type=Path, default=Path("page.png"))
    run(main, parser)
