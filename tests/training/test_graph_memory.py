"""Coauthor CS, 18,333 nodes with 6,805 words, in a process that stays small."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

DATA = os.environ.get("MASKCL_DATA")
LIMIT = 2e9

# Neighbour-sampled steps of HAT on one task, then its test on the whole graph; for each encoder
# the accuracy, and what the process held at most so far.
RUN = """
import json, re, sys
from pathlib import Path
import torch
import maskcl
from maskcl import models, scenarios
from maskcl.problems import Node

def peak():
    # Not ru_maxrss: that counts the process that started this one, too.
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

scenario = scenarios.load(
    "coauthor-cs", data=sys.argv[1], setting="task", groups=[[0, 1, 2]], tasks=1
)
features, found = scenario.input_shape[0], {}
for encoder in sys.argv[2:]:
    kind = models.ENCODERS[encoder]
    model = models.build_graph("node", encoder, features, 3, hidden=(64, 64))
    example = models.example_inputs("node", kind, features)
    net = maskcl.nn.to_hat(model, scenario.num_tasks, example, classes=scenario.outputs)
    problem, make = Node(kind, (10, 10)), lambda groups: torch.optim.Adam(groups, lr=0.005)
    trainer = maskcl.Trainer(
        net, maskcl.HAT(), problem, scenario, make, epochs=1, batch_size=512, device="cpu"
    )
    found[encoder] = (float(trainer.fit().matrix[0, 0]), peak())
print(json.dumps(found))
"""


@pytest.mark.slow
@pytest.mark.skipif(DATA is None, reason="MASKCL_DATA is unset: Coauthor CS is read from there")
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc: peak not known")
def test_coauthor_cs_trains_on_samples_and_is_tested_whole_under_2_gb():
    pytest.importorskip("torch_geometric", reason="graphs need maskcl[graph]")
    command = [sys.executable, "-W", "ignore", "-c", RUN, DATA, "gcn", "sage"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for encoder, (accuracy, peak) in found.items():
        assert accuracy > 0.5, f"{encoder} has learned nothing: {accuracy}"
        # What the features take where they are dense is a quarter of this.
        assert peak < LIMIT, f"{encoder}: {peak / 1e9:.2f} GB"
