"""Text from files and from errors, made fit for a person to see."""

from __future__ import annotations

_LONGEST = 80


def printable(value: object) -> str:
    r"""One line of text in which nothing acts on what shows it: a terminal, a log, a page.

    Control characters, escape sequences, line breaks, marks of writing direction and broken
    characters stand as in Python's source, ``\x1b`` or ``\u202e``; what can be seen stays. Use it
    for all that comes from a file or its name; HTML and markup are escaped beside it.
    """
    text = str(value)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def shown(value: object) -> str:
    """A value as it would be written in Python, printable and cut where it is long."""
    try:
        text = printable(repr(value))
    except (ValueError, RecursionError):  # an integer of thousands of digits, lists in lists
        return f"a very large {type(value).__name__}"
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 4]} ..."


def sentence_of(error: BaseException) -> str:
    """What an error says, in one printable line; of an OSError the file and the reason."""
    if isinstance(error, OSError) and error.strerror:
        reason = error.strerror[0].lower() + error.strerror[1:]
        return reason if error.filename is None else f"{printable(error.filename)}: {reason}"
    text = " ".join(str(error).split()) or type(error).__name__
    return printable(text)
