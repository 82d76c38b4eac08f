"""The page in a real browser: what a user does, and what the page must never show."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from contextlib import contextmanager
from urllib.parse import urlsplit

import httpx2 as httpx
import pytest

from limerank.data.description import load_spec
from limerank.data.prepare import prepare
from limerank.index.building import build_index
from limerank.training.trainer import train
from tests.catalogues import shop
from tests.running import START, Running
from tests.test_display import write_titles
from tests.worlds import config_of, write_pages

playwright = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed: pip install playwright"
)
expect = playwright.expect
expect.set_options(timeout=15_000)  # as long as a page has, on a machine that has much to do

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = [
    pytest.mark.skipif(
        BROWSER is None, reason="no Chromium is installed: apt-get install chromium"
    ),
    pytest.mark.slow,
]
WIDE, PHONE = {"width": 1440, "height": 900}, {"width": 390, "height": 844}
KEY = "a-key-that-may-do-all-of-it-123456"


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    running = Running(tmp_path_factory.mktemp("page"), "--open")
    with httpx.Client(base_url=running.url) as client:
        events = [
            {"user": 7, "item": item, "time": START + 60_000 * item, "labels": {"click": item % 2}}
            for item in range(1, 12)
        ]
        client.post("/v1/events", json={"events": events}).raise_for_status()
    yield running.url
    running.stop()


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield opened
        opened.close()


@contextmanager
def opened(browser, url, size=WIDE, *, wrong=()):
    """The page, loaded. Ends with a look at what went wrong in it: nothing may, but ``wrong``."""
    context = browser.new_context(viewport=size)
    page, bad, host = context.new_page(), [], urlsplit(url).netloc
    page.set_default_timeout(15_000)
    page.on(
        "console",
        lambda message: bad.append(message.text) if message.type in ("error", "warning") else None,
    )
    page.on("pageerror", lambda error: bad.append(str(error)))
    page.on("request", lambda asked: urlsplit(asked.url).netloc == host or bad.append(asked.url))
    page.on(
        "response",
        lambda answer: (
            bad.append(f"{answer.status} {answer.url}") if answer.status >= 400 else None
        ),
    )
    page.goto(url)
    yield page
    shown = page.locator("body").inner_text().splitlines()
    bad += [f"{one!r} is shown" for one in ("false", "null", "undefined", "NaN") if one in shown]
    context.close()
    assert [one for one in bad if not any(part in one for part in wrong)] == []


def rows(page):
    """Items of the ranking, in order."""
    return page.locator("#ranked > li").evaluate_all("all => all.map(one => one.dataset.item)")


def choose(page, user):
    page.locator("#user-search").fill(str(user))
    page.keyboard.press("Enter")
    expect(page.locator("#user .user-title")).to_contain_text(str(user))
    expect(page.locator("#ranked")).to_have_attribute("aria-busy", "false")


def test_a_user_s_ranking(served, browser):
    with opened(browser, served) as page, httpx.Client(base_url=served) as client:
        choose(page, 7)
        reply = client.post("/v1/rank", json={"user": 7, "k": 20}).json()
        assert rows(page) == [str(one["item"]) for one in reply["items"]]
        expect(page.locator("#user")).to_contain_text("11 events")
        expect(page.locator(".timeline .event")).to_have_count(11)
        first = page.locator("#ranked > li").first
        for task in client.get("/v1/model").json()["tasks"]:
            expect(first).to_contain_text(task["name"])
        expect(page.locator("#facts")).to_contain_text(re.compile(r"ranked\s*\d+ items.*ms", re.S))
        page.locator("#more").click()
        expect(page.locator("#ranked > li")).to_have_count(40)
        choose(page, "nobody-knows-me")
        expect(page.locator("#ranking-note")).to_contain_text("cold start")
        assert page.title() == "limerank"


def test_a_choice_made_while_the_page_loads_stays(served, browser):
    """Whom the page begins with is asked for while it loads: nobody can choose before that."""
    with opened(browser, served) as page:

        def later(route):
            page.wait_for_timeout(700)
            route.continue_()

        page.route("**/v1/users?*limit=1", later)
        page.evaluate("sessionStorage.clear()")
        page.reload(wait_until="commit")
        choose(page, 21)
        page.wait_for_timeout(1000)
        expect(page.locator("#user .user-title")).to_contain_text("21")


def test_values_of_an_item_show_their_effects(browser, tmp_path):
    spec = write_pages(tmp_path / "pages", users=30, pages=4)
    prepare(load_spec(spec), tmp_path / "data", base=spec.parent)
    model = config_of("lime-mha", width=16, hidden=8, links=4)
    train(tmp_path / "data", tmp_path / "run", model=model, config={"epochs": 1})
    build_index(tmp_path / "run", tmp_path / "index")
    running = Running(tmp_path, "--open", "--run", tmp_path / "run", "--index", tmp_path / "index")
    try:
        with opened(browser, running.url) as page:
            page.locator("#ranked button.what").first.click()
            fields = page.locator("#why .choices")
            expect(fields.locator("label")).to_have_text(["price", "slot"])
            expect(fields.locator("output")).to_have_count(0)
            value = page.locator("#why .sum .strong dd").inner_text()
            page.locator("#shown-price").fill("1.5")
            page.locator("#shown-price").press("Tab")
            expect(page.locator("output[for=shown-price]")).to_have_text(re.compile(r"\d"))
            expect(page.locator("#shown-price")).to_have_value("1.5")
            assert page.locator("#why .sum .strong dd").inner_text() != value
            page.locator("#shown-slot").select_option("s1")
            expect(fields.locator("output")).to_have_count(2)
    finally:
        running.stop()


def test_why(served, browser):
    with opened(browser, served) as page, httpx.Client(base_url=served) as client:
        choose(page, 7)
        item = rows(page)[2]
        page.locator(f'#ranked > li[data-item="{item}"] button.what').click()
        expect(page.locator("#why")).to_be_visible()
        expect(page.locator("#why .flow")).to_be_visible()
        reply = client.post("/v1/explain", json={"user": 7, "items": [int(item)]}).json()
        (one,) = reply["items"]
        expect(page.locator("#why")).to_contain_text(f"Why {item}")
        shown = float(page.locator("#why .sum .strong dd").inner_text().replace("\u2212", "-"))
        assert shown == pytest.approx(one["value"], abs=2e-3)
        expect(page.locator("#why .flow .link")).not_to_have_count(0)
        page.keyboard.press("Escape")
        expect(page.locator("#why")).to_be_hidden()


def test_a_late_answer_about_the_user_before_changes_nothing(served, browser):
    with opened(browser, served) as page:
        choose(page, 7)
        held = []
        page.route("**/v1/users/7", lambda route: held.append(route))  # noqa: PLW0108  # a function
        with page.expect_request("**/v1/users/7"):
            page.reload()
        choose(page, 21)
        for route in held:
            route.continue_()
        page.evaluate("fetch('v1/users?limit=1').then((answer) => answer.text())")
        expect(page.locator("#user .user-title")).to_contain_text("21")


def test_feedback_changes_the_list(served, browser):
    with opened(browser, served) as page, httpx.Client(base_url=served) as client:
        choose(page, 21)
        before = rows(page)
        watched = before[0]
        button = page.locator(f'#ranked > li[data-item="{watched}"] button.post')
        expect(button).to_have_text("click")  # the log's own type of event
        button.click()
        expect(page.locator("#status")).to_contain_text(f"click: {watched}")
        expect(page.locator(".timeline .event")).to_have_count(1)
        after = rows(page)
        assert watched not in after and after != before[1:] + after[-1:]
        held = client.get("/v1/users/21").json()["history"]
        assert [str(one["item"]) for one in held] == [watched] and held[0]["labels"]["click"] == 1


def test_someone_made_up(served, browser):
    with opened(browser, served) as page, httpx.Client(base_url=served) as client:
        users = client.get("/v1/users").json()
        asked = []
        page.on("request", lambda one: asked.append(one) if "/v1/rank" in one.url else None)
        page.get_by_text("Make one up").click()
        expect(page.locator("#item-search")).to_be_visible()
        empty = rows(page)
        for item in ("4", "9"):
            page.locator("#item-search").fill(item)
            expect(page.locator("#item-options li").first).to_contain_text(item)
            page.keyboard.press("Enter")
            expect(page.locator(".timeline")).to_contain_text(item)
        expect(page.locator(".timeline .event")).to_have_count(2)
        expect(page.locator("#ranked")).to_have_attribute("aria-busy", "false")
        body = asked[-1].post_data_json
        assert [event["item"] for event in body["history"]] == [4, 9]
        reply = client.post("/v1/rank", json=body).json()
        assert {"4", "9"}.isdisjoint(rows(page)) and rows(page) != empty
        assert rows(page) == [str(one["item"]) for one in reply["items"]]
        page.locator(".timeline .remove").first.click()
        expect(page.locator(".timeline .event")).to_have_count(1)
        assert client.get("/v1/users").json() == users  # nothing of it is stored


def test_a_new_item_is_ranked(served, browser):
    with opened(browser, served) as page, httpx.Client(base_url=served) as client:
        choose(page, 7)
        page.locator("#open-new").click()
        dialog = page.locator("#new-item")
        columns = client.get("/v1/model").json()["item_columns"]
        fields = dialog.locator("input")
        assert fields.count() == len(columns)
        fields.first.fill("9001")
        dialog.locator("button.first").click()
        expect(page.locator("#status")).to_contain_text("Added: 9001 ranks")
        expect(page.locator('#pinned > li[data-item="9001"]')).to_be_visible()
        assert client.get("/v1/items/9001").json()["rankable"]
        page.locator("#pinned button[data-what=remove]").click()
        expect(page.locator("#status")).to_contain_text("Removed: 9001")
        expect(page.locator("#pinned")).to_be_hidden()
        assert not client.get("/v1/items/9001").json()["rankable"]


def test_task_weights(served, browser):
    with opened(browser, served) as page, httpx.Client(base_url=served) as client:
        choose(page, 7)
        before = rows(page)
        names = [task["name"] for task in client.get("/v1/model").json()["tasks"]]
        slider = page.locator(f"#weight-{names[0]}")
        slider.focus()
        page.keyboard.press("Home")  # the least: the order of the first task turned round
        with page.expect_response("**/v1/rank") as answer:
            pass
        sent = answer.value.request.post_data_json["task_weights"]
        assert sent[names[0]] == -1
        expect(page.locator("#ranked > li").first).not_to_have_attribute("data-item", before[0])
        assert rows(page) != before


def test_a_link_shows_the_same_and_no_key(served, browser):
    with opened(browser, served) as page:
        page.evaluate("sessionStorage.setItem('limerank-key', 'a-secret-key')")
        choose(page, 7)
        page.locator("#seen").check()
        slider = page.locator(".weight input").first
        slider.focus()
        page.keyboard.press("End")
        expect(page).to_have_url(re.compile("weight"))
        expect(page.locator("#ranked")).to_have_attribute("aria-busy", "false")
        item = rows(page)[1]
        page.locator(f'#ranked > li[data-item="{item}"] button.what').click()
        expect(page.locator("#why .flow")).to_be_visible()
        link, shown = page.url, rows(page)
        assert f"why={item}" in link and "secret" not in link
    with opened(browser, link) as page:
        expect(page.locator("#user .user-title")).to_contain_text("7")
        expect(page.locator("#why .flow")).to_be_visible()
        assert rows(page) == shown and page.locator("#seen").is_checked()
        assert float(page.locator(".weight input").first.input_value()) == 2
        expect(page.locator("#why")).to_contain_text(f"Why {item}")
        page.locator("#kind").get_by_text("Make one up").click()
        page.locator("#item-search").fill("4")
        expect(page.locator("#item-options li").first).to_contain_text("4")
        page.keyboard.press("Enter")
        expect(page.locator(".timeline .event")).to_have_count(1)
        expect(page).to_have_url(re.compile("items=4"))
        made = page.url
    with opened(browser, made) as page:
        expect(page.locator(".timeline .event")).to_have_count(1)
        expect(page.locator(".timeline")).to_contain_text("4")


def test_titles_and_similar_items(browser, tmp_path):
    data = write_titles(tmp_path / "titles", ["title", "image"])
    model = config_of("lime-mha", width=8, heads=2, links=4, hidden=4)
    train(data, tmp_path / "run", model=model, config={"epochs": 1})
    build_index(tmp_path / "run", tmp_path / "index")
    running = Running(tmp_path, "--open", "--run", tmp_path / "run", "--index", tmp_path / "index")
    try:
        with opened(browser, running.url) as page, httpx.Client(base_url=running.url) as client:
            row = page.locator('#ranked > li[data-item="4"]')
            expect(row.locator(".id")).to_have_text("Item no. 4 – «é»")
            expect(row.locator(".detail")).to_contain_text("4")
            page.get_by_text("Make one up").click()
            page.locator("#item-search").fill("NO. 12")
            expect(page.locator("#item-options li")).to_have_count(1)
            expect(page.locator("#item-options li")).to_contain_text("Item no. 12")
            page.keyboard.press("Enter")
            expect(page.locator(".timeline")).to_contain_text("Item no. 12")
            page.locator('#ranked > li[data-item="4"] button.what').click()
            expect(page.locator("#why")).to_contain_text("Why Item no. 4")
            expect(page.locator("#why .effects").last).to_contain_text("Item no. 12")
            page.locator("#why summary").click()
            expect(page.locator("#why .alike li")).to_have_count(8)
            near = client.get("/v1/items/4/similar", params={"k": 8}).json()["items"]
            titles = [one["display"].get("title", str(one["item"])) for one in near]
            assert page.locator("#why .alike .id").all_inner_texts() == titles
    finally:
        running.stop()


def test_operations(served, browser):
    with opened(browser, served) as page, httpx.Client(base_url=served) as client:
        choose(page, 7)
        page.locator("#tab-operations").click()
        for _ in range(3):
            client.post("/v1/rank", json={"user": 7})
            page.wait_for_timeout(900)
        panel = page.locator("#panel-operations")
        expect(panel).to_contain_text("POST /v1/rank")
        expect(panel.locator(".plot path.line").first).to_be_attached()
        events = client.get("/v1/users/7").json()["events"]
        tile = panel.locator(".tiles > div", has=page.get_by_text("events", exact=True))
        assert int(tile.locator("dd").inner_text().replace(",", "")) >= events
        page.get_by_role("button", name="Pause").click()
        expect(panel.locator(".live")).not_to_contain_text("every 2 s")


def test_the_table_of_arms(browser, tmp_path):
    """Users, rankings and outcomes of two arms, as the client made them."""
    of = shop("lime-mha")
    shutil.copytree(of.index.path, tmp_path / "index")
    run, index = of.run.path, tmp_path / "index"
    arms = [("--arm", f"{name}={run},{index},{share}") for name, share in (("a", 3), ("b", 1))]
    command = [sys.executable, "-m", "limerank", "serve", "--open", "--port", "0"]
    command += ["--store", str(tmp_path / "arms.db"), *(part for arm in arms for part in arm)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    counts = {"a": [0, 0, 0], "b": [0, 0, 0]}
    try:
        url = re.search(r"http://\S+", process.stdout.readline())[0]
        with httpx.Client(base_url=url) as client:
            for user in range(12):
                body = {"user": user, "k": 3, "log": True, "time": START + user}
                shown = client.post("/v1/rank", json=body).json()
                count = counts[shown["arm"]]
                count[0] += 1
                count[1] += 1
                if user % 2:
                    count[2] += 1
                    clicked = {"user": user, "item": shown["items"][0]["item"], "id": "c"}
                    clicked |= {"time": START + 500, "labels": {"click": 1}}
                    client.post("/v1/events", json=clicked).raise_for_status()
            assert all(count[0] for count in counts.values())
        with opened(browser, url) as page:
            page.locator("#tab-operations").click()
            table = page.locator("#panel-operations table", has_text="arm and label")
            for name, count in counts.items():
                cells = table.locator("tr", has_text=f"{name}: click").locator("th, td")
                expect(cells).to_have_count(6)
                expect(cells.nth(3)).to_have_text(str(count[2]))
                assert cells.all_inner_texts()[1:4] == [str(one) for one in count]
                rate = cells.nth(4).inner_text()
                assert f"{count[2] / count[1]:.4f}" in rate, rate
            main, other = (
                table.locator("tr", has_text=f"{name}: click").locator("th, td").nth(5)
                for name in ("a", "b")
            )
            expect(main).to_have_text("–")
            expect(other).not_to_have_text("–")
    finally:
        process.terminate()
        process.wait(timeout=60)
        process.stdout.close()


def test_by_keyboard_alone(served, browser):
    with opened(browser, served) as page:
        expect(page.locator("#ranked > li").first).to_be_visible()
        page.keyboard.press("/")
        page.keyboard.type("7")
        page.keyboard.press("Enter")
        expect(page.locator("#user .user-title")).to_contain_text("7")
        for _ in range(60):  # tab until a row of the ranking has the focus
            page.keyboard.press("Tab")
            if page.evaluate("!!document.activeElement.closest('#ranked > li')"):
                break
        here = page.evaluate("document.activeElement.closest('li').dataset.item")
        page.keyboard.press("ArrowDown")
        below = page.evaluate("document.activeElement.closest('li').dataset.item")
        assert [here, below] == rows(page)[:2]
        page.keyboard.press("Enter")
        expect(page.locator("#why .flow")).to_be_visible()
        page.keyboard.press("Escape")
        expect(page.locator("#why")).to_be_hidden()
        assert page.evaluate("document.activeElement.closest('li')?.dataset.item") == below
        page.keyboard.press("Enter")
        expect(page.locator("#why .flow")).to_be_visible()
        page.evaluate(  # a user who moved on before the dialog closed is not called back
            "document.querySelector('#why').close(); document.querySelector('#tab-rank').focus()"
        )
        expect(page.locator("#why-empty")).to_be_visible()
        assert page.evaluate("document.activeElement.id") == "tab-rank"
        page.keyboard.press("ArrowRight")
        expect(page.locator("#panel-operations")).to_be_visible()


def test_on_a_phone(served, browser):
    with opened(browser, served, PHONE) as page:
        choose(page, 7)
        fits = "document.documentElement.scrollWidth <= innerWidth"
        assert page.evaluate(fits)
        page.locator("#ranked button.what").first.click()
        expect(page.locator("#why .flow")).to_be_visible()
        assert page.evaluate(fits)
        page.keyboard.press("Escape")
        page.locator("#tab-operations").click()
        expect(page.locator("#panel-operations .tiles")).to_be_visible()
        assert page.evaluate(fits)


def test_keys_and_a_server_that_goes_away(browser, tmp_path):
    running = Running(tmp_path, env={"LIMERANK_ADMIN_KEYS": KEY})
    wrong = ("401", "ERR_CONNECTION_REFUSED", "Failed to load resource")
    with opened(browser, running.url, wrong=wrong) as page:
        dialog = page.locator("#key")
        expect(dialog).to_be_visible()
        page.locator("#key-text").fill("some-other-key-that-is-wrong")
        page.keyboard.press("Enter")
        expect(dialog).to_contain_text("does not know this key")
        page.locator("#key-text").fill(KEY)
        page.keyboard.press("Enter")
        expect(page.locator("#ranked > li").first).to_be_visible()
        assert KEY not in page.url and KEY not in page.content()
        running.stop()
        page.locator("#seen").check()
        expect(page.locator("#banner")).to_be_visible()
        expect(page.locator("#banner-again")).to_be_visible()
    assert KEY not in (tmp_path / "log").read_text()
