"""The methods whose reports are known, by the name in result.json."""

from __future__ import annotations

from maskcl.report import baselines, hat, importance, piggyback
from maskcl.report.layout import Content, Layout

LAYOUTS = {
    "hat": hat.LAYOUT,
    "piggyback": piggyback.LAYOUT,
    "mas": importance.MAS,
    "ewc": importance.EWC,
    **baselines.LAYOUTS,
}


def layout_of(result: Content) -> Layout:
    """What the method of a result adds; of an unknown method nothing but its name."""
    name = str(result["method"])
    return LAYOUTS.get(name) or Layout(title=name)


def facts(result: Content) -> str:
    """A method's own figures in a line for the terminal; empty for an unknown method."""
    measures = layout_of(result).measures
    return ", ".join(f"{m.label} {m.text(result)}" for m in measures)
