"""The page in a real browser: figures drawn, keyboard, hover, cost switch, theme, no console message, no overflow."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reports.build import build

CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium isn't installed"),
]
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--enable-logging=stderr"),
    *("--v=0", "--virtual-time-budget=10000", "--dump-dom"),
]
PROBE = """<script type="module">
const out = { errors: [] };
const wait = (ms) => new Promise((done) => setTimeout(done, ms));
const $ = (selector) => [...document.querySelectorAll(selector)];
const isRing = (path) => path.getAttribute("stroke") === "var(--front)" && !path.closest(".mark-line");
const rings = (id) => $(`#${id} path`).filter(isRing).length;
for (let i = 0; i < 300 && !document.documentElement.dataset.ready; i++) await wait(20);
out.width = [document.documentElement.scrollWidth, innerWidth];
out.svgs = $(".figure svg").length;
out.marks = Object.fromEntries($(".figure").map((f) => [f.id, f.querySelectorAll(".mark-symbol path").length]));
out.titles = $("#validation text").map((t) => t.textContent);
out.background = getComputedStyle(document.body).backgroundColor;
const letters = $("#letters button");
out.letters = [];
letters[0]?.focus();
for (let i = 0; i < letters.length; i++) {
  const button = document.activeElement;
  await wait(40);
  const lit = { letter: button.textContent, rows: $("tr.lit").length, rings: rings("validation") };
  button.click();
  await wait(40);
  const pressed = $("#letters [aria-pressed=true]").map((b) => b.textContent).join();
  out.letters.push({ ...lit, pressed, card: $("#card h3")[0].textContent, yaml: $("#card pre")[0].textContent });
  button.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight", bubbles: true, cancelable: true }));
}
const symbol = $("#validation .mark-symbol path")[0];
if (symbol) {
  const box = symbol.getBoundingClientRect();
  const at = { bubbles: true, clientX: box.x + box.width / 2, clientY: box.y + box.height / 2 };
  for (const kind of ["pointerover", "mouseover", "pointermove", "mousemove"]) {
    symbol.dispatchEvent(new PointerEvent(kind, at));
  }
  await wait(60);
  out.tooltip = document.getElementById("vg-tooltip-element")?.textContent ?? "";
}
out.evil = [document.body.dataset.evil ?? "", $("main")[0].textContent.includes("<img src=x")];
$("[data-cost=seconds]")[0]?.click();
await wait(300);
out.switched = $("#validation text").map((t) => t.textContent);
$("#copy")[0]?.click();
await wait(100);
out.copy = $("#copy")[0]?.textContent;
$("#theme")[0].click();
out.toggled = getComputedStyle(document.body).backgroundColor;
document.body.dataset.probe = JSON.stringify(out);
parent.postMessage(JSON.stringify(out), "*");
</script></body>"""
FRAME = """<body><iframe src="probe.html" style="width: {}px; height: 1600px"></iframe>
<script>onmessage = (event) => {{ document.body.dataset.probe = event.data; }};</script></body>"""


def probe(run: Path, *, width: int = 1280, dark: bool = False) -> dict[str, Any]:
    """Open the page with the probe at its end; returns what the probe found, and the console's lines.

    Headless Chromium has no window narrower than 500 pixels: a narrow page is opened in a frame.
    """
    page = run / "probe.html"
    before, _, after = build(run).read_text(encoding="utf-8").rpartition("</body>")
    page.write_text(before + PROBE + after, encoding="utf-8")
    if width < 500:
        page = run / "frame.html"
        page.write_text(FRAME.format(width), encoding="utf-8")
    flags = [*FLAGS, f"--user-data-dir={run / 'chromium'}", "--window-size=1280,1600"]
    flags += [f"--blink-settings=preferredColorScheme={0 if dark else 1}"]
    done = subprocess.run(
        [str(CHROMIUM), *flags, page.as_uri()], capture_output=True, text=True, timeout=60, check=True
    )
    found = re.search(r'data-probe="(.*?)"', done.stdout)
    assert found, done.stderr[-2000:]
    out: dict[str, Any] = json.loads(html.unescape(found[1]))
    return out | {"console": [line for line in done.stderr.splitlines() if "CONSOLE" in line]}


def test_figures_keyboard_hover_switch_and_theme(make_run: Callable[..., Path]) -> None:
    found = probe(make_run())
    assert found["console"] == []
    assert found["svgs"] == 3 and found["marks"]["validation"] >= 45 and found["marks"]["test"] >= 5
    assert "← training cost, GFLOP per student (log scale)" in found["titles"]
    assert [entry["letter"] for entry in found["letters"]] == list("ABCDE")
    for entry in found["letters"]:
        assert entry["rows"] >= 2 and entry["rings"] >= 1
        assert entry["card"].startswith(f"{entry['letter']} · ") and entry["pressed"] == entry["letter"]
        assert entry["yaml"].startswith("recipe: ")
    assert len({entry["yaml"] for entry in found["letters"]}) == 5
    assert "validation" in found["tooltip"] and "seeds)" in found["tooltip"]
    assert "← training time, device s per student (log scale)" in found["switched"]
    assert found["copy"].startswith(("Copied", "Selected"))
    assert (found["background"], found["toggled"]) == ("rgb(255, 255, 255)", "rgb(20, 23, 28)")


def test_narrow_and_dark(make_run: Callable[..., Path]) -> None:
    found = probe(make_run(), width=390, dark=True)
    assert found["console"] == [] and found["svgs"] == 3
    assert found["width"] == [390, 390]  # nothing is wider than the window
    assert (found["background"], found["toggled"]) == ("rgb(20, 23, 28)", "rgb(255, 255, 255)")


def test_hostile_names_and_two_seeds_draw_without_a_word(make_run: Callable[..., Path]) -> None:
    evil = "kd</script><script>document.body.dataset.evil = 1</script><img src=x onerror=console.log(1)>"
    base = {"weighting": "fixed", "lambda_base": 0.5, "anchor": "reference", "teachers": 1}
    found = probe(make_run(recipes=[base | {"recipe": "kd"}, base | {"recipe": evil}], seeds=2, confirm=0))
    assert found["console"] == [] and found["marks"]["validation"] >= 2
    assert found["evil"] == ["", True]


def test_one_recipe_of_one_seed_draws_without_a_word(make_run: Callable[..., Path]) -> None:
    one = {"recipe": "kd", "weighting": "fixed", "lambda_base": 0.5, "anchor": "reference", "teachers": 1}
    found = probe(make_run(recipes=[one], seeds=1, confirm=0))
    assert found["console"] == [] and found["marks"]["validation"] >= 1 and found["letters"][0]["card"] == "A · kd"


def test_nothing_complete_shows_a_page(make_run: Callable[..., Path]) -> None:
    found = probe(make_run(recipes=[], finished=None))
    assert found["console"] == [] and found["svgs"] == 0
