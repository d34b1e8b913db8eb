"""MAS class by class: five pairs of digits in turn, one head for all ten, no task told at test.

Run it with ``python examples/mas_class_by_class.py``; a number behind it is the epochs a task.
Plain training runs beside it, on the same samples in the same order.
"""

import sys

import torch

import maskcl
from maskcl import methods, models, problems, scenarios


def learn(method, epochs):
    """The matrix of accuracies: [i, j] on the classes of task j after task i."""
    torch.manual_seed(0)
    digits = scenarios.load("split-digits", setting="class")
    model = models.mlp(digits.input_shape, classes=10)
    classes = digits.classes_per_task  # seen by the end of each task: 2, 4, ..
    net = maskcl.nn.to_importance(model, digits.num_tasks, classes=classes, growing=True)
    trainer = maskcl.Trainer(
        net,
        method,
        problems.Vision(),
        digits,
        lambda groups: torch.optim.SGD(groups, lr=0.02),
        epochs=epochs,
        batch_size=16,
        progress=False,
    )
    return trainer.fit().matrix


def main(epochs=10):
    mas = learn(maskcl.MAS(strength=1.0, heads=True), epochs)
    plain = learn(methods.Finetune(), epochs)
    print("task  MAS when learned  at the end  plain when learned  at the end")
    for k in range(len(mas)):
        print(f"{k:>4}  {mas[k, k]:>16.4f}  {mas[-1, k]:>10.4f}  ", end="")
        print(f"{plain[k, k]:>18.4f}  {plain[-1, k]:>10.4f}")
    print(f"mean  {mas.diagonal().mean():>16.4f}  {mas[-1].mean():>10.4f}  ", end="")
    print(f"{plain.diagonal().mean():>18.4f}  {plain[-1].mean():>10.4f}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
