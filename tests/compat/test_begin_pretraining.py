"""Pretraining by BeGin's methods and by one's own."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("torch_geometric")

from maskcl.compat.begin.algorithms import bare, ewc, hat, mas, piggyback
from maskcl.compat.begin.data import DataGraph, batch, graph, unbatch
from maskcl.compat.begin.utils import GCNLink
from maskcl.compat.begin.utils.pretraining import (
    DGI,
    DGISubgraphCL,
    InfoGraph,
    LightGCL,
    PretrainingMethod,
    SubgraphCL,
)
from tests.compat.begin_tiny import make, model_for, ring, scenario
from tests.compat.test_begin_models import small

PRETRAINED = [
    (hat.NCTaskILHATTrainer, lambda model: DGI(model, link_level=False)),
    (piggyback.LCTaskILPiggybackTrainer, DGI),
    (mas.LPTimeILMASTrainer, DGISubgraphCL),
    (ewc.NCClassILEWCTrainer, lambda model: DGISubgraphCL(model, link_level=False)),
    (bare.LCClassILBareTrainer, LightGCL),
    (mas.GCTaskILMASTrainer, InfoGraph),
    (hat.GCTaskILHATTrainer, SubgraphCL),
]


@pytest.mark.parametrize(("kind", "method"), PRETRAINED)
def test_a_model_is_pretrained_before_its_first_task(kind: type[Any], method: Any) -> None:
    begun: list[Tensor] = []
    losses: list[float] = []

    def before(self: Any, task: int, dataset: Any, model: Any, *rest: Any) -> None:
        if model is self.model and task == 0:
            begun.append(model.convs[0].weight.detach().clone())
        super(own, self).processBeforeTraining(task, dataset, model, *rest)

    def watched(model: Any) -> PretrainingMethod:
        found = method(model)
        inference = found.inference
        found.inference = lambda inputs: (losses.append(float(loss := inference(inputs))), loss)[1]
        return found

    own = type(f"My{kind.__name__}", (kind,), {"processBeforeTraining": before})
    plain, first = make(own), make(own, pretraining=watched)
    start = plain.model.convs[0].weight.detach().clone()
    assert torch.equal(first.model.convs[0].weight, start)
    first.run(4)
    plain.run(1)
    assert not torch.equal(begun[0], start) and torch.equal(begun[1], start)
    assert len(losses) >= 4 and min(losses) < losses[0] and all(map(math.isfinite, losses))


def test_a_pretraining_method_of_ones_own() -> None:
    class Small(PretrainingMethod):
        def inference(self, inputs: DataGraph) -> Tensor:
            rows = self.encoder.forward_without_classifier(inputs, inputs.ndata["feat"])
            return rows.square().mean()

    found = scenario("NC", "task")
    model = model_for("NC", found)
    trainer = make(bare.NCTaskILBareTrainer, model=model, pretraining=Small)
    kept = trainer.model
    trainer.run(2)
    assert trainer.model is kept is model


def test_light_gcls_approximation_is_the_graph_where_its_rank_is_enough() -> None:
    torch.manual_seed(0)
    sources, targets = torch.tensor([0, 0, 1]), torch.tensor([2, 3, 3])
    both = (torch.cat([sources, targets]), torch.cat([targets, sources]))
    data = graph(both, num_nodes=4)
    data.ndata["feat"], data.loops = torch.randn(4, 3), True
    for bipartite in (True, False):
        method = LightGCL(GCNLink(3, 2, 8).eval(), bipartite=bipartite)
        next(iter(method.iterator(data, "cpu")))
        exact = method.exact_forward(data, data.ndata["feat"])
        torch.testing.assert_close(
            method.approx_forward(data, data.ndata["feat"]), exact, rtol=1e-3, atol=1e-4
        )
    with pytest.raises(ValueError, match="bipartite is True, and links begin in node 4 and end in"):
        LightGCL(GCNLink(3, 2, 8), bipartite=True).iterator(ring(6, torch.randn(6, 3)), "cpu")


def test_a_batch_comes_apart_again() -> None:
    parts = [small(1), ring(3, torch.randn(3, 4))]
    again = unbatch(batch(parts))
    for one, other in zip(parts, again, strict=True):
        assert torch.equal(torch.stack(one.edges()), torch.stack(other.edges()))
        assert torch.equal(one.ndata["feat"], other.ndata["feat"])
    assert again[1].in_degrees().tolist() == again[1].out_degrees().tolist() == [2, 2, 2]
