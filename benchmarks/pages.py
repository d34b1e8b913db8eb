"""Tables that are made, not written, in pages of docs."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).resolve().parents[1] / "docs" / "gpu-model.md"


def _part(name: str) -> re.Pattern[str]:
    return re.compile(rf"(?<=<!-- {name} -->\n).*?(?=<!-- end of {name} -->)", re.DOTALL)


def replace_part(name: str, text: str, path: Path = PAGE) -> None:
    """Put ``text`` between the page's comments ``name`` and ``end of name``."""
    page = path.read_text()
    assert _part(name).search(page), f"{path.name} has no part {name!r}"
    path.write_text(_part(name).sub(lambda _: f"\n{text}\n\n", page))


def part(name: str, path: Path = PAGE) -> str:
    """What the page has there."""
    found = _part(name).search(path.read_text())
    assert found, f"{path.name} has no part {name!r}"
    return found[0].strip()
