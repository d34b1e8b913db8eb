"""One network learns ten tasks; each becomes an ONNX file of the units that it uses.

Run it with ``python examples/ten_tasks_to_onnx.py``; numbers behind it are the epochs a task and
the tasks. Files go into a temporary folder, and onnxruntime has to answer as the network does.
"""

import sys
import tempfile
from pathlib import Path

import onnxruntime
import torch

import maskcl
from maskcl import models, problems, scenarios


def main(epochs=5, tasks=10):
    torch.manual_seed(0)
    digits = scenarios.load("permuted-digits", tasks=tasks, setting="task")
    model = models.mlp(digits.input_shape, classes=10, hidden=(400, 400))
    example = torch.zeros(2, *digits.input_shape)
    net = maskcl.nn.to_hat(model, tasks, example, classes=digits.classes_per_task)
    result = maskcl.Trainer(
        net,
        maskcl.HAT(),
        problems.Vision(),
        digits,
        lambda groups: torch.optim.Adam(groups, lr=0.005),
        epochs=epochs,
        batch_size=32,
        progress=False,
    ).fit()

    net.eval()
    print("task  accuracy  units   KiB  largest difference")
    with tempfile.TemporaryDirectory() as folder:
        for task in range(tasks):
            path = Path(folder) / f"task-{task}.onnx"
            size = maskcl.export.save(maskcl.export.compact(net, task), path, example)
            x = digits.test_inputs(task).take(torch.arange(64))
            session = onnxruntime.InferenceSession(path)
            (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
            with torch.no_grad(), net.task(task):
                apart = (net(x) - torch.from_numpy(found)).abs().max().item()
            assert apart < 1e-4, f"task {task}: onnxruntime is {apart} from the network"
            units, accuracy = int(net.hard_mask(task).sum()), result.matrix[-1, task]
            print(f"{task:>4}  {accuracy:>8.4f}  {units:>5}  {size / 1024:>4.0f}  {apart:.1e}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
