"""The page in headless Chromium, at the width of a phone and of a desk, light and dark."""

import functools
import http.server
import json
import re
import subprocess
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

import pytest

import edgekit
from edgekit.devices.browser import _program
from tests.reports.bundles import make_bundle
from tests.reports.test_page import HOSTILE, LABELS

WIDTHS = (390, 1280)

# Frames have the widths that they are given, whatever the least width of a window is.
FRAMES = """<!doctype html><pre id="found"></pre>
<iframe width="390" height="800" src="report.html"></iframe>
<iframe width="1280" height="800" src="report.html"></iframe>
<script>
addEventListener("load", () => {
  const found = [...document.querySelectorAll("iframe")].map((frame) => {
    const page = frame.contentDocument, view = frame.contentWindow;
    const root = page.documentElement;
    const wide = [...page.querySelectorAll("body *")].filter((each) =>
      !each.closest(".scroll, svg, .quote")
      && each.getBoundingClientRect().right > view.innerWidth + 1);
    const table = page.querySelector("#size table");
    const number = (row) => Number(row.cells[4].dataset.sort);
    const numbers = () => [...table.tBodies[0].rows].map(number);
    table.tHead.rows[0].cells[4].querySelector("button").click();
    const falling = numbers();
    table.tHead.rows[0].cells[4].querySelector("button").click();
    return {
      inner: view.innerWidth, scroll: root.scrollWidth,
      wide: wide.map((each) => each.tagName + "." + each.className).slice(0, 5),
      background: view.getComputedStyle(page.body).backgroundColor,
      ink: view.getComputedStyle(page.body).color,
      scripts: page.scripts.length, pictures: page.querySelectorAll("svg.chart").length,
      images: page.images.length, text: page.body.innerText, falling, rising: numbers(),
      painted: view.getComputedStyle(page.querySelector("svg.chart text")).fill,
    };
  });
  document.getElementById("found").textContent = encodeURIComponent(JSON.stringify(found));
});
</script>"""


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("served")
    dist = tmp_path_factory.mktemp("dist")
    first = make_bundle(dist / "linux-x86_64").folder
    second = make_bundle(
        dist / "hostile",
        target=HOSTILE[1],
        labels=(*HOSTILE, *LABELS),
        texts=HOSTILE,
        model=HOSTILE[0] + HOSTILE[3],
        layer=HOSTILE[3],
        lineage=HOSTILE,
    ).folder
    edgekit.report([first, second], output=folder / "report.html")
    (folder / "frames.html").write_text(FRAMES)
    handler = functools.partial(_Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/frames.html"
        server.shutdown()


@pytest.fixture(scope="module", params=["light", "dark"])
def opened(
    served: str, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, list[dict[str, Any]], str]:
    """The scheme, what both frames show, and what Chromium said."""
    program = _program()
    if program is None:
        pytest.skip("no Chromium here")
    command = [
        program,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--disable-background-networking",
        "--enable-logging=stderr",
        f"--user-data-dir={tmp_path_factory.mktemp('profile')}",
        f"--blink-settings=preferredColorScheme={0 if request.param == 'dark' else 1}",
        "--virtual-time-budget=20000",
        "--dump-dom",
        served,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    match = re.search(r'<pre id="found">([^<]+)</pre>', done.stdout)
    assert match, done.stderr[-2000:]
    return request.param, json.loads(unquote(match.group(1))), done.stderr


@pytest.mark.slow
def test_nothing_overflows_and_nothing_errs(
    opened: tuple[str, list[dict[str, Any]], str],
) -> None:
    scheme, frames, said = opened
    assert [frame["inner"] for frame in frames] == list(WIDTHS)
    for frame in frames:
        assert frame["scroll"] <= frame["inner"]
        assert frame["wide"] == []
        assert frame["scripts"] == 1 and frame["images"] == 0 and frame["pictures"] >= 5
    assert [line for line in said.splitlines() if "CONSOLE" in line] == []
    dark = [sum(map(int, re.findall(r"\d+", frame["background"])[:3])) < 200 for frame in frames]
    assert dark == [scheme == "dark"] * 2
    inks = [sum(map(int, re.findall(r"\d+", frame["painted"])[:3])) > 380 for frame in frames]
    assert inks == [scheme == "dark"] * 2


@pytest.mark.slow
def test_hostile_text_is_shown_as_it_is(opened: tuple[str, list[dict[str, Any]], str]) -> None:
    _, frames, _ = opened
    for frame in frames:
        for words in (HOSTILE[0], HOSTILE[1], "{{ 7 * 7 }}", "שלום עולם"):
            assert words in frame["text"]


@pytest.mark.slow
def test_tables_sort_by_their_numbers(opened: tuple[str, list[dict[str, Any]], str]) -> None:
    _, frames, _ = opened
    for frame in frames:
        assert len(frame["falling"]) > 5
        assert frame["falling"] == sorted(frame["falling"], reverse=True)
        assert frame["rising"] == sorted(frame["falling"])
