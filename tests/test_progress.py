"""What a person sees while a run goes on."""

import io
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from maskcl.callback import Callbacks
from maskcl.progress import Bars, Lines, display


def trainer(tasks=2, epochs=3, steps=4):
    """What a display asks of one."""
    scenario = SimpleNamespace(num_tasks=tasks, metric="accuracy", train_set=lambda task: None)
    samples = SimpleNamespace(steps=lambda dataset: steps)
    return SimpleNamespace(epochs=epochs, scenario=scenario, samples=samples)


def play(part, made):
    """The last epoch of task 1 after a resume, step by step."""
    with Callbacks([part], made) as told:
        told.tell("on_fit_start", True)
        told.tell("on_task_start", 1, 3, 2)
        told.tell("on_epoch_start", 1, 2, 4)
        time.sleep(0.3)
        told.tell("on_step", 1, 2, 0, torch.tensor(0.5))
        told.tell("on_epoch_end", 1, 2, 0.25, 0.875, "free 50 %")
        told.tell("on_task_end", 1, np.array([0.75, 0.5]))
        told.tell("on_fit_end", None)


def test_lines_number_tasks_from_0_and_count_epochs():
    file = io.StringIO()
    play(Lines(file), trainer())
    assert file.getvalue().splitlines() == [
        "task 1 (2 of 2) epoch 3/3 loss 0.2500 accuracy 0.8750 free 50 %",
        "after task 1 (2 of 2): test accuracy 0.750 0.500",
    ]


@pytest.mark.parametrize("width", [44, 80, 120])
def test_bars_fit_the_terminal_and_show_task_epoch_figures_and_time_left(width):
    from rich.console import Console
    from rich.text import Text

    console = Console(force_terminal=True, width=width, record=True, file=io.StringIO())
    bars = display(console)
    assert isinstance(bars, Bars)
    play(bars, trainer())
    shown = console.export_text()
    for part in ("task 1 (2 of 2)", "83 %", "left", "epoch 3/3", "loss 0.2500", "accuracy 0.8750"):
        assert part in shown
    assert "after task 1 (2 of 2): test accuracy" in shown.replace("\n", " ")
    with console.capture() as seen:
        console.print(bars._picture())
    assert max(len(Text.from_ansi(line)) for line in seen.get().splitlines()) <= width


def test_the_accuracy_of_the_last_epoch_stays_while_the_next_one_goes_on():
    from rich.console import Console

    console = Console(force_terminal=True, width=100, file=io.StringIO())
    bars = Bars(console)
    with Callbacks([bars], trainer()) as told:
        told.tell("on_fit_start", False)
        told.tell("on_task_start", 0, 3, 0)
        told.tell("on_epoch_end", 0, 0, 0.25, 0.875, "free 50 %")
        told.tell("on_epoch_start", 0, 1, 4)
        told.tell("on_step", 0, 1, 0, torch.tensor(0.125))
        with console.capture() as seen:
            console.print(bars._picture())
    for part in ("epoch 2/3", "loss 0.1250", "accuracy 0.8750", "free 50 %"):
        assert part in seen.get()


@pytest.mark.parametrize("steps", [1, 3, 7])
def test_the_bar_is_full_after_an_epoch_however_many_steps_it_has(steps):
    from rich.console import Console

    bars = Bars(Console(force_terminal=True, width=100, file=io.StringIO()))
    with Callbacks([bars], trainer()) as told:
        told.tell("on_fit_start", False)
        told.tell("on_task_start", 1, 3, 0)
        for epoch in range(2):
            told.tell("on_epoch_start", 1, epoch, steps)
            for step in range(steps):
                told.tell("on_step", 1, epoch, step, torch.tensor(0.125))
            told.tell("on_epoch_end", 1, epoch, 0.25, 0.875, "")
        task = bars._bar.tasks[0]
        assert task.completed == pytest.approx(task.total * 5 / 6)


def test_many_scores_become_their_mean_and_the_least():
    file = io.StringIO()
    scores = np.linspace(0.5, 1.0, 21)
    lines = Lines(file)
    lines.trainer = trainer(tasks=30)
    lines.on_task_end(20, scores)
    assert file.getvalue() == (
        "after task 20 (21 of 30): test accuracy 0.750 on average of 21, least 0.500 (task 0)\n"
    )


def test_tasks_that_were_not_tested_are_left_out_and_figures_that_are_none():
    file = io.StringIO()
    lines = Lines(file)
    lines.trainer = trainer(tasks=3)
    lines.on_task_end(2, np.array([np.nan, np.nan, 0.5]))
    lines.on_epoch_end(2, 0, 1.0, float("nan"), "")
    assert file.getvalue().splitlines() == [
        "after task 2 (3 of 3): test accuracy 0.500 on average of 1, least 0.500 (task 2)",
        "task 2 (3 of 3) epoch 1/3 loss 1.0000",
    ]


def test_without_a_terminal_there_are_lines():
    from rich.console import Console

    assert isinstance(display(Console(file=io.StringIO())), Lines)
