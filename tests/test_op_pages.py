"""The op reference: its table is run, every op has its section, and what is generated is of now."""

import importlib.util
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from maskcl import ops

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "ops"
TEXT = (FOLDER / "index.md").read_text()
SCHEDULES = {"epoch_progress", "task_progress"}  # numbers of Python, without a line of torch


@pytest.fixture(scope="module")
def hooks():
    """docs/hooks.py, which mkdocs runs; it needs nothing that is not here."""
    spec = importlib.util.spec_from_file_location("hooks", FOLDER.parent / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def op_rows():
    found = re.findall(r"^\| `(\w+\(.*?\))` \| `(.*?)` \|$", TEXT, flags=re.MULTILINE)
    found = [(call, formula.replace("\\|", "|")) for call, formula in found]  # | ends a cell
    assert len(found) == 38
    return found


def arguments():
    generator = torch.Generator().manual_seed(0)

    def rand(*shape):
        return torch.rand(*shape, generator=generator)

    def tasks(units):
        return torch.randint(4, (units,), generator=generator)

    return {
        "torch": torch, "F": F, "e": rand(6) - 0.5, "s": 3.0, "m": rand(6), "p": 0.25,
        "s_max": 400.0, "used": torch.tensor([True, False] * 3), "x": rand(4, 6) - 0.5,
        "b": rand(6) - 0.5, "w": rand(6, 6) - 0.5, "g": rand(6, 6), "saved": rand(6, 6),
        "r": rand(6, 6) - 0.5, "q": rand(6, 6) > 0.5, "t": 0.1, "i": torch.tensor([5, 0, 2]),
        "d": rand(4, 6) - 0.5, "k": rand(6, 6),
        "u": torch.randint(-9, 9, (5,)).int(), "v": torch.randint(-9, 9, (5,)).int(),
        "out": tasks(6), "inp": tasks(6), "a": rand(6), "c": rand(6),
        "im": (rand(2, 6, 5, 5) - 0.5).contiguous(memory_format=torch.channels_last),
        "f": rand(6, 6, 3, 3) - 0.5,
    }  # fmt: skip


@pytest.mark.parametrize(("call", "formula"), op_rows())
def test_each_op_equals_the_formula_beside_it(call, formula):
    names = arguments()
    functions = {name: getattr(ops, name) for name in ops.__all__}
    expected = eval(formula, {**names, **functions})
    found = eval(call, {**names, **functions})
    if found is None:  # in place, on the first tensor
        written = re.match(r"\w+\(\[?(\w+)", call)[1]
        found = names[written]
        assert not torch.equal(found, arguments()[written])
    torch.testing.assert_close(torch.as_tensor(found), torch.as_tensor(expected))


def test_every_op_is_in_the_table():
    assert {call.partition("(")[0] for call, _ in op_rows()} == set(ops.__all__) - SCHEDULES


def sections():
    """Page, op, and the groups of cpu.csv that it names."""
    pattern = r"^::: maskcl\.ops\.(\w+)\n(?:<!-- timed: (.*) -->)?"
    pages = sorted(FOLDER.glob("*.md"))
    return [
        (p, *found) for p in pages for found in re.findall(pattern, p.read_text(), re.MULTILINE)
    ]


def test_every_op_has_one_section_on_the_page_of_its_file_and_the_index_leads_there():
    assert sorted(op for _, op, _ in sections()) == sorted(ops.__all__)
    for page, op, _ in sections():
        (row,) = [line for line in TEXT.splitlines() if line.startswith(f"| [{page.stem}]")]
        assert f"`{op}`" in row


def test_stems_have_pages_of_their_names():
    from maskcl.schemas import SIGNATURES

    assert {path.stem for path in FOLDER.glob("*.md")} == {"index", *SIGNATURES}


@pytest.mark.parametrize("op", ops.__all__)
def test_docstrings_say_what_goes_in_what_comes_out_and_what_is_refused(op):
    """Of the shorter ones of a family, that another one's says so."""
    text = getattr(ops, op).__doc__
    assert "Raises:" in text or ":func:`and_words`" in text
    assert "Args:" in text or ":func:`and_words`" in text
    assert op.endswith("_") or "Returns:" in text or ":func:`and_words`" in text


@pytest.mark.parametrize(("op", "groups"), [found[1:] for found in sections()])
def test_what_the_site_adds_is_of_the_tables_as_they_are(hooks, op, groups):
    text = hooks.facts(op, groups)
    assert "instructions" in text
    assert (f"- `{op}(" in text) == (op not in SCHEDULES)
    for group in filter(None, groups.split("; ")):
        assert f"| {group}" in text


# Of no op alone; docs/benchmarks.md has all groups.
WHOLE = "training step", "full-graph", "run of masked layers", "An epoch", "MLP ", "call of "


def test_every_group_that_was_timed_is_on_a_page_or_of_a_whole_step(hooks):
    named = tuple(g for _, _, groups in sections() if groups for g in groups.split("; "))
    groups = {row["group"] for row in hooks.timed_rows()}
    left = {g for g in groups if not g.startswith((*named, *WHOLE))}
    assert not left


def test_a_group_that_is_not_in_the_table_is_an_error(hooks):
    with pytest.raises(ValueError, match="no group that begins with 'hat_gait', for hat_gate"):
        hooks.facts("hat_gate", "hat_gait")


def test_patterns_of_the_navigation_take_what_no_line_names(hooks):
    nav = [{"A": ["ops/gate.md", "ops/*"]}, {"B": ["nothing/*"]}, {"C": ["**/*"]}]
    first, last = hooks.on_config(SimpleNamespace(nav=nav)).nav
    assert first["A"][:2] == ["ops/gate.md", "ops/index.md"]
    assert len(first["A"]) == len(set(first["A"])) == len(list(FOLDER.glob("*.md")))
    assert "promise.md" in last["C"] and not set(first["A"]) & set(last["C"])


@pytest.mark.parametrize(
    ("page", "text", "wanted"),
    [
        ("a.md", "[x](../README.md#a), [y](../a.py), [z](b.md)", "[x](index.md#a), y, [z](b.md)"),
        ("f/a.md", "[x](../../README.md), [y](../../setup.py)", "[x](../index.md), y"),
        ("f/a.md", "![x](../p/x.svg), [z](../b.md#c)", "![x](../p/x.svg), [z](../b.md#c)"),
    ],
)  # fmt: skip
def test_links_that_leave_the_pages_become_words_and_all_others_stay(hooks, page, text, wanted):
    where = SimpleNamespace(file=SimpleNamespace(src_uri=page))
    assert hooks.on_page_markdown(text, where) == wanted


def test_the_front_page_is_readme_with_links_of_the_site(hooks):
    where = SimpleNamespace(file=SimpleNamespace(src_uri="index.md"))
    text = hooks.on_page_markdown("", where)
    assert text.startswith("# maskcl\n") and "](ops/index.md)" in text
    assert "](docs/" not in text and "CHANGELOG." in text and "](CHANGELOG.md" not in text
