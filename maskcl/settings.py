"""Settings: what is known at test and how the data were cut. Four instances, no subclasses."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Setting:
    """One continual-learning setting.

    Args:
        name: ``task``, ``class``, ``domain`` or ``time``.
        task_id_at_test: whether a test sample comes with the index of its task.
        classes_visible: which classes a prediction chooses among: ``task`` (its own task's),
            ``seen`` (those of all tasks so far) or ``all`` (every task has the same classes).
        head: ``task`` (one output layer a task), ``growing`` (one that gains classes) or
            ``shared`` (one for all tasks).
        split_by: what differs between tasks: ``class``, ``domain`` or ``time``.
    """

    name: str
    task_id_at_test: bool
    classes_visible: str
    head: str
    split_by: str

    @property
    def later_tasks_defined(self) -> bool:
        """Whether a score on a task that was not trained yet means anything.

        With a head for each task it does not, as the head of a later task is as initialised, nor
        with one that grows, which has no outputs for its classes.
        """
        return self.head == "shared"


TASK = Setting("task", True, "task", "task", "class")
CLASS = Setting("class", False, "seen", "growing", "class")
# The domain of a test sample is known here, as HAT needs it to choose its mask. Where a benchmark
# hides it, HAT's and Piggyback's scores under this setting are not comparable with it; MAS and EWC
# with one head for all domains make no use of it.
DOMAIN = Setting("domain", True, "all", "shared", "domain")
TIME = Setting("time", False, "all", "shared", "time")

SETTINGS: dict[str, Setting] = {s.name: s for s in (TASK, CLASS, DOMAIN, TIME)}


def get_setting(setting: str | Setting) -> Setting:
    """The setting of that name; a `Setting` is returned as it is.

    Raises:
        ValueError: the name is not one of ``SETTINGS``.
    """
    if isinstance(setting, Setting):
        return setting
    if setting not in SETTINGS:
        raise ValueError(f"setting is {setting!r}, wanted one of {', '.join(SETTINGS)}")
    return SETTINGS[setting]
