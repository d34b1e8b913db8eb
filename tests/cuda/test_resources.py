"""No kernel of the library spills, and none takes more registers than somebody has looked at."""

from __future__ import annotations

import pytest

from benchmarks import pages, resources
from maskcl import backends


def _absent() -> str:
    if backends.BACKENDS["cuda"].absent or not resources.LIBRARY.exists():
        return "the CUDA library is not built"
    if resources.cuobjdump() is None:
        return "Triton, which brings cuobjdump, is not installed"
    return ""


@pytest.mark.skipif(bool(_absent()), reason=_absent())
def test_the_library_is_the_tables():
    found = resources.cuda()
    if {row.arch for row in found} != set(resources.BUILT):
        pytest.skip("the library is built for other GPUs")
    differences = resources.differences("cuda", resources.nvcc(), found)
    assert not differences, "\n".join([*differences, "python -m benchmarks.resources --write"])


def test_the_page_shows_the_tables():
    assert pages.part("resources") == resources.page()


def test_differences_are_named():
    version, table = resources.read("cuda")
    rows = list(table.values())
    assert resources.differences("cuda", version, rows) == []
    row = rows[0]
    spilled = resources.Usage(*row.key, row.registers, row.stack + 8, row.shared, row.occupancy)
    larger = resources.Usage(*row.key, row.registers + 8, row.stack, row.shared, row.occupancy)
    other = resources.Usage("new", "90", 32, 0, 0, 100)
    for version_found in (version, "another"):  # a spill is one whatever compiled
        (said,) = resources.differences("cuda", version_found, [spilled, *rows[1:]])
        assert "spills" in said
    assert len(resources.differences("cuda", version, [larger, *rows[1:]])) == 1
    assert resources.differences("cuda", "another", [larger, *rows[1:]]) == []
    assert "is not in" in resources.differences("cuda", version, [*rows, other])[0]
    assert "is no more" in resources.differences("cuda", version, rows[1:])[0]


@pytest.mark.parametrize(
    ("registers", "shared", "arch", "threads", "wanted"),
    [  # NVIDIA's occupancy calculator, by hand
        (32, 0, "80", 256, 100),
        (33, 0, "80", 256, 75),
        (64, 0, "90", 256, 50),
        (255, 0, "90", 256, 12),
        (32, 48 << 10, "80", 256, 37),
        (32, 48 << 10, "90", 256, 50),
        (16, 0, "90", 32, 50),
    ],
)
def test_occupancy(registers, shared, arch, threads, wanted):
    assert resources.occupancy(registers, shared, arch, threads) == wanted
