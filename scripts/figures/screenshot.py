"""A picture of an HTML page, by headless Chromium: the one in the README.

    python -m scripts.figures.screenshot PAGE.html [--section=images] [--width=1000] [--height=1100] [--output=page.png]

Needs Chromium with its driver (Debian: chromium, chromium-driver) and jaxseg[dev].
"""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from selenium import webdriver

SWITCHES = (
    "headless=new",
    "no-sandbox",
    "disable-gpu",
    "hide-scrollbars",
    "no-first-run",
    "disable-background-networking",
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("--section", default="", help="the id to scroll to")
    parser.add_argument("--width", type=int, default=1000)
    parser.add_argument("--height", type=int, default=1100)
    parser.add_argument("--output", type=Path, default=Path("page.png"))
    given = parser.parse_args()
    if not given.page.is_file():
        print(f"error: {given.page}: there is no such file.", file=sys.stderr)
        return 2
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        print("error: chromium and chromedriver are not here; on Debian: chromium, chromium-driver.", file=sys.stderr)
        return 2
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    with tempfile.TemporaryDirectory() as profile:
        for switch in (*SWITCHES, f"window-size={given.width},{given.height}", f"user-data-dir={profile}"):
            options.add_argument(f"--{switch}")
        with webdriver.Chrome(options=options, service=webdriver.ChromeService(driver)) as browser:
            browser.get(f"{given.page.resolve().as_uri()}#{given.section}")
            browser.save_screenshot(str(given.output))
    print(f"written: {given.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
