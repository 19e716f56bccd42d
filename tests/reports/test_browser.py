"""The page in a real browser, by its devtools: hover, keyboard, copy, theme, print, widths, no request, no word."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from reports.build import build

CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium isn't installed"),
]
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--remote-debugging-pipe"),
]
Make = Callable[..., Path]
KD = {"methods": "kd", "weighting": "fixed", "lambda_base": 0.5, "anchor": "reference", "teachers": 1}
FIGURES = ["validation", "test", "gains", "hypervolume", "importance"]
LIT = """(() => {
  const rings = (id) => [...document.querySelectorAll(`#${id} path[fill=transparent]`)]
    .filter((path) => path.getAttribute("stroke") === "var(--front)").map((path) => path.__data__?.datum?.id);
  const tip = document.getElementById("tip");
  const active = document.activeElement;
  return {
    rows: [...document.querySelectorAll("tr.lit")].map((row) => row.dataset.id),
    rings: ["validation", "test", "gains"].map(rings),
    tip: tip.hidden ? "" : tip.innerText,
    focus: active.__data__?.datum?.id ?? active.dataset?.id ?? "",
  };
})()"""
READY = """document.readyState === "complete"
  && (document.documentElement.dataset.ready || !document.getElementById("data"))"""


class Browser:
    """One Chromium, spoken to over its devtools' pipe: messages are JSON, each ended by a zero byte."""

    def __init__(self, folder: str) -> None:
        to_browser, self._write = os.pipe()
        self._read, from_browser = os.pipe()
        command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={folder}"]
        # The browser reads at descriptor 3 and writes at 4.
        script = f'exec "$@" 3<&{to_browser} 4>&{from_browser}'
        self._process = subprocess.Popen(
            ["bash", "-c", script, "bash", *command],
            pass_fds=(to_browser, from_browser),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        self._rest, self._count, self._session = b"", 0, ""
        self.events: list[dict[str, Any]] = []

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """The result of a command, in the open page's session; events met meanwhile are kept."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": params}
        message |= {"sessionId": self._session} if self._session and not method.startswith("Target.") else {}
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._count:
                assert "error" not in answer, (method, answer)
                return dict(answer["result"])
            self.events.append(answer)

    def open(self, page: Path, *, width: int = 1280, dark: bool = False, media: str = "screen") -> None:
        """A fresh tab with the page, its figures drawn."""
        self._session = ""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.events.clear()
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=1600, deviceScaleFactor=1, mobile=False)
        self.media(media, dark)
        self.call("Page.navigate", url=page.as_uri())
        self.wait(READY)

    def media(self, media: str, dark: bool) -> None:
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", media=media, features=[scheme])

    def run(self, script: str) -> Any:
        """The value of an expression in the page."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait(self, condition: str) -> None:
        end = time.monotonic() + 40
        while not self.run(f"Boolean({condition})"):
            assert time.monotonic() < end, condition
            time.sleep(0.03)

    def settle(self) -> None:
        """Two frames: what an event changed is drawn."""
        self.run(
            "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done, 30))))"
        )

    def press(self, key: str, code: int) -> None:
        text = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **text)
        self.settle()

    def mouse(self, kind: str, x: float, y: float) -> None:
        clicks = {} if kind == "mouseMoved" else {"button": "left", "clickCount": 1}
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **clicks)

    def complaints(self) -> list[Any]:
        """Console messages, uncaught errors, log entries, and requests for anything but the page itself."""
        self.settle()
        kinds = {"Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"}
        asked = [e["params"]["request"]["url"] for e in self.events if e.get("method") == "Network.requestWillBeSent"]
        return (
            [e for e in self.events if e.get("method") in kinds]
            + [url for url in asked if not url.startswith(("file:///", "data:"))]
            + [url for url in asked if url.startswith("file:") and not url.endswith((".html", ".html#"))]
        )

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(20)
        os.close(self._write)
        os.close(self._read)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            self._rest += os.read(self._read, 1 << 20) or b"\0"
        message, _, self._rest = self._rest.partition(b"\0")
        assert message, "the browser has ended"
        return dict(json.loads(message))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        one = Browser(folder)
        yield one
        one.close()


def front(browser: Browser) -> list[str]:
    """Ids of the front's members, in order of cost."""
    return list(browser.run("data.columns.id.filter((_, i) => data.columns.letter[i])"))


# `data` is a constant of the page's module: read once more for the test.
READ = "window.data = JSON.parse(document.getElementById('data').textContent); true"


def test_hover_lights_every_front_member_everywhere(make_run: Make, browser: Browser) -> None:
    browser.open(build(make_run()))
    browser.run(READ)
    members = front(browser)
    assert len(members) == 5
    for panel in ("validation", "test"):
        for of in members:
            x, y = browser.run(f"""(() => {{
              const paths = [...document.querySelectorAll("#{panel} path[tabindex]")];
              const box = paths.find((path) => path.__data__.datum.id === "{of}").getBoundingClientRect();
              return [box.x + box.width / 2, box.y + box.height / 2];
            }})()""")
            browser.mouse("mouseMoved", x, y)
            browser.settle()
            lit = browser.run(LIT)
            assert set(lit["rows"]) == {of} and len(lit["rows"]) >= 2
            assert of in lit["rings"][0] and of in lit["rings"][1] and (of in lit["rings"][2] or of == members[0])
            assert "validation" in lit["tip"] and "fresh seeds" in lit["tip"] and "P(front)" in lit["tip"]
    browser.mouse("mouseMoved", 2, 2)
    browser.settle()
    assert browser.run(LIT)["rows"] == [] and browser.run(LIT)["tip"] == ""
    assert browser.complaints() == []


def test_the_keyboard_reaches_every_front_member_and_pins_it(make_run: Make, browser: Browser) -> None:
    browser.open(build(make_run()))
    browser.run(READ)
    members, reached, pinned = front(browser), [], {}
    for _ in range(26):
        browser.press("Tab", 9)
        lit = browser.run(LIT)
        if lit["focus"]:
            reached.append(lit["focus"])
            assert lit["focus"] in lit["rows"] and lit["focus"] in lit["rings"][0] and lit["focus"] in lit["rings"][1]
            browser.press("Enter", 13)
            pinned[lit["focus"]] = browser.run("document.querySelector('#card pre').textContent")
            assert browser.run("document.querySelector('tr.pinned').dataset.id") == lit["focus"]
    assert reached[:15] == members * 3  # in both panels and in the table
    assert len({*pinned.values()}) == len(members)
    browser.run("document.querySelector('#validation path[tabindex]').focus()")
    walked = []
    for _ in members:
        walked.append(browser.run(LIT)["focus"])
        browser.press("ArrowRight", 39)
    assert walked == members
    assert browser.complaints() == []


def test_the_copied_yaml_is_taken_by_the_training_command(make_run: Make, browser: Browser, tmp_path: Path) -> None:
    from smskd.train import main

    browser.open(build(make_run()))
    browser.run("document.addEventListener('copy', () => { window.copied = String(getSelection()); }); true")
    browser.run("document.getElementById('copy').scrollIntoView({block: 'center'})")
    x, y = browser.run(
        "(() => { const b = document.getElementById('copy').getBoundingClientRect(); return [b.x + 9, b.y + 9]; })()"
    )
    for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
        browser.mouse(kind, x, y)
    browser.wait("document.getElementById('copy').textContent === 'Copied'")
    text = browser.run("window.copied")
    assert yaml.safe_load(text)["recipe"].startswith("rkd>kd>fitnets ")
    file = tmp_path / "copied.yaml"
    file.write_text(text)
    # what comes after the settings were understood: a folder that isn't there, named
    assert main([f"recipe={file}", "data_dir=/nowhere/at/all", "data=folder"]) == 2


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("dark", [False, True])
def test_widths_and_themes(make_run: Make, browser: Browser, width: int, dark: bool) -> None:
    browser.open(build(make_run()), width=width, dark=dark)
    assert browser.run("[document.documentElement.scrollWidth, innerWidth]") == [width, width]
    for name in FIGURES:
        left, right, height = browser.run(f"""(() => {{
          const box = document.querySelector("#{name} svg").getBoundingClientRect();
          return [box.left, box.right, box.height];
        }})()""")
        assert 0 <= left < right <= width and height > 150, name
        # nothing that is drawn is cut off by the window
        edges = browser.run(f"""[...document.querySelectorAll("#{name} svg text")]
          .map((text) => text.getBoundingClientRect()).flatMap((box) => [box.left, box.right])""")
        assert min(edges) >= -1 and max(edges) <= width + 1, name
    tops = browser.run("""["gains", "hypervolume", "importance"]
      .map((id) => Math.round(document.getElementById(id).closest("figure").getBoundingClientRect().top))""")
    assert (len(set(tops)) == 1) == (width == 1280)  # side by side, or stacked
    pages = {False: "rgb(255, 255, 255)", True: "rgb(20, 23, 28)"}
    stage_1 = {False: "rgb(163, 203, 240)", True: "rgb(56, 98, 143)"}
    background = "getComputedStyle(document.body).backgroundColor"
    fill = "getComputedStyle(document.querySelector('#validation path[tabindex]')).fill"
    assert (browser.run(background), browser.run(fill)) == (pages[dark], stage_1[dark])
    browser.run("document.getElementById('theme').click()")
    assert (browser.run(background), browser.run(fill)) == (pages[not dark], stage_1[not dark])
    assert browser.complaints() == []


def test_print_is_light_and_whole(make_run: Make, browser: Browser) -> None:
    browser.open(build(make_run()), dark=True)
    browser.media("print", True)
    browser.settle()
    assert browser.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    hidden = "[...document.querySelectorAll('#theme, #copy, #costs button')].every((b) => !b.getClientRects().length)"
    assert browser.run(hidden)
    cut = """[...document.querySelectorAll("section, figure, .scroll")]
      .filter((e) => e.scrollHeight > e.clientHeight + 2 && getComputedStyle(e).overflow === "hidden").length"""
    assert browser.run(cut) == 0
    made = base64.b64decode(browser.call("Page.printToPDF", printBackground=True)["data"])
    assert made.startswith(b"%PDF-") and made.count(b"/Type /Page\n") + made.count(b"/Type /Page ") >= 2


def test_the_cost_axis_switches(make_run: Make, browser: Browser) -> None:
    browser.open(build(make_run()))
    titles = "[...document.querySelectorAll('#validation text')].map((t) => t.textContent)"
    assert "← training cost, GFLOP per student (log scale)" in browser.run(titles)
    browser.run("document.querySelector('[data-cost=seconds]').click()")
    browser.wait(f"{titles}.includes('← training time, device s per student (log scale)')")
    browser.wait("document.querySelectorAll('#test path[tabindex]').length === 5")
    assert not browser.run("document.getElementById('other').hidden")
    assert browser.complaints() == []


def test_hostile_names_stay_text(make_run: Make, browser: Browser) -> None:
    evil = "kd</script><script>document.body.dataset.evil = 1</script><img src=x onerror=console.log(1)>"
    run = make_run(recipes=[KD, KD | {"methods": evil}, KD | {"methods": f"kd>{evil}"}], seeds=2, confirm=2)
    browser.open(build(run))
    assert "<img src=x" in browser.run("document.querySelector('main').textContent")
    browser.run("""document.querySelectorAll("#validation path[tabindex]").forEach((path) => {
      path.focus();
      path.dispatchEvent(new KeyboardEvent("keydown", { key: "Enter", bubbles: true }));
    })""")
    assert browser.run("[document.body.dataset.evil ?? '', document.images.length]") == ["", 0]
    assert browser.complaints() == []


def level(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        row["train_flops"] = 1e10


def fail(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        row.update(status="failed", val_accuracy=None, error="NaN loss")


@pytest.mark.parametrize(
    ("kind", "drawn"),
    [
        ({"recipes": [KD], "seeds": 1, "confirm": 0}, ["validation", "hypervolume"]),
        ({"seeds": 1, "confirm": 1}, FIGURES),
        ({"change": level}, FIGURES),
        (
            {"recipes": [KD | {"methods": "kd>rkd"}, KD | {"methods": "rkd>kd"}]},
            ["validation", "test", "hypervolume", "importance"],
        ),
        ({"limits": {"params": 1, "latency_ms": None, "flops": None}, "confirm": 0}, ["validation", "importance"]),
        ({"objectives": ["error", "flops", "seconds"], "finished": None}, FIGURES),
        ({"change": fail, "finished": None}, []),
        ({"recipes": [], "finished": None}, []),
    ],
    ids=["one recipe", "one seed", "equal cost", "no baseline", "no front", "three objectives", "failures", "nothing"],
)
def test_every_state_of_a_run_is_shown_without_a_word(
    make_run: Make, browser: Browser, kind: dict[str, Any], drawn: list[str]
) -> None:
    browser.open(build(make_run(**kind)))
    found = browser.run("""[...document.querySelectorAll(".figure")]
      .filter((figure) => figure.querySelector("svg")).map((figure) => figure.id)""")
    assert found == drawn
    assert browser.run("document.querySelectorAll('.figure:empty').length") == 0
    assert browser.complaints() == []


def test_two_thousand_recipes_are_drawn_in_seconds(make_run: Make, browser: Browser) -> None:
    recipes = [KD, *(KD | {"methods": "kd>rkd", "lambda_base": 0.1 + k / 2000} for k in range(2000))]
    page = build(make_run(recipes=recipes))
    start = time.monotonic()
    browser.open(page)
    assert time.monotonic() - start < 20  # two seconds on an idle core
    took = browser.run("""(async () => {
      const start = performance.now();
      document.querySelector("#validation path[tabindex]").focus();
      await new Promise((done) => requestAnimationFrame(() => setTimeout(done, 0)));
      return performance.now() - start;
    })()""")
    assert took < 1500 and browser.complaints() == []
