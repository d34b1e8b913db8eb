"""From class ids to the labels that a task's loss sees, by setting."""

from __future__ import annotations

from maskcl.settings import Setting


def local_labels(classes: list[list[int]], setting: Setting) -> list[dict[int, int]]:
    """One table {class id: label} a task.

    Task and domain settings: the position of the class within its task (domains share the
    positions, since one head serves all). Class setting: the position in the order in which
    classes first appear over the tasks, so the outputs seen so far are the first ones.
    """
    if setting.name != "class":
        return [{label: position for position, label in enumerate(part)} for part in classes]
    order: dict[int, int] = {}
    for part in classes:
        for label in part:
            order.setdefault(label, len(order))
    return [{label: order[label] for label in part} for part in classes]
