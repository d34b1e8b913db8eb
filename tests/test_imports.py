"""Who may import whom: layers and no circles; late and type-checking imports count as any other."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# From the ground up: a file imports from its own layer and from those before it.
LAYERS = [
    [
        "_version",
        "callback",
        "collective",
        "grad_mode",
        "graph",
        "metrics",
        "randomness",
        "settings",
        "sharded_modules",
        "shards",
        "shard_sums",
        "text",
    ],
    ["extras", "files", "reading", "validation"],
    ["lock"],
    ["_extension", "checkpoint", "loggers", "progress", "reference", "schemas", "tensor_file"],
    ["backends", "triton"],
    ["ops"],
    ["nn.inference"],
    ["nn.tasks"],
    ["nn.following"],
    ["nn.hat", "nn.importance", "nn.piggyback"],
    ["nn", "nn.plain"],
    ["export", "importance", "masks", "methods", "optim"],
    ["models", "scenarios"],
    ["problems"],
    ["report"],
    ["training"],
    [""],  # maskcl itself, the face of all that is below
    ["bench"],
    ["cli", "compat", "info", "integrations", "reproduce"],
    ["__main__"],
]
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}


def modules(folder: str) -> dict[str, Path]:
    """Dotted names and files of a package."""
    found = {}
    for path in sorted((ROOT / folder).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def targets(tree: ast.AST, module: str, known: dict[str, Path]) -> Iterator[tuple[str, int]]:
    """Modules that a file imports anywhere in it, and in which line."""
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno}: a relative import"
            below = [f"{node.module}.{alias.name}" for alias in node.names]
            # What is no module is a name that the package's __init__ gives.
            names = [name if name in known else str(node.module) for name in below]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            text = ast.unparse(node.args[0]).replace("{__name__}", module)
            # Of a name made up at run time, what stands before the part that varies.
            names = [m[0].rstrip(".") for m in re.finditer(r"maskcl[\w.]*", text)][:1]
        for name in names:
            if name in known and name != module:
                yield name, node.lineno


@pytest.fixture(scope="module")
def imports() -> dict[str, dict[str, int]]:
    """For each file of package, tests and benchmarks the modules it imports, with the line."""
    known = modules("maskcl") | modules("tests") | modules("benchmarks")
    return {
        module: dict(targets(ast.parse(path.read_text()), module, known))
        for module, path in known.items()
    }


def circles(arrows: dict[str, set[str]]) -> list[str]:
    """Nodes on circles (and on ways from one circle to another)."""
    rest = {node: set(ends) for node, ends in arrows.items()}
    while True:
        entered = set().union(*rest.values()) if rest else set()
        outer = [n for n, ends in rest.items() if n not in entered or not ends & rest.keys()]
        if not outer:
            return sorted(rest)
        for node in outer:
            del rest[node]


def room_of(module: str) -> str:
    """The room that a module of the package lies in, a key of LEVEL."""
    parts = module.split(".")[1:]
    for size in (2, 1):
        if (room := ".".join(parts[:size])) in LEVEL and parts[:size]:
            return room
    return ""


def test_no_files_import_each_other_in_a_circle(imports) -> None:
    assert circles({module: set(found) for module, found in imports.items()}) == []


def test_no_rooms_import_each_other_in_a_circle(imports) -> None:
    arrows: dict[str, set[str]] = {}
    for module, found in imports.items():
        if module.startswith("maskcl"):
            arrows.setdefault(room_of(module), set()).update(map(room_of, found))
    assert circles({room: ends - {room} for room, ends in arrows.items()}) == []


def test_every_file_lies_in_a_layer_and_imports_no_higher_one(imports) -> None:
    wrong = []
    for module, found in imports.items():
        if not module.startswith("maskcl"):
            continue
        assert module == "maskcl" or room_of(module), f"{module} is in no layer of LAYERS"
        for target, line in found.items():
            if not target.startswith("maskcl") or LEVEL[room_of(target)] > LEVEL[room_of(module)]:
                wrong.append(f"{module}:{line} imports {target}")
    assert wrong == []


def test_nothing_imports_the_surfaces_of_other_projects(imports) -> None:
    users = {
        module
        for module, found in imports.items()
        if module.startswith("maskcl")
        and not module.startswith("maskcl.compat")
        and any(target.startswith("maskcl.compat") for target in found)
    }
    assert users == set()


def test_layers_name_nothing_that_is_not_there(imports) -> None:
    assert {f"maskcl.{room}".rstrip(".") for room in LEVEL} <= set(imports)


def test_a_circle_and_a_late_import_are_seen() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set()}) == ["b", "c"]
    assert circles({"a": {"b"}, "b": {"c"}, "c": set()}) == []
    known = dict.fromkeys(("maskcl.a", "maskcl.b", "maskcl.c", "maskcl.d"), ROOT)
    code = """
if TYPE_CHECKING:
    from maskcl.a import X
def f():
    from maskcl import b
    importlib.import_module(f"maskcl.c.{stem}")
    importlib.import_module(f"{__name__}.d")
"""
    found = dict(targets(ast.parse(code), "maskcl", known))
    assert set(found) == {"maskcl.a", "maskcl.b", "maskcl.c", "maskcl.d"}
