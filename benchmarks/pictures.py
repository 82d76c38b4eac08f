"""Make the pictures in docs/images: the report of a demo, and the page of its server.

    python -m benchmarks.pictures                        # runs the small demo first: a minute
    python -m benchmarks.pictures --demo limerank-demo   # uses a finished demo

Needs Chromium (apt-get install chromium) and playwright.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import httpx2 as httpx
from PIL import Image
from playwright.sync_api import Page, ViewportSize, sync_playwright

IMAGES = Path(__file__).parents[1] / "docs" / "images"
WIDE: ViewportSize = {"width": 1440, "height": 900}
REPORT: ViewportSize = {"width": 1100, "height": 450}
PHONE: ViewportSize = {"width": 390, "height": 844}
LOAD_MS = 45_000
"""Milliseconds of requests before the picture of the operations tab."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--demo", type=Path)
    parser.add_argument("--small", action="store_true", help="the demo was made with --small")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="limerank-pictures-") as held:
        demo = given.demo or Path(held) / "demo"
        command = [sys.executable, "-m", "limerank", "demo", "--out", str(demo), "--serve"]
        command += ["--port", "0", *(["--small"] if given.small or not given.demo else [])]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            for line in process.stdout:
                print(line, end="")
                found = re.search(r" on (http://\S+)", line)
                if found:
                    take(found[1], demo / "report.html")
                    return
            sys.exit("the demo stopped before its server was ready")
        finally:
            process.terminate()
            process.wait(timeout=60)


def take(url: str, report: Path) -> None:
    IMAGES.mkdir(parents=True, exist_ok=True)
    browser_path = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as started, httpx.Client(base_url=url) as client:
        browser = started.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        page = browser.new_context(viewport=REPORT).new_page()
        page.goto(report.resolve().as_uri())
        heading = page.get_by_role("heading", name="Quality", exact=True)
        heading.evaluate("one => one.scrollIntoView()")
        save(page, "report")
        page.locator(".card:has(svg.flow)").first.screenshot(path=IMAGES / "why.png")
        shrink("why")
        user = user_with_history(client)
        page = visit(browser, url, WIDE, user)
        page.locator("#ranked button.what").first.click()
        page.wait_for_selector("#why .flow")
        page.evaluate("scrollTo(0, 0)")
        save(page, "page-wide")
        page.locator("#why").screenshot(path=IMAGES / "page-why.png")
        shrink("page-why")
        phone = visit(browser, url, PHONE, user)
        phone.locator("#ranking").evaluate("node => node.scrollIntoView()")
        save(phone, "page-phone")
        page.locator("#tab-operations").click()
        stop = threading.Event()
        asking = threading.Thread(target=ask, args=(url, stop))
        asking.start()
        page.wait_for_timeout(LOAD_MS)
        save(page, "page-operations")
        stop.set()
        asking.join()
        browser.close()
    print(f"{IMAGES}: report, why, page-wide, page-why, page-phone, page-operations")


def user_with_history(client: httpx.Client) -> Any:
    """The user with the longest history among the first 60."""
    users = client.get("/v1/users", params={"limit": 60}).json()["users"]
    held = {user: client.get(f"/v1/users/{user}").json()["events"] for user in users}
    return max(users, key=lambda user: held[user])


def visit(browser: Any, url: str, size: ViewportSize, user: Any) -> Page:
    """The page with this user's history and ranking."""
    page: Page = browser.new_context(viewport=size).new_page()
    page.goto(url)
    page.wait_for_selector("#ranked > li")
    with page.expect_response(lambda answer: _ranks(answer.request, user)):
        page.locator("#user-search").fill(str(user))
        page.keyboard.press("Enter")
    page.wait_for_selector(".timeline .event")
    page.wait_for_selector('#ranked[aria-busy="false"] > li')
    return page


def _ranks(request: Any, user: Any) -> bool:
    """Whether a request of the page ranks for this user."""
    ranks = request.method == "POST" and request.url.endswith("/v1/rank")
    return ranks and str(request.post_data_json.get("user")) == str(user)


def save(page: Page, name: str) -> None:
    page.mouse.move(0, 0)
    page.wait_for_timeout(700)  # animations have ended
    page.screenshot(path=IMAGES / f"{name}.png")
    shrink(name)


def shrink(name: str) -> None:
    """A page has few colours: 256 of them take a third of the bytes."""
    path = IMAGES / f"{name}.png"
    with Image.open(path) as picture:
        small = picture.convert("RGB").quantize(256, dither=Image.Dither.NONE)
    small.save(path, optimize=True)


def ask(url: str, stop: threading.Event) -> None:
    """Send requests of many users until ``stop`` is set."""
    with httpx.Client(base_url=url) as client:
        users = client.get("/v1/users", params={"limit": 500}).json()["users"]
        position = 0
        while not stop.wait(0.004):
            user = users[position % len(users)]
            client.post("/v1/rank", json={"user": user, "k": 20})
            if position % 5 == 0:
                event = {
                    "user": user,
                    "item": 1 + position % 200,
                    "time": 1_800_000_000_000 + position,
                }
                client.post("/v1/events", json=event)
            position += 1


if __name__ == "__main__":
    main()
