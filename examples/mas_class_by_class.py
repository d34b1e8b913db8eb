"""MAS class by class: five pairs of digits in turn, no task told at test.

Run it with ``python examples/mas_class_by_class.py``; a number behind it is the epochs a task.
With one head for all ten classes importances of weights do not keep the old ones apart from the
new; with a head a task, and the task inferred from statistics of its features, they do.
"""

import sys

import torch

import maskcl
from maskcl import models, problems, scenarios


def learn(inference, epochs):
    """The matrix of accuracies: [i, j] on the classes of task j after task i."""
    torch.manual_seed(0)
    digits = scenarios.load("split-digits", setting="class")
    model = models.mlp(digits.input_shape, classes=10 if inference is None else 2)
    classes = digits.classes_per_task  # of one head: seen by the end of each task: 2, 4, ..
    if inference is not None:
        classes = [2] * digits.num_tasks
    growing = inference is None
    net = maskcl.nn.to_importance(model, digits.num_tasks, classes=classes, growing=growing)
    trainer = maskcl.Trainer(
        net,
        maskcl.MAS(strength=1.0, heads=growing),
        problems.Vision(),
        digits,
        lambda groups: torch.optim.SGD(groups, lr=0.02),
        epochs=epochs,
        batch_size=16,
        progress=False,
        inference=inference,
    )
    return trainer.fit().matrix


def main(epochs=10):
    one = learn(None, epochs)
    inferred = learn(maskcl.TaskInference(), epochs)
    print("task  one head: when learned  at the end  a head a task: when learned  at the end")
    for k in range(len(one)):
        print(f"{k:>4}  {one[k, k]:>22.4f}  {one[-1, k]:>10.4f}  ", end="")
        print(f"{inferred[k, k]:>27.4f}  {inferred[-1, k]:>10.4f}")
    print(f"mean  {one.diagonal().mean():>22.4f}  {one[-1].mean():>10.4f}  ", end="")
    print(f"{inferred.diagonal().mean():>27.4f}  {inferred[-1].mean():>10.4f}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
