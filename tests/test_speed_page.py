"""docs/benchmarks.md has what the files of results have, and says where others are faster."""

from __future__ import annotations

from benchmarks import speed_page
from benchmarks.step_pieces import pieces

AGAIN = "python -m benchmarks.speed_page"


def step(method, whose, us, ratio, note="", network="64-200-200-2", batch="16"):
    return {
        "network": network, "batch": batch, "optimizer": "adamw", "threads": "1",
        "compiled": "False", "schedule": "False", "method": method, "whose": whose,
        "us": us, "of_unmasked": ratio, "note": note, "device": "a machine", "torch": "2",
        "commit": "abc", "date": "a day", "command": "a command",
    }  # fmt: skip


ROWS = [
    step("", "unmasked, fused", "100.0", "1.000"),
    step("", "unmasked, foreach", "110.0", "1.100"),
    step("HAT", "maskcl", "120.0", "1.200"),
    step("HAT", "careful eager", "90.0", "0.900", "faster than maskcl, 0.75 of its time"),
    step("HAT", "hat-cl", "", "", "not measured: No module named 'hat'"),
]


def test_the_page_agrees_with_the_results():
    assert not speed_page.differences(), AGAIN


def test_a_faster_row_of_another_is_printed_and_named():
    table = speed_page.step_tables(ROWS)["small"]
    assert "| 64-200-200-2 | 16 | AdamW | 1 | 100 | 1.20 | 0.90 faster | not here |" in table
    assert table.startswith("`a command`, a machine, torch 2, commit abc, a day\n")
    said = speed_page.lost_steps(ROWS)
    assert "HAT careful eager is faster than maskcl, 0.75 of its time" in said
    assert "1 of 1 steps of ours take longer" in said


def test_rows_of_several_commits_are_said_to_be():
    other = {**ROWS[2], "commit": "def", "batch": "16"}
    assert "not yet of one" in speed_page.step_tables([*ROWS[:2], other, ROWS[3]])["small"]


def test_an_axis_without_rows_says_so():
    assert speed_page.step_tables(ROWS)["graph"] == "Not measured yet."


def test_the_axes_cover_widths_optimizers_threads_batches_and_kinds():
    settings = [setting for found in pieces().values() for setting in found]
    widths = {int(s.network.split("-")[1]) for s in settings if s.network[0].isdigit()}
    assert {min(widths), max(widths)} == {64, 4096}
    assert {s.optimizer for s in settings} == {"sgd", "adam", "adamw"}
    assert {s.threads for s in settings} == {1, 2}
    assert {s.compiled for s in settings} == {True, False}
    assert {1, 256} <= {s.batch for s in settings}
    assert {"conv", "resnet18", "gcn"} <= {s.network for s in settings}


def test_eager_and_compiled_torch_that_are_faster_are_named_among_ops():
    row = {"group": "an op", "name": "torch.compile", "ratio": "0.94"}
    assert speed_page.lost_ops([row, {**row, "name": "memcpy"}]) == (
        "- an op: torch.compile takes 0.94 of ours"
    )
