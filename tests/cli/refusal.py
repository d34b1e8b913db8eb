"""What a refusal looks like: exit code 2 and one sentence that a terminal can show."""

from __future__ import annotations

import pytest

from maskcl import cli


def refused(capsys: pytest.CaptureFixture[str], sentence: str, *arguments: object) -> None:
    """A command ends in one sentence that has these words."""
    capsys.readouterr()
    assert cli.main([str(part) for part in arguments]) == 2
    said = capsys.readouterr().err
    assert said.startswith("maskcl: ")
    assert said.count("\n") == 1
    assert said.strip().isprintable()
    assert sentence in said
