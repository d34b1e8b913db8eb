"""Concepts, tutorials, how-tos and the glossary: their code runs and prints what they show."""

import contextlib
import importlib.util
import io
import math
import re
import shlex
import subprocess
import sys
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
FOLDERS = ("concepts", "tutorials", "how-to")
PAGES = [DOCS / "glossary.md", *sorted(p for f in FOLDERS for p in (DOCS / f).glob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]*))?\)")
NAMES = [str(page.relative_to(DOCS)) for page in PAGES]


class Shown(NamedTuple):
    """What a page shows below its code, and what the code printed; where it is on the page."""

    shown: str
    printed: str
    span: tuple[int, int]


def run_page(text: str, folder: Path) -> list[Shown]:
    """Run a page's blocks in order, in one namespace and one folder.

    ``python`` is run, or written to the file that its first line names (``# train.py``). ``diff``
    is run as it is when the change is made. In ``console`` lines after ``$ `` are run; what is
    below them is what they print. ``text`` right behind code is what that printed. All else is
    there to be read.
    """
    names: dict[str, object] = {"__name__": "page"}
    found: list[Shown] = []
    printed: str | None = None
    for fence in FENCE.finditer(text):
        language, code = fence[1], fence[2]
        if language == "text" and printed is not None:
            found.append(Shown(code, printed, fence.span(2)))
        elif language == "python" and (named := re.match(r"# ([\w-]+\.py)\n", code)):
            (folder / named[1]).write_text(code)
        elif language in ("python", "diff"):
            code = after(code) if language == "diff" else code
            line = text.count("\n", 0, fence.start(2))  # so that a traceback has the page's lines
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                exec(compile("\n" * line + code, "page", "exec"), names)
            printed = out.getvalue()
            continue
        elif language == "console":
            lines = [part[2:] for part in code.splitlines() if part.startswith("$ ")]
            printed = "".join(command(line, folder) for line in lines)
            shown = "".join(f"{part}\n" for part in code.splitlines() if not part.startswith("$ "))
            if shown:
                found.append(Shown(shown, printed, fence.span(2)))
            continue
        printed = None
    return found


def after(diff: str) -> str:
    """The lines that a change leaves."""
    return "".join(f"{line[2:]}\n" for line in diff.splitlines() if not line.startswith("-"))


def command(line: str, folder: Path) -> str:
    """What a command prints; maskcl's own runs in this process."""
    word, *rest = shlex.split(line)
    if word == "maskcl":
        from maskcl import cli

        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            assert cli.main(rest) == 0, line
        return out.getvalue()
    started = {"python": [], "torchrun": ["-m", "torch.distributed.run"]}[word]
    done = subprocess.run(
        [sys.executable, *started, *rest], cwd=folder, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def alike(shown: str, printed: str) -> bool:
    """Whether the words are the same: numbers with a point to within 0.08, or 8 % of them.

    Such numbers are scores and losses, which another machine's sums round otherwise.
    """
    pairs = zip_longest(shown.split(), printed.split(), fillvalue="")
    return all(same_word(*pair) for pair in pairs)


def same_word(shown: str, printed: str) -> bool:
    number = re.compile(r"-?\d+\.\d*(?:e-?\d+)?")
    if number.sub("#", shown) != number.sub("#", printed):
        return False
    pairs = zip(number.findall(shown), number.findall(printed), strict=True)
    return all(math.isclose(float(a), float(b), abs_tol=0.08, rel_tol=0.08) for a, b in pairs)


def needed(text: str) -> set[str]:
    """Modules that a page's code imports, and those behind what it calls of maskcl."""
    code = "".join(f[2] for f in FENCE.finditer(text) if f[1] in ("python", "diff", "console"))
    found = set(re.findall(r"^\+? *(?:from|import) (\w+)", code, re.MULTILINE))
    behind = {
        "Trainer(": ("lightning_fabric", "torchmetrics"),
        "scenarios.load(": ("sklearn",),
        ".report(": ("matplotlib",),
        "$ maskcl": ("typer", "sklearn", "matplotlib"),
        "onnx": ("onnx", "onnxscript"),
        "build_graph": ("torch_geometric",),
        "compat.begin": ("torch_geometric",),
        "masks.export": ("safetensors",),
    }
    for words, modules in behind.items():
        found |= set(modules) if words in code else set()
    return found


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_a_page_runs_and_prints_what_it_shows(page, tmp_path, monkeypatch):
    text = page.read_text()
    for name in sorted(needed(text)):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"the page's code needs {name}, which is not installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for part in run_page(text, tmp_path):
            assert alike(part.shown, part.printed), f"shown:\n{part.shown}printed:\n{part.printed}"


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_to_files_and_their_headings(page):
    for target, heading in LINK.findall(FENCE.sub("", page.read_text())):
        path = (page.parent / target).resolve() if target else page
        assert path.is_file() and path.is_relative_to(DOCS), target
        if heading:
            titles = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
            assert heading in map(anchor, titles), f"{target}#{heading}"


def anchor(title: str) -> str:
    """What GitHub and mkdocs call a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-")


def test_the_pictures_are_what_their_script_draws(tmp_path):
    spec = importlib.util.spec_from_file_location("draw", DOCS / "pictures" / "draw.py")
    draw = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(draw)
    draw.main(tmp_path)
    drawn = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert drawn == {path.name: path.read_text() for path in (DOCS / "pictures").glob("*.svg")}


def test_an_output_that_differs_is_seen():
    assert alike("task 1: 0.95\n", "task 1:  0.97")
    assert not alike("task 1: 0.95\n", "task 1: 0.5\n")
    assert not alike("task 1: 0.95\n", "task 2: 0.95\n")
    assert not alike("one\n", "one two\n")


def test_a_change_is_run_as_it_is_when_it_is_made():
    assert after("- import hat\n+ import maskcl\n  x = 1\n") == "import maskcl\nx = 1\n"
