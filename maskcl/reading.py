"""The one reader of files: whatever is wrong with one becomes a sentence that names it."""

from __future__ import annotations

import json
import os
from typing import Any

from maskcl.text import printable, sentence_of, shown

# A result.json of a long run has some MB: what is larger is something else, or without an end.
_MOST_BYTES = 1 << 28
_MOST_YAML = 1 << 20


class ReadError(ValueError):
    """A file that cannot be used; the message is one sentence that begins with its name."""


class MissingError(ReadError):
    """There is no such file."""


def read_text(path: str | os.PathLike[str], *, most: int = _MOST_BYTES) -> str:
    """A text file, UTF-8.

    Args:
        path: the file.
        most: bytes that it may have.

    Raises:
        ReadError: it is missing, a folder, unreadable, too large or no text.
    """
    name = printable(os.fspath(path))
    try:
        with open(path, "rb") as file:
            data = file.read(most + 1)
    except (FileNotFoundError, NotADirectoryError):
        raise MissingError(f"{name} does not exist") from None
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL byte
        reason = getattr(error, "strerror", None) or sentence_of(error)
        raise ReadError(f"{name} cannot be read: {reason.lower()}") from None
    if len(data) > most:
        raise ReadError(f"{name} cannot be read: it has more than {most:,} bytes")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ReadError(f"{name} cannot be read: byte {error.start} is not UTF-8 text") from None


def read_json(path: str | os.PathLike[str]) -> Any:
    """What a JSON file holds.

    Raises:
        ReadError: as `read_text`, or as `parse_json`.
    """
    return parse_json(read_text(path), printable(os.fspath(path)))


def parse_json(text: str | bytes, where: str, *, nan: bool = False) -> Any:
    """What JSON text holds.

    Args:
        text: UTF-8.
        where: what it is of, for errors.
        nan: whether NaN and infinities, which Python writes and JSON does not know, are values.

    Raises:
        ReadError: it is no JSON, has a key twice, is nested too deeply, or has a number that no
            computer reads.
    """
    try:
        return json.loads(
            text, object_pairs_hook=_unique, parse_constant=None if nan else _refuse_constant
        )
    except RecursionError:
        raise ReadError(f"{where} cannot be read: it is nested too deeply") from None
    except ValueError as error:
        reason = sentence_of(error)
        if "Exceeds the limit" in reason:
            reason = "it has a number of thousands of digits"
        raise ReadError(f"{where} cannot be read: {reason}") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {shown(twice)} is there twice")
    return found


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def read_yaml(path: str | os.PathLike[str]) -> Any:
    """What a YAML file of plain values holds: no tags, no anchors; dates are text.

    Raises:
        ReadError: as `read_text`; it is no such YAML, has a key twice or is nested too deeply.
    """
    import yaml

    name = printable(os.fspath(path))
    text = read_text(path, most=_MOST_YAML)
    try:
        return yaml.load(text, _plain_loader())
    except RecursionError:
        raise ReadError(f"{name} cannot be read: it is nested too deeply") from None
    except yaml.YAMLError as error:
        raise ReadError(f"{name} is not YAML: {sentence_of(error)}") from None
    except (ValueError, TypeError, OverflowError) as error:
        raise ReadError(f"{name} is not YAML: {sentence_of(error)}") from None


def _plain_loader() -> Any:
    """PyYAML's safe loader without what a file of options has no use for."""
    import yaml

    class Plain(yaml.SafeLoader):
        # Which scalars are what, by their first character; dates stay text.
        yaml_implicit_resolvers = {  # noqa: RUF012 (as PyYAML has it)
            first: [(tag, form) for tag, form in found if not tag.endswith(":timestamp")]
            for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
        }

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                event = self.peek_event()
                raise yaml.composer.ComposerError(
                    None, None, "aliases (*name) are not read", event.start_mark
                )
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            twice = [key for key in keys if keys.count(key) > 1]
            if twice:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {shown(twice[0])} is there twice", node.start_mark
                )
            return super().construct_mapping(node, deep)

    return Plain
