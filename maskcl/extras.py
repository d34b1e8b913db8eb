"""How to get what only some of maskcl needs: the extras of pyproject.toml."""

from __future__ import annotations

__all__ = ["install"]


def install(extra: str) -> str:
    """What a sentence about a missing package ends in: the command that brings it.

    Args:
        extra: a name under ``[project.optional-dependencies]``.
    """
    return f"pip install '.[{extra}]' in maskcl's sources"
