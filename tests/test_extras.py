"""Whatever tells a person to install something names what there is to install."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from maskcl.extras import install

ROOT = Path(__file__).resolve().parent.parent
PROJECT = (ROOT / "pyproject.toml").read_text()
EXTRAS = set(
    re.findall(
        r"^([\w-]+) = \[", PROJECT.split("[project.optional-dependencies]")[1].split("\n[")[0], re.M
    )
)
FOLDERS = ("maskcl", "docs", "examples", "benchmarks", "tests", "packaging", ".github")
FILES = [
    path
    for place in (*(ROOT / name for name in FOLDERS), ROOT)
    for path in sorted(place.glob("*" if place == ROOT else "**/*"))
    if path.suffix in (".py", ".md", ".yml", ".toml") and path != Path(__file__).resolve()
]


def commands(text: str) -> Iterator[str]:
    """What follows each ``pip install`` and its options, to the end of the line."""
    for found in re.finditer(r"pip install (?:-\S+ )*(\S.*)", text):
        yield found[1]


@pytest.mark.parametrize("extra", sorted(EXTRAS))
def test_the_command_for_an_extra_is_one_that_works_in_the_sources(extra: str) -> None:
    assert next(commands(install(extra))).startswith(f"'.[{extra}]'")


def test_sentences_in_the_code_name_extras_that_exist() -> None:
    asked = set()
    for path in sorted((ROOT / "maskcl").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "install":
                asked.add(ast.literal_eval(node.args[0]))
    assert {"train", "graph", "vision", "export"} <= asked <= EXTRAS


def test_no_text_tells_to_install_from_an_index_that_has_no_maskcl() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}: pip install {words}"
        for path in FILES
        for words in commands(path.read_text())
        if re.match(r"['\"]?maskcl(?![\w./-])", words)
    ]
    assert wrong == []


def test_no_text_names_an_extra_that_does_not_exist() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}: pip install {words}"
        for path in FILES
        for words in commands(path.read_text())
        for extras in re.findall(r"(?:\.|maskcl|\.whl)\[([\w,-]+)\]", words)
        if not set(extras.split(",")) <= EXTRAS
    ]
    assert wrong == []
    assert {"train", "graph", "vision", "export", "dev"} <= EXTRAS
