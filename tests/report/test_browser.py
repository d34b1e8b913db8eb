"""Every kind of page in a real browser: never wider than the window, light or dark."""

import json
import re
import shutil
import subprocess

import pytest

from maskcl import report
from maskcl.report.comparison_page import write_comparison
from maskcl.report.groups import read_runs
from maskcl.report.theme import COLORS
from tests.report.results import hat_result, in_training, mas_result, piggyback_result

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH")

LONG = {f"backbone.stages.{i}.blocks.{i}.attention.{'x' * 60}": 1000 + i for i in range(30)}

# A window is at least 500 pixels wide: a frame is as narrow as it is asked to be.
FRAME = """<body style="margin:0"><script>
const frame = document.createElement("iframe");
frame.style = "border:0;height:900px;width:WIDTHpx";
frame.onload = () => {
  const page = frame.contentDocument, root = page.documentElement;
  page.querySelectorAll("details").forEach((d) => (d.open = true));
  const wide = [...page.querySelectorAll("section, .card, h1, h2, p, dd")];
  document.body.dataset.told = JSON.stringify({
    window: root.clientWidth, page: root.scrollWidth,
    out: wide.filter((e) => e.getBoundingClientRect().right > root.clientWidth + 0.5).length,
    back: frame.contentWindow.getComputedStyle(page.body).backgroundColor,
    ink: frame.contentWindow.getComputedStyle(page.querySelector("svg text")).fill,
  });
};
frame.src = "PAGE";
document.body.append(frame);
</script></body>"""


def told_by_browser(page, width, *, dark=False):
    """What the frame's script found of a page in a frame of this width."""
    frame = page.with_name(f"frame-{width}.html")
    frame.write_text(FRAME.replace("WIDTH", str(width)).replace("PAGE", page.name))
    done = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
         "--allow-file-access-from-files", f"--user-data-dir={page.parent / 'profile'}",
         "--window-size=1400,900", f"--blink-settings=preferredColorScheme={0 if dark else 1}",
         "--virtual-time-budget=5000", "--dump-dom", frame.as_uri()],
        capture_output=True, text=True, timeout=100, check=True,
    )  # fmt: skip
    found = re.search(r'data-told="([^"]*)"', done.stdout)
    assert found, done.stderr[-500:]
    return json.loads(found[1].replace("&quot;", '"'))


def made(kind, folder):
    """A page of a kind."""
    if kind == "compared":
        results = [hat_result(), hat_result(seed=1), mas_result(), piggyback_result()]
        for index, result in enumerate(results):
            (folder / f"run-{index}").mkdir()
            report.write_result(result, folder / f"run-{index}")
        return write_comparison(read_runs(sorted(folder.glob("run-*"))), folder / "out")
    result = {
        "hat": lambda: hat_result(20),
        "piggyback": lambda: piggyback_result(5, sizes=LONG),
        "mas": lambda: mas_result(60),
        "training": lambda: in_training(4, 2),
    }[kind]()
    result["configuration"]["out"] = "/a/very/long/name/" * 20
    return report.write_report(result, folder)


@pytest.mark.parametrize("kind", ["hat", "piggyback", "mas", "training", "compared"])
def test_a_page_does_not_scroll_sideways_narrow_and_wide(tmp_path, kind):
    page = made(kind, tmp_path)
    for width in (390, 1280):
        told = told_by_browser(page, width)
        assert told["window"] == width
        assert told["page"] <= width
        assert told["out"] == 0


def test_page_and_pictures_follow_light_and_dark(tmp_path):
    page = made("hat", tmp_path)
    for dark in (False, True):
        told = told_by_browser(page, 800, dark=dark)
        for part, name in (("back", "back"), ("ink", "ink")):
            color = COLORS[name][dark]
            wanted = tuple(int(color[i : i + 2], 16) for i in (1, 3, 5))
            found = tuple(map(int, re.findall(r"\d+", told[part])))
            if part == "back":
                assert found == wanted
            else:  # a tick's or a label's
                muted = tuple(int(COLORS["muted"][dark][i : i + 2], 16) for i in (1, 3, 5))
                assert found in (wanted, muted)
