"""Event functions as they are written for BeGin's own trainers run here."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("torch_geometric")

from maskcl.compat.begin.algorithms import hat, mas
from maskcl.compat.begin.trainers.nodes import NCMinibatchTrainer, NCTrainer
from tests.compat.begin_tiny import TASKS, make

SGD = {"optimizer_fn": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)}


def mine(base: type[Any], **body: Any) -> type[Any]:
    return type(f"My{base.__name__}", (base,), body)


def test_an_inference_written_for_begins_hat_trains_its_masks() -> None:
    scores: list[Tensor] = []

    def infer(self: Any, model: Any, _curr_batch: Any, training_states: Any) -> dict[str, Any]:
        task = training_states["current_task"]
        masks = self.get_mask(task, model, 5.0, self.masking, self.embedding_list)
        graph, chosen = _curr_batch
        task_masks = graph.ndata["task_specific_mask"].to(self.device)
        feat = graph.ndata["feat"].to(self.device)
        preds = model.forward_hat(graph, feat, hat_masks=masks, task_masks=task_masks)[chosen]
        loss = self.loss_fn(preds, graph.ndata["label"][chosen].clamp(min=0))
        scores.append(self.model.core.embeddings[0].detach().clone())
        return {"preds": preds, "loss": loss, "hat_masks": masks}

    trainer: Any = make(mine(hat.NCTaskILHATTrainer, inference=infer))
    found = trainer.run(20)
    assert found["exp_test"][0, 0] > 0.9 and not torch.equal(scores[0], scores[-1])
    assert trainer.model.class_to_task.tolist() == [0, 0, 1, 1, 2, 2]


def test_a_penalty_of_ones_own_finds_mas_importances_in_the_states() -> None:
    def after(self: Any, results: Any, model: Any, optimizer: Any, batch: Any, states: Any) -> Any:
        charged = sum(
            (self.lamb * states["importances"][name] * (p - states["params"][name]) ** 2).sum()
            for name, p in model.named_parameters()
        )
        (results["loss"] + charged).backward()
        optimizer.step()
        return {"loss": results["loss"].item(), "acc": 0.0}

    kind = mas.NCDomainILMASTrainer
    own, default = (make(k, lamb=50.0, **SGD) for k in (mine(kind, afterInference=after), kind))
    rows = [trainer.run(4)["exp_test"] for trainer in (own, default)]
    assert torch.equal(*rows)
    for a, b in zip(own.model.parameters(), default.model.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_an_inference_written_for_begins_mini_batches() -> None:
    shapes: list[tuple[int, int]] = []

    def infer(self: Any, model: Any, _curr_batch: Any, training_states: Any) -> dict[str, Any]:
        input_nodes, output_nodes, blocks = _curr_batch
        blocks = [block.to(self.device) for block in blocks]
        labels = blocks[-1].dstdata["label"]
        preds = model.bforward(blocks, blocks[0].srcdata["feat"])
        assert len(blocks) == 3 and len(preds) == len(labels) == len(output_nodes)
        assert len(blocks[0].srcdata["feat"]) == len(input_nodes) == blocks[0].num_src_nodes()
        shapes.append((len(input_nodes), len(output_nodes)))
        return {"preds": preds, "loss": self.loss_fn(preds, labels.clamp(min=0))}

    size = {"batch_size": 7, "fanouts": (1, 1, 1)}
    kinds = [mine(NCMinibatchTrainer, **size, **body) for body in ({"inference": infer}, {})]
    rows = [make(kind, "class").run(2)["exp_test"] for kind in kinds]
    assert torch.equal(*rows) and (90, 18) in shapes  # of all nodes in evaluation
    assert any(out == 7 < read < 90 for read, out in shapes)
    first = make(mine(NCMinibatchTrainer, **size), "class")
    dataset = first._scenario.get_current_dataset()
    nodes, seeds, blocks = next(iter(first.prepareLoader(dataset, {})[0]))
    assert torch.equal(blocks[0].srcdata["feat"], dataset.ndata["feat"][nodes])
    assert torch.equal(blocks[-1].dstdata["feat"], dataset.ndata["feat"][seeds])


def test_the_documents_own_method_runs() -> None:
    """EWC of the tutorial: Fisher information of the last task's batches, by the events."""

    class MyNC(NCTrainer):
        lamb = 10.0

        def initTrainingStates(self, scenario: Any, model: Any, optimizer: Any) -> dict[str, Any]:
            return {"fishers": [], "params": []}

        def processAfterTraining(self, *args: Any) -> None:
            super().processAfterTraining(*args)
            _, dataset, model, _, states = args
            fishers = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
            for batch in iter(self.prepareLoader(dataset, states)[0]):
                model.zero_grad()
                self.inference(model, batch, states)["loss"].backward()
                for name, p in model.named_parameters():
                    fishers[name] += p.grad.data.clone().detach() ** 2  # type: ignore[union-attr]
            states["fishers"].append(fishers)
            states["params"].append({n: p.data.clone() for n, p in model.named_parameters()})

        def afterInference(
            self, results: Any, model: Any, optimizer: Any, _curr_batch: Any, training_states: Any
        ) -> dict[str, Any]:
            charged = results["loss"] * 0
            pairs = zip(training_states["params"], training_states["fishers"], strict=True)
            for params, fishers in pairs:
                for name, p in model.named_parameters():
                    charged = charged + (fishers[name] * (p - params[name]) ** 2).sum()
            (results["loss"] + self.lamb * charged).backward()
            optimizer.step()
            labels = _curr_batch[0].ndata["label"][_curr_batch[1]].to(self.device)
            return {"loss": 0.0, "acc": self.eval_fn(results["preds"].argmax(-1), labels)}

    found = make(MyNC, "class", full_mode=True, verbose=False).run(3)
    assert found["exp_test"].shape == (TASKS, TASKS + 1) and "exp_INT" in found
