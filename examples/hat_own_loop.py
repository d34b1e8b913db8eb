"""HAT in a loop of your own: five tasks of handwritten digits, one network, nothing forgotten.

Run it with ``python examples/hat_own_loop.py``; a number behind it is the epochs a task.
"""

import sys

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

import maskcl
from maskcl import models

TASKS = [(0, 1), (2, 3), (4, 5), (6, 7), (8, 9)]


def main(epochs=10):
    torch.manual_seed(0)
    data = load_digits()
    images, digits = torch.tensor(data.data / 16).float(), torch.tensor(data.target)
    train, test = [], []
    for first, second in TASKS:
        rows = (digits == first) | (digits == second)
        x, y = images[rows], (digits[rows] == second).long()  # labels 0 and 1
        train.append((x[:280], y[:280]))
        test.append((x[280:], y[280:]))
    hat = maskcl.HAT()
    model = models.mlp((64,), classes=2)  # any module of your own
    net = maskcl.nn.to_hat(model, len(TASKS), torch.zeros(2, 64), classes=[2] * len(TASKS))
    print("task  " + "  ".join(f"test {k}" for k in range(len(TASKS))))
    for task, samples in enumerate(train):
        state = hat.begin_task(net, task)
        optimizer = torch.optim.Adam(hat.parameter_groups(net, task), lr=0.005)
        guard = hat.protect(optimizer, net, state)
        loader = DataLoader(TensorDataset(*samples), batch_size=16, shuffle=True)
        for _ in range(epochs):
            for step, (x, y) in enumerate(loader):
                hat.before_step(net, state, maskcl.ops.epoch_progress(step, len(loader)))
                optimizer.zero_grad()
                with net.task(task, state.scale):  # soft masks, which learn
                    loss = F.cross_entropy(net(x), y) + hat.loss_term(net, state)
                    loss.backward()
                hat.after_backward(net, state)
                optimizer.step()
                hat.after_step(net, state)
        hat.end_task(net, state)
        guard.remove()
        print(f"{task:>4}  " + "  ".join(f"{score(net, k, *test[k]):.4f}" for k in range(task + 1)))


def score(net, task, x, y):
    """Accuracy under the task's own mask."""
    with torch.no_grad(), net.task(task):
        return (net(x).argmax(1) == y).float().mean().item()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
