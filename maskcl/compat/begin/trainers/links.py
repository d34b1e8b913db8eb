"""Trainers of link classification and link prediction."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.data import DataLoader, TensorDataset

from maskcl.compat.begin.data import DataGraph, heard
from maskcl.compat.begin.spelling import either_name
from maskcl.compat.begin.trainers.common import BaseTrainer
from maskcl.problems.sampling import draw_negatives

MASK = "task_specific_mask"


class LCTrainer(BaseTrainer):
    """Link classification, all links in one batch.

    A batch is ``(graph, srcs, dsts, labels)``, in the task setting ``(graph, srcs, dsts,
    task_masks, labels)`` with task_masks bool [n, C].
    ``graph.edges()`` are the links, of which ``graph.edata`` tells ``label`` (-1 where hidden),
    ``train_mask``, ``val_mask``, ``test_mask`` and ``task_specific_mask``; messages use the
    graph's own edges, among which no test link is.
    """

    problem = "link"

    @either_name
    def preparePretrainLoader(
        self, curr_dataset: DataGraph, curr_training_states: dict[str, Any]
    ) -> list[DataGraph]:
        """The graph that messages use, without nodes that no edge joins to another."""
        return [heard(curr_dataset)]

    @either_name
    def prepareLoader(self, curr_dataset: DataGraph, curr_training_states: dict[str, Any]) -> Any:
        """One batch each for training, validation and test."""
        srcs, dsts = curr_dataset.edges()
        data = curr_dataset.edata
        columns = [srcs, dsts, *([data[MASK]] if MASK in data else []), data["label"]]
        masks = (data[f"{split}_mask"] for split in ("train", "val", "test"))
        graph = curr_dataset.to(self.device)
        return tuple([(graph, *(column[mask] for column in columns))] for mask in masks)

    def _run(self, model: Any, batch: tuple[Any, ...]) -> Tensor:
        graph, srcs, dsts = batch[0].to(self.device), batch[1], batch[2]
        masks = self._task_masks(batch)
        given = {} if masks is None else {"task_masks": masks.to(self.device)}
        return model(
            graph, graph.ndata["feat"], srcs.to(self.device), dsts.to(self.device), **given
        )

    def _answers(self, batch: tuple[Any, ...]) -> Tensor:
        return batch[-1].to(self.device)

    def _task_masks(self, batch: tuple[Any, ...]) -> Tensor | None:
        return batch[3] if len(batch) == 5 else None

    def _seen_labels(self, dataset: DataGraph) -> Tensor:
        return dataset.edata["label"][dataset.edata["train_mask"] | dataset.edata["val_mask"]]

    def _example(self, model: Any, dataset: DataGraph) -> tuple[Any, ...]:
        srcs, dsts = dataset.edges()
        return model.tensors(dataset, dataset.ndata["feat"], srcs[:4], dsts[:4])


class LPTrainer(BaseTrainer):
    """Link prediction: in training a batch is ``(edges, labels)``, edges int64 [n, 2] and labels 1.

    In validation and test it is ``(graph, feat, edges, labels)``. In training, ``inference`` draws
    a pair that is no link for each that is one; ``preds`` are the scores of both, [2n], links
    first. What it draws depends on the seed alone. The graph and its features are in the states,
    ``curr_training_states["graph"]``.

    Attributes:
        batch_size: links a step.
    """

    problem = "link prediction"
    log_every = 1
    batch_size = 32 * 1024
    _pretraining_sign = -1.0

    @either_name
    def preparePretrainLoader(
        self, curr_dataset: dict[str, Any], curr_training_states: dict[str, Any]
    ) -> list[DataGraph]:
        """The graph without nodes that no edge joins to another."""
        return [heard(curr_dataset["graph"])]

    @either_name
    def prepareLoader(
        self, curr_dataset: dict[str, Any], curr_training_states: dict[str, Any]
    ) -> Any:
        """Shuffled links for training; one batch each for validation and test."""
        graph = curr_dataset["graph"].clone()
        feat = graph.ndata.pop("feat").to(self.device)
        chance = torch.Generator().manual_seed(self.seed)
        known = curr_dataset.get("known", graph.messages.edge_index)
        curr_training_states.update(graph=(graph, feat), known=known, negatives=chance)
        pairs = {
            split: (curr_dataset[split]["edge"], curr_dataset[split]["label"])
            for split in ("train", "val", "test")
        }
        train = DataLoader(
            TensorDataset(*pairs["train"]), self.batch_size, shuffle=True, generator=chance
        )
        return train, [(graph, feat, *pairs["val"])], [(graph, feat, *pairs["test"])]

    @either_name
    def inference(
        self, model: Any, curr_batch: tuple[Any, ...], curr_training_states: dict[str, Any] | None
    ) -> dict[str, Any]:
        """Scores; in training of links and of as many drawn pairs, with the loss."""
        if len(curr_batch) == 4:
            graph, feat, pairs, labels = curr_batch
        else:
            assert curr_training_states is not None
            (graph, feat), (links, labels) = curr_training_states["graph"], curr_batch
            known, chance = curr_training_states["known"], curr_training_states["negatives"]
            none = draw_negatives(links, known, graph.num_nodes(), chance)
            pairs, labels = torch.cat([links, none]), torch.cat([labels, torch.zeros_like(labels)])
        srcs, dsts = pairs.to(self.device).unbind(1)
        preds = model(graph.to(self.device), feat.to(self.device), srcs, dsts).squeeze(-1)
        answers = labels.to(self.device)
        return {"preds": preds, "loss": self._loss(preds, answers), "answers": answers}

    @either_name
    def afterInference(
        self,
        results: dict[str, Any],
        model: Any,
        optimizer: Optimizer,
        curr_batch: Any,
        curr_training_states: dict[str, Any],
    ) -> dict[str, Any]:
        """Backward and a step, with what the method adds to the loss and does to gradients."""
        self._learn(results["loss"], model, optimizer)
        return {"_num_items": len(results["preds"]), "loss": results["loss"].item()}

    def predictionFormat(self, results: dict[str, Any]) -> Tensor:
        """The scores."""
        return results["preds"]

    def processTrainingLogs(
        self,
        task_id: int,
        epoch_cnt: int,
        val_metric_result: float,
        train_stats: dict[str, Any],
        val_stats: dict[str, Any],
    ) -> None:
        """After an epoch, where ``verbose``: a line."""
        loss, hits = round(train_stats["loss"], 4), round(val_metric_result, 4)
        print(f"task_id: {task_id} Epoch #{epoch_cnt}: train_loss: {loss} val_hits: {hits}")

    def processAfterEachIteration(
        self,
        curr_model: Any,
        curr_optimizer: Optimizer,
        curr_training_states: dict[str, Any],
        curr_iter_results: dict[str, Any],
    ) -> bool:
        """As for the others, by the validation score: the larger, the better."""
        score = curr_iter_results["val_metric"]
        return self._keep_best(
            curr_model, curr_optimizer, curr_training_states, "best_val_score", score
        )

    def _task_masks(self, batch: Any) -> None:
        return None

    def _targets(self, batch: Any, results: dict[str, Any]) -> Tensor:
        return results["answers"]

    def _seen_labels(self, dataset: Any) -> Tensor:
        return torch.zeros(1, dtype=torch.int64)

    def _example(self, model: Any, dataset: dict[str, Any]) -> tuple[Any, ...]:
        graph: DataGraph = dataset["graph"]
        srcs, dsts = dataset["train"]["edge"][:4].unbind(1)
        return model.tensors(graph, graph.ndata["feat"], srcs, dsts)
