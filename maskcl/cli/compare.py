"""``maskcl report``: runs side by side, on the terminal or in a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from maskcl.cli.folders import check_new
from maskcl.cli.options import CommandError
from maskcl.cli.tables import comparison
from maskcl.report.compare import rows_of
from maskcl.report.groups import read_runs, repeats
from maskcl.text import printable


def compare_runs(directories: Sequence[Path], out: Path | None) -> str:
    """What to say of finished runs; with ``out`` a folder with a page is made.

    Args:
        directories: of the runs.
        out: a new folder, or None.

    Raises:
        CommandError: the folder exists or cannot be written.
        ReportError: a run cannot be read, or the runs do not compare; nothing is written then.
    """
    runs = read_runs(directories)
    told = "\n\n".join([comparison(rows_of(runs)), *map(printable, repeats(runs))])
    if out is None:
        return told
    check_new(out)
    # Imported here: a table needs no matplotlib.
    from maskcl.report.comparison_page import RUNS, TASKS, write_comparison

    try:
        page = write_comparison(runs, out)
    except ImportError as error:
        raise CommandError(str(error)) from None
    except OSError as error:
        raise CommandError(f"{out} cannot be written: {error.strerror or error}") from None
    return f"{told}\n\nreport: {page}\ncsv: {out / RUNS}, {out / TASKS}"
