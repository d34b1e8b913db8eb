"""Tables that are made, not written, in docs/gpu-model.md."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).resolve().parents[1] / "docs" / "gpu-model.md"


def _part(name: str) -> re.Pattern[str]:
    return re.compile(rf"(?<=<!-- {name} -->\n).*?(?=<!-- end of {name} -->)", re.DOTALL)


def replace_part(name: str, text: str) -> None:
    """Put ``text`` between the page's comments ``name`` and ``end of name``."""
    page = PAGE.read_text()
    assert _part(name).search(page), f"{PAGE.name} has no part {name!r}"
    PAGE.write_text(_part(name).sub(lambda _: f"\n{text}\n\n", page))


def part(name: str) -> str:
    """What the page has there."""
    found = _part(name).search(PAGE.read_text())
    assert found, f"{PAGE.name} has no part {name!r}"
    return found[0].strip()
