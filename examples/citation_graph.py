"""HAT on a citation graph: Cora's papers, three tasks of classes, one GCN.

``MASKCL_DATA=FOLDER python examples/citation_graph.py`` reads ``Planetoid/Cora/raw`` there, as
torch_geometric's Planetoid lays it out; a number behind it is the epochs a task.
"""

import os
import sys

import torch

import maskcl
from maskcl import models, problems, scenarios


def main(epochs=100):
    folder = os.environ.get("MASKCL_DATA")
    if folder is None:
        sys.exit("MASKCL_DATA is not set, wanted the folder with Planetoid/Cora/raw")
    torch.manual_seed(0)
    cora = scenarios.load("planetoid", variant="cora", data=f"{folder}/Planetoid", tasks=3)
    model = models.build_graph("node", "gcn", features=1433, classes=3, hidden=(64, 64))
    edges = model.encoder.adjacency
    example = models.example_inputs("node", edges, features=1433)
    net = maskcl.nn.to_hat(model, cora.num_tasks, example, classes=cora.classes_per_task)
    result = maskcl.Trainer(
        net,
        maskcl.HAT(),
        problems.Node(edges),
        cora,
        lambda groups: torch.optim.Adam(groups, lr=0.01),
        epochs=epochs,
        batch_size=64,
        progress=False,
    ).fit()
    print("task  classes  accuracy  at the end  units")
    for task, classes in enumerate(cora.classes_per_task):
        learned, last = result.matrix[task, task], result.matrix[-1, task]
        units = int(net.hard_mask(task).sum())
        print(f"{task:>4}  {classes:>7}  {learned:>8.4f}  {last:>10.4f}  {units:>5}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
