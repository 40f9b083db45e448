"""Pages in a real, headless Chromium, as a reader without a mouse drives them.

By Selenium, which finds the driver that Debian and GitHub's machines have beside their
browser; playwright's wheel is four times the size, for a copy of node.
"""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

BROWSER = next(filter(None, map(shutil.which, ["chromium", "google-chrome"])), None)
DRIVER = shutil.which("chromedriver")
# No sandbox: containers seldom allow one. The rest keeps it offline.
FLAGS = """--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run
--disable-background-networking --disable-component-update --disable-sync""".split()

# Of an element: the colour of the nearest ancestor that has one behind it.
PAPER = """
const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
const paper = (x) => {
  for (; x; x = x.parentElement) {
    const back = rgb(getComputedStyle(x).backgroundColor);
    if (back.length < 4 || back[3] === 1) return back.slice(0, 3);
  }
  return [255, 255, 255];
};
"""


class Page:
    """A page's address, and the browser that it is opened in."""

    def __init__(self, driver: webdriver.Chrome, address: str):
        self.driver, self.address = driver, address

    def open(self, fragment: str = "") -> None:
        """From the start, not by a jump inside it."""
        self.driver.get("about:blank")
        there = f"{self.address}#{fragment}" if fragment else self.address
        self.driver.get(there)
        # On a machine that is busy, `get` was seen to return before the page was there.
        arrived = "return document.readyState === 'complete' && location.href"
        until(lambda: self.script(arrived) == there)

    def script(self, text: str, *arguments: Any) -> Any:
        return self.driver.execute_script(text, *arguments)

    def find(self, name: str) -> WebElement:
        return self.driver.find_element(By.ID, name)

    def text(self, name: str) -> str:
        return self.script(
            "return document.getElementById(arguments[0]).textContent", name
        )

    def press(self, name: str, keys: str) -> None:
        """Keys, with the focus on an element."""
        self.script("document.getElementById(arguments[0]).focus()", name)
        self.find(name).send_keys(keys)

    def tabbed(self, first: str, count: int) -> list[str]:
        """Where Tab leads to, from an element on."""
        self.script("document.getElementById(arguments[0]).focus()", first)
        focus = lambda: self.script("return document.activeElement.id")
        names = [focus()]
        for _ in range(count - 1):
            self.driver.switch_to.active_element.send_keys(Keys.TAB)
            names.append(focus())
        return names

    def look(self, scheme: str, width: int) -> None:
        """Light or dark as the system has it, and the width of the window."""
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.driver.execute_cdp_cmd(
            "Emulation.setEmulatedMedia", {"features": [feature]}
        )
        size = dict(width=width, height=900, deviceScaleFactor=1, mobile=False)
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def colours(self, selector: str, style: str) -> list[tuple[list, list]]:
        """Of each such element its colour, as 0 ... 255, and of what it stands on."""
        script = "return [...document.querySelectorAll(arguments[0])].map("
        script += "(x) => [rgb(getComputedStyle(x)[arguments[1]]), paper(x)]);"
        return self.script(PAPER + script, selector, style)

    def complaints(self) -> list[str]:
        """What the console says that is a warning or worse."""
        log = self.driver.get_log("browser")
        return [x["message"] for x in log if x["level"] in ("WARNING", "SEVERE")]


def contrast(ink: list, paper: list) -> float:
    """WCAG's: of two colours, from 1 to 21."""
    x = np.array([ink[:3], paper[:3]]) / 255
    linear = np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)
    dark, light = np.sort(linear @ np.array([0.2126, 0.7152, 0.0722]))
    return (light + 0.05) / (dark + 0.05)


def until(true: Callable[[], Any], seconds: float = 20) -> None:
    """Waits, but not for ever."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@contextmanager
def chromium(profile: Path) -> Iterator[webdriver.Chrome]:
    """A browser with an empty profile."""
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in [*FLAGS, f"--user-data-dir={profile}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    try:
        yield driver
    finally:
        driver.quit()
