"""Held-out nodes, links and graphs: the promise holds, a killed run resumes, nothing else moves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("torch_geometric", reason="graph models need maskcl[graph]")
pytest.importorskip("sklearn", reason="the digits come with scikit-learn")

from maskcl.callback import Callback
from maskcl.methods import HAT, MAS
from maskcl.models.graph import build
from maskcl.nn import to_importance
from maskcl.problems import Link
from maskcl.scenarios import load
from maskcl.training.trainer import Trainer
from maskcl.training.validation import Validation
from tests.test_graph_promise import trainer_of

HELD = Validation(0.2, patience=1)


class Kill(Callback):
    def on_epoch_start(self, task: int, epoch: int, batches: int) -> None:
        if (task, epoch) == (1, 1):
            raise KeyboardInterrupt


@pytest.mark.parametrize("problem", ["node", "link", "graph"])
def test_a_killed_run_with_held_out_samples_ends_as_one_that_was_not(problem, tmp_path):
    whole = trainer_of(problem, "gcn", HAT(sparsity=0.1), validation=HELD)
    result = whole.fit()  # whose callback looks at earlier tasks' bits
    assert len(whole.callback.known) == 3
    assert all(0 <= score <= 1 for scores in result.validation for score in scores)
    assert [max(scores) for scores in result.validation] == [
        scores[best] for scores, best in zip(result.validation, result.best_epochs, strict=True)
    ]
    killed = trainer_of(problem, "gcn", HAT(sparsity=0.1), validation=HELD, directory=tmp_path)
    killed.callback = Kill()
    with pytest.raises(KeyboardInterrupt):
        killed.fit()
    again = trainer_of(problem, "gcn", HAT(sparsity=0.1), validation=HELD, directory=tmp_path)
    again.callback = Callback()
    found = again.fit(resume=True)
    assert found.validation == result.validation
    np.testing.assert_array_equal(found.matrix, result.matrix)
    theirs = again.net.state_dict()
    assert all(torch.equal(v, theirs[k]) for k, v in whole.net.state_dict().items())


def test_link_prediction_scores_the_same_pairs_that_are_no_link_every_epoch():
    """With a rate of 0 the network stays, and so must its score."""
    scenario = load("missing-links-digits", tasks=2)
    torch.manual_seed(0)
    model = build("link", "gcn", scenario.input_shape[0], 1, hidden=(8, 8))
    net: Any = to_importance(model, 2)
    result = Trainer(
        net, MAS(reduction="batch"), Link(model.encoder.adjacency, prediction=True, output="score"),
        scenario, lambda groups: torch.optim.SGD(groups, lr=0.0), epochs=3, batch_size=256,
        device="cpu", validation=Validation(0.2, restore=False),
    ).fit()  # fmt: skip
    for scores in result.validation:
        assert len(set(scores)) == 1
        assert len(scores) == 3
