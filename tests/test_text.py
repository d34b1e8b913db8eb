"""What comes from a file is shown, and does nothing."""

from __future__ import annotations

import errno
import os

import pytest

from maskcl.report.text import grid
from maskcl.text import printable, sentence_of, shown


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("fc1.weight", "fc1.weight"),
        ("grüße 数字 C:\\x", "grüße 数字 C:\\x"),
        ("\x1b[31mred\x1b]0;title\x07", "\\x1b[31mred\\x1b]0;title\\x07"),
        ("two\nlines\r\tand \u2028", "two\\nlines\\r\\tand \\u2028"),
        ("\u202edcba\u2066", "\\u202edcba\\u2066"),
        ("\x9b1m", "\\x9b1m"),
        (os.fsdecode(b"a\xff"), "a\\udcff"),
    ],
)
def test_nothing_of_a_text_acts(text, seen):
    assert printable(text) == seen
    assert seen.isprintable()
    seen.encode()  # a terminal and a page can take it
    assert printable(seen) == seen


def test_values_are_shown_as_python_writes_them_and_cut():
    assert shown("a\x1b'") == '"a\\x1b\'"'
    assert shown([1, "a"]) == "[1, 'a']"
    assert len(shown("9" * 400)) == 80
    assert shown(10**5000) == "a very large int"
    nested: list = []
    for _ in range(100_000):
        nested = [nested]
    assert shown(nested) == "a very large list"
    while nested:  # a list so deep is taken apart by hand
        nested = nested.pop()


def test_errors_are_one_line_with_file_and_reason():
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a\n\x1bb")
    assert sentence_of(full) == "a\\n\\x1bb: no space left on device"
    assert sentence_of(OSError(errno.EIO, "Input/output error")) == "input/output error"
    assert sentence_of(ValueError("one\n  two \x1b")) == "one two \\x1b"
    assert sentence_of(KeyboardInterrupt()) == "KeyboardInterrupt"


def test_cells_of_a_table_are_printable():
    assert grid([["a\x1b[1m\n", "b"]]) == "a\\x1b[1m\\n  b"
