"""One frozen network that each task sees through a mask of its own (Piggyback, 2018)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from maskcl.nn.piggyback.base_rows import base_rows, check_base
from maskcl.nn.piggyback.cut import Cut, check_score_dtype, check_start
from maskcl.nn.piggyback.first_step import warn_at_first_step
from maskcl.nn.piggyback.layer_runs import LayerRuns
from maskcl.nn.piggyback.recorded_masks import RecordedMasks
from maskcl.nn.tasks.own_parts import all_parameters, drop_gradients, own_parameters
from maskcl.nn.tasks.unlearning import Forgotten, Removed, fresh_own, rewrite, sha256
from maskcl.ops.selection import selection
from maskcl.shards import local


class PiggybackNetwork(RecordedMasks):
    """A model whose weights are frozen and carry one mask a task, W m (Piggyback, section 3).

    Every forward happens inside ``with net.task(k):``. A task is begun, which gives each layer
    scores to train; finished, which turns them into one bit a weight (two for the ternary levels);
    and from then on served from its bits. Weights, biases, norms and all else that is not a task's
    own take no gradient, and their norms stay in evaluation mode.

    Args:
        model: piggyback layers, TaskNorms and TaskHeads among ordinary modules; taken over and
            frozen, not copied. ``to_piggyback`` makes one of an ordinary model.
        num_tasks: how many tasks there will be, T.
        levels: of the layers' masks: "binary"; "ternary", the original's, or "ternary_symmetric",
            which may also turn a weight's sign; "topk", a share of each layer's largest |scores|.

    Attributes:
        finished: bool [T].
        levels: as above.

    Raises:
        ValueError: num_tasks or levels is not as above or another than a module's, or the model has
            no layer to mask.
    """

    def __init__(self, model: nn.Module, num_tasks: int, *, levels: str = "binary") -> None:
        super().__init__(model, num_tasks, levels=levels)
        self._runs = LayerRuns(model)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's output for the active task.

        Raises:
            RuntimeError: no task is active, or it is neither finished nor in training.
        """
        active = self._prepared()
        if not kwargs:
            output = self._runs.output(self._modules["model"], active, args)
            if output is not None:
                return output
        return self.model(*args, **kwargs)

    def base_rows(self, args: tuple[Any, ...]) -> Tensor:
        """What the heads are given where no mask removes anything: see `base_rows.base_rows`."""
        return base_rows(self, args)

    def check_base(self) -> None:
        """Raise ValueError unless heads are a task's and norms all tasks'."""
        check_base(self)

    @torch.no_grad()
    def begin_task(
        self,
        task: int,
        *,
        threshold: float = 5e-3,
        init: float = 1e-2,
        spread: str = "constant",
        inclusive: bool = False,
        density: float | None = None,
        generator: torch.Generator | None = None,
        score_dtype: torch.dtype | None = None,
    ) -> None:
        """Give every layer scores, and let only what the task trains require gradients.

        Build the optimizer after it. A task in training starts anew.

        Args:
            task: not finished; no other is in training.
            threshold: above it a score keeps its weight; see ``ops.piggyback_weight``.
            init: the scores' first value, or the bound of their first values.
            spread: "constant", all init, or "uniform", U(-init, init).
            inclusive: of "binary": the threshold itself keeps the weight too.
            density: of "topk", the share of each layer's weights that stays.
            generator: of "uniform", on the CPU.
            score_dtype: bfloat16 for scores, and gradients of them, of two bytes. It rounds the
                threshold too. Steps below half of what it tells apart, 3e-5 at 1e-2, are lost
                unless the optimizer rounds at random: ``maskcl.optim``'s SGD, Adam and AdamW with
                ``rounding="stochastic"``; the first step of any other warns. None: float32, or
                float64 for a float64 weight.

        Raises:
            RuntimeError: the task is finished, or another one is in training.
            ValueError: an argument is not as above; nothing has changed then.
        """
        self._check_open("begin_task", task)
        self._structure.check("PiggybackNetwork.begin_task", self.model)
        self.check_kept("PiggybackNetwork.begin_task")
        caller = "PiggybackNetwork.begin_task"
        if self.training_task not in (None, task):
            other = self.training_task
            raise RuntimeError(
                f"{caller}: task {other} is in training;"
                f" net.finish_task({other}) or net.forget_task({other}) first"
            )
        layers = self.layers.values()
        for layer in layers:
            probe = local(layer.weight).detach().flatten()[:1]
            selection(caller, probe, threshold, self.levels, inclusive, density)
        check_start(caller, init, spread)
        check_score_dtype(caller, score_dtype)
        for layer in layers:
            layer.start_scores(init, spread, generator, score_dtype)
        if score_dtype is torch.bfloat16:
            warn_at_first_step(self.scores())
        cut = Cut(task, threshold, inclusive, density)
        self._state.cut = cut.seen_by(score_dtype or torch.float32, self.levels)
        drop_gradients(all_parameters(self))
        self._settle()

    @torch.no_grad()
    def finish_task(self, task: int, *, check: bool = True) -> None:
        """Turn the task's scores into bits, and freeze all that is its own.

        Args:
            task: in training.
            check: whether the tasks before have to be what they were.

        Raises:
            RuntimeError: the task is not in training, or finished tasks are not what they were.
        """
        self._check_open("finish_task", task)
        self._structure.check("PiggybackNetwork.finish_task", self.model)
        if check:
            self.check_kept("PiggybackNetwork.finish_task")
        cut = self._state.cut
        if cut is None or cut.task != task:
            raise RuntimeError(
                f"PiggybackNetwork.finish_task: task {task} is not in training;"
                f" net.begin_task({task}) starts it"
            )
        self._record(task, self._packed_scores(cut))

    @torch.no_grad()
    def forget_task(self, task: int, reset: bool = False, *, seed: int = 0) -> Forgotten | None:
        """Drop a task's bits, or its scores if it is in training; its head and norms stay.

        With ``reset`` they are as new too, and nothing of the network depends on the task's data
        any more: the base never did, and no other task reads what was this one's.

        Args:
            task: finished or not.
            reset: whether head and norms go too.
            seed: of what is drawn: it follows from it and the parameters' names alone.

        Returns:
            With ``reset`` what was removed, else None.

        Raises:
            RuntimeError: parameters are sharded, or a module has no ``reset_parameters``; nothing
                has changed then.
        """
        self._check_task("forget_task", task)
        self._warn_if_changed("PiggybackNetwork.forget_task")
        fresh = fresh_own(self.model, self._own_modules(task), seed) if reset else {}
        removed: dict[str, Removed] = {}
        if self.training_task == task:
            self._drop_scores()
        for name, layer in self.layers.items():
            before = sha256(layer.words_of(task)) if reset else ""
            layer.own_words(task).zero_()
            if reset:
                numbers, after = layer.weight.numel(), sha256(layer.words_of(task))
                removed[f"{name}.words, task {task}"] = Removed(numbers, before, after)
        self.finished[task] = False
        self._give_up(task, reset)
        statistics = self._forget_statistics(task)
        if reset:
            removed |= rewrite(self.model.state_dict(keep_vars=True), fresh)
            for parameter in own_parameters(self.model, task):
                parameter.grad = None
        self._settle()
        if not reset:
            return None
        named = {f"model.{name}": part for name, part in removed.items()}
        return Forgotten(task, seed, {}, {}, named | statistics)
