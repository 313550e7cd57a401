"""The service in a real browser, on a phone's and a desktop's width: everything can be done, read, and used without a mouse.

Needs Debian's chromium; as root on Debian the set-up installs it. ``PHOTOS_SHOTS=directory`` keeps a picture of every page.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from pathlib import Path

import pytest
from photoslab import PASSWORD, Visitor, jpeg
from werkzeug.serving import make_server

from photos.effects import handlers

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed (extra: test)")
axe = pytest.importorskip(
    "axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed (extra: test)"
)

SIZES = {"phone": {"width": 390, "height": 844}, "desktop": {"width": 1280, "height": 860}}
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def chromium() -> str:
    """Path of a chromium, installed if need be and possible; else a skip that says so."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if found := shutil.which(name):
            return found
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        pytest.skip("no chromium, and only root on Debian can install it here: apt-get install chromium")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for arguments in (["update"], ["install", "-y", "--no-install-recommends", "chromium"]):
        done = subprocess.run(
            ["apt-get", "-qq", *arguments], env=environment, capture_output=True, text=True, check=False, timeout=280
        )
    if not (found := shutil.which("chromium")):
        pytest.skip(f"chromium could not be installed: {done.stderr.strip()[-200:]}")
    return found


@pytest.fixture(scope="module")
def browser():
    path = chromium()
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=path, args=QUIET, timeout=120_000)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def url(app):
    """The application, and a worker that delivers."""
    kit, stop = app.extensions["shardkit"].kit, threading.Event()
    server = make_server("127.0.0.1", 0, app, threaded=True)
    work = {"until": stop.is_set, "every_s": 0.05}
    threads = [
        threading.Thread(target=server.serve_forever),
        threading.Thread(target=kit.outbox.work, args=(handlers(kit, famous_from=5),), kwargs=work),
    ]
    for thread in threads:
        thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    stop.set()
    server.shutdown()
    for thread in threads:
        thread.join(30)
    server.server_close()


@pytest.fixture(params=SIZES)
def page(request, browser, url):
    """A page of one size, that must not complain."""
    context = browser.new_context(viewport=SIZES[request.param], base_url=url, has_touch=request.param == "phone")
    context.set_default_timeout(60_000)
    page = context.new_page()
    page.complaints = []
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.on("console", lambda said: page.complaints.append(said.text) if said.type == "error" else None)
    page.size = request.param
    yield page
    context.close()


def look(page, name):
    """No serious fault of accessibility, nothing beside the screen; and a picture, for whoever wants to see."""
    page.wait_for_load_state("networkidle")
    if "PHOTOS_SHOTS" in os.environ:
        page.screenshot(path=Path(os.environ["PHOTOS_SHOTS"]) / f"{page.size}-{name}.png")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), f"{name} is wider than the screen"
    assert serious(page) == [], name


def serious(page):
    """What axe-core finds that would keep somebody out."""
    found = axe.Axe().run(page).response["violations"]
    bad = [one for one in found if one["impact"] in {"serious", "critical"}]
    return [f"{one['id']}: {node['html'][:120]}" for one in bad for node in one["nodes"]]


def test_from_joining_to_logging_out(page, app, visitor, tmp_path, eventually):
    star = visitor()
    seen = star.share(caption="A star's photo")
    name = Visitor(app).name
    page.goto("/")
    look(page, "welcome")
    page.get_by_role("link", name="Join Lumen").click()
    look(page, "join")
    page.get_by_label("What should we call you?").fill("Newcomer")
    page.get_by_label("Name", exact=True).fill(name)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("main").get_by_role("button", name="Join").click()
    page.get_by_text("Nothing here yet").wait_for()
    look(page, "empty feed")

    page.goto(f"/u/{star.name}")
    look(page, "profile")
    page.get_by_role("button", name="Follow").click()
    page.get_by_role("button", name="Following").wait_for()
    assert page.get_by_text("1 follower").is_visible()

    def shown():
        page.goto("/")
        return page.get_by_alt_text("A star's photo").count() == 1

    eventually(shown)
    look(page, "feed")

    heart = page.get_by_role("button", name="Like")
    assert heart.get_attribute("aria-pressed") == "false"
    heart.click()
    page.get_by_text("1 like", exact=True).wait_for()
    assert page.get_by_role("button", name="Like").get_attribute("aria-pressed") == "true"
    page.get_by_alt_text("A star's photo").click()
    page.wait_for_url(f"**/p/{seen}")
    page.get_by_label("Your comment").fill("<b>Bold</b> & kind")
    page.get_by_role("button", name="Send").click()
    page.get_by_text("<b>Bold</b> & kind").wait_for()
    assert page.get_by_label("Your comment").input_value() == ""
    look(page, "photo")

    page.get_by_role("link", name="Share").click()
    look(page, "share")
    upload = tmp_path / "mine.jpg"
    upload.write_bytes(jpeg((640, 480), "darkorange"))
    page.get_by_label("Photo").set_input_files(upload)
    page.get_by_label("Caption").fill("My own")
    page.get_by_role("main").get_by_role("button", name="Share").click()
    page.get_by_role("heading", name="My own").wait_for()
    page.get_by_role("link", name="You").click()
    page.get_by_alt_text("My own by").wait_for()
    page.goto("/explore")
    look(page, "explore")
    assert page.complaints == []

    page.goto("/nowhere")
    look(page, "not found")
    page.get_by_role("button", name="Log out").click()
    page.get_by_role("link", name="Join Lumen").wait_for()
    page.goto("/login")
    page.get_by_label("Name").fill(name)
    page.get_by_label("Password").fill("wrong password")
    page.get_by_role("main").get_by_role("button", name="Log in").click()
    page.get_by_text("The name or the password is wrong.").wait_for()
    look(page, "log in")
    assert all("Failed to load resource" in said for said in page.complaints), "404 and 422 are said, and nothing else"


def test_dark_and_without_scripts(browser, url, visitor, eventually):
    ann = visitor()
    photo = ann.share(caption="Plain")
    context = browser.new_context(viewport=SIZES["phone"], base_url=url, java_script_enabled=False, color_scheme="dark")
    context.set_default_timeout(60_000)
    page = context.new_page()
    page.goto("/join")
    page.get_by_label("What should we call you?").fill("No Script")
    page.get_by_label("Name", exact=True).fill(f"{ann.name}.x")
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("main").get_by_role("button", name="Join").click()
    page.goto(f"/p/{photo}")
    page.get_by_role("button", name="Like").click()

    def counted():
        page.goto(f"/p/{photo}")
        return page.get_by_text("1 like", exact=True).is_visible()

    eventually(counted)
    assert page.get_by_role("button", name="Like").get_attribute("aria-pressed") == "true"
    context.close()
    context = browser.new_context(viewport=SIZES["phone"], base_url=url, color_scheme="dark")
    context.set_default_timeout(60_000)
    page, page.size = context.new_page(), "dark"
    for path in ("/", "/explore", f"/p/{photo}", f"/u/{ann.name}", "/join"):
        page.goto(path)
        look(page, path.strip("/").partition("/")[0] or "welcome")
    context.close()


def test_a_planted_fault_is_found(page):
    page.set_content("<html lang=en><title>x</title><main><img src='x.png'><input></main></html>")
    assert any(fault.startswith("image-alt") for fault in serious(page))
