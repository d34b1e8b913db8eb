"""How far an epoch or a task is: what :func:`maskcl.ops.hat_scale` makes a scale of."""

from __future__ import annotations

from maskcl.ops._numbers import integer

_SHORT_EPOCH = 4  # steps


def epoch_progress(batch: int, batches: int) -> float:
    """Progress for `hat_scale` in an epoch: 0 at its first batch, 1 at its last (HAT, eq. 3).

    Args:
        batch: from 0.
        batches: of the epoch.

    Returns:
        batch / (batches - 1), from 0 to 1; 1 where there is one batch.

    Raises:
        TypeError: an argument is no int.
        ValueError: batches is below 1, or the batch out of range.
    """
    batches = integer("epoch_progress", "batches", batches, 1)
    batch = integer("epoch_progress", "batch", batch, 0, batches - 1)
    return batch / (batches - 1) if batches > 1 else 1.0


def task_progress(epoch: int, epochs: int, batch: int, batches: int) -> float:
    """Progress in [0, 1] for `hat_scale`: of the epoch, or of the task where epochs are short.

    The paper's scale goes from 1 / s_max to s_max in every epoch (eq. 3). In an epoch of a few
    steps, as on a whole graph, which is one, it would be at s_max nearly always, where no gate
    learns: then it rises once, over all steps of the task.

    Args:
        epoch: from 0.
        epochs: of the task.
        batch: from 0.
        batches: of the epoch.

    Returns:
        A number from 0 to 1.

    Raises:
        TypeError: an argument is no int.
        ValueError: an epoch or a batch is out of range.
    """
    op = "task_progress"
    epochs, batches = integer(op, "epochs", epochs, 1), integer(op, "batches", batches, 1)
    epoch, batch = integer(op, "epoch", epoch), integer(op, "batch", batch)
    if not (0 <= epoch < epochs and 0 <= batch < batches):
        raise ValueError(
            f"task_progress: epoch is {epoch} of {epochs}, batch {batch} of {batches},"
            " wanted less than these and at least 0"
        )
    if batches >= _SHORT_EPOCH:
        return epoch_progress(batch, batches)
    return epoch_progress(epoch * batches + batch, epochs * batches)
