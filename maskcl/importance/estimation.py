"""Importances of a model's parameters over a set of samples."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from maskcl.importance.checking import check as compare_alone
from maskcl.importance.checking import check_groups, refuse_mixing
from maskcl.importance.exact import Exact
from maskcl.importance.likelihoods import LIKELIHOODS
from maskcl.importance.objective import Objective
from maskcl.importance.per_sample import gradients_of
from maskcl.importance.quiet import quiet, requiring
from maskcl.importance.shards import add_up, sum_of_joint_batches
from maskcl.importance.subject import Forward, Subject, plain_forward
from maskcl.nn.tasks.own_parts import all_modules
from maskcl.ops import mas_accumulate_
from maskcl.shard_sums import totals
from maskcl.sharded_modules import gathered, reshard
from maskcl.shards import is_sharded, local

_CHOICES = {
    "kind": ("mas", "fisher"),
    "labels": ("data", "predicted", "sampled"),
    "reduction": ("sample", "batch"),
    "norm": ("sum", "mean"),
    "likelihood": tuple(LIKELIHOODS),
}


def estimate(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    kind: str = "mas",
    labels: str = "data",
    likelihood: str = "categorical",
    reduction: str = "sample",
    norm: str = "sum",
    forward: Forward | None = None,
    segments: Callable[[Any], Tensor] | None = None,
    parameters: Iterable[str] | None = None,
    memory: int = 256 << 20,
    generator: torch.Generator | None = None,
    check: bool = True,
) -> dict[str, Tensor]:
    """Mean over samples of |dF/dW| (MAS) or (d log p/dW)^2 (Fisher information, EWC).

    The exact mean over samples, whatever the batches: for linear layers, convolutions, embeddings
    and norms from the layers' inputs and the gradients of their outputs, at about the price of one
    backward; for parameters of other modules (attention, recurrent, your own) by torch.func's
    gradients of single samples in chunks, or where that has no rule one sample at a time.

    The model is in evaluation mode inside and as it was after, as are ``requires_grad``, ``.grad``
    and the random generators. Recurrent layers on a GPU run without cuDNN, which has no gradient of
    them in evaluation mode. Where torch.distributed is initialised every process gives its share of
    the batches, and all get the mean over all of them.

    Of a network under ``fully_shard`` importances are DTensors, sharded as the parameters are. By
    samples every process has the whole network for the time, and all importances beside it; by
    batches (``reduction``) never: the batches of all processes, as many in each, are one then.

    Args:
        model: any module; its parameters' device is where the batches are.
        batches: of samples. Tensors, or tuples, lists and dicts of them, with samples in the first
            dimension can be taken apart; what cannot costs one backward a sample where a layer is
            not known, and is not checked.
        kind: "mas": F is the squared norm of the outputs (Aljundi et al. 2018, eq. 2 and 4).
            "fisher": F is log p(y|x) (Kirkpatrick et al. 2017).
        labels: y of "fisher": the data's, the likeliest that the model has "predicted", or
            "sampled" from the model's p, which is the Fisher information proper.
        likelihood: p of "fisher", by the outputs: "categorical", their softmax over classes;
            "gaussian", of unit variance around them (of which "predicted" is 0, and refused);
            "bernoulli", a sigmoid of each, of labels that are 0 or 1 each on its own.
        reduction: "sample", or "batch": the number of samples times |the gradient of a batch's mean
            F| (its square), for models whose rows mix. It depends on the batches and is smaller.
        norm: of "mas", the "sum" or the "mean" of the squared outputs of a sample.
        forward: model, batch -> (outputs [N, ...], targets [N] or None). By default a batch is x or
            (x, y) and the outputs are model(x). Categorical: logits [N, C, ...] (one alone is that
            of a sigmoid), targets [N, ...]. Others: targets of the outputs' shape. Outputs whose
            square is infinite (masked logits) are left out.
        segments: batch -> int64 [rows], the sample (row of the outputs) that each row of the
            network's input belongs to, where samples are groups of rows that may exchange messages
            inside, such as the nodes of a batch of graphs. Without effect on reduction "batch".
        parameters: names; by default all that require a gradient.
        memory: bytes that gradients of single samples and unfolded inputs may take.
        generator: of sampled labels; by default the global one, which is put back.
        check: compare the first samples of the first batch with the same samples alone.

    Returns:
        Name -> importance of the parameter's shape, float32 (float64).

    Raises:
        TypeError, ValueError: an argument, or what ``forward`` returns, is not as above.
        RuntimeError: the samples of a batch mix, so that exact importances do not exist; an
            importance is not finite; a layer's input was changed in place after it was read.
    """
    given = {
        "kind": kind, "labels": labels, "likelihood": likelihood, "reduction": reduction,
        "norm": norm,
    }  # fmt: skip
    _check_choices(given)
    if memory <= 0:
        raise ValueError(f"estimate: memory is {memory}, wanted more than 0 bytes")
    modules = all_modules(model)
    reshard(modules)
    like = _wanted(model, parameters)
    is_joint = reduction == "batch" and any(map(is_sharded, like.values()))
    with contextlib.nullcontext() if is_joint else gathered(modules):
        wanted = like if is_joint else _wanted(model, parameters)
        if not wanted:
            return {}
        names: dict[Tensor, str] = {}
        for name, p in wanted.items():
            names.setdefault(p, name)
        subject = Subject(
            model,
            forward or plain_forward,
            Objective(kind, labels, norm, generator, likelihood),
            names,
            {p: _zeros(p) for p in names},
            memory,
            segments,
        )
        with quiet(model, next(iter(wanted.values())).device):
            if is_joint:
                count = sum_of_joint_batches(subject, batches)
            else:
                run = _sum_of_batches if reduction == "batch" else _sum_of_samples
                count = run(subject, batches, check)
    if not is_joint:
        count = add_up(subject, wanted, like, count)
    if count == 0:
        raise ValueError("estimate: batches hold no sample, wanted at least one")
    _check_finite(subject)
    for omega in subject.omegas.values():
        local(omega).div_(count)
    return {name: subject.omegas[p] for name, p in wanted.items()}


def _sum_of_samples(subject: Subject, batches: Iterable[Any], check: bool) -> int:
    """Exact; the number of samples."""
    refuse_mixing(subject.model, messages=subject.segments is None)
    exact, total = Exact(subject), 0
    for batch in batches:
        records, labels, count = exact.record(batch)
        groups = subject.groups(batch, count)
        if groups is not None:
            groups.check_rows({r.dy.shape[0] for r in records if r.dy is not None and r.dy.dim()})
        if check and count:
            if groups is None:
                compare_alone(exact, batch, labels, count)
            else:
                check_groups(exact, batch, labels, groups)
            check = count == 1  # which has nothing to mix with
        exact.finish(batch, records, labels, count, groups)
        total += count
    return total


def _sum_of_batches(subject: Subject, batches: Iterable[Any], check: bool) -> int:
    """N |the gradient of the mean of F|, batch by batch; the number of samples."""
    total = 0
    with requiring(subject.omegas) as params:
        for batch in batches:
            outputs, targets = subject.outputs(batch)
            count = outputs.shape[0]
            if not count:
                continue
            labels = subject.objective.choose(outputs, targets)
            value = subject.objective.values(outputs, labels).mean()
            found = gradients_of(value, params)
            omegas = list(subject.omegas.values())
            mas_accumulate_(omegas, found, float(count), square=subject.square)
            total += count
    return total


def _check_choices(given: dict[str, str]) -> None:
    for name, value in given.items():
        if value not in _CHOICES[name]:
            wanted = " or ".join(repr(choice) for choice in _CHOICES[name])
            raise ValueError(f"estimate: {name} is {value!r}, wanted {wanted}")
    only = {"labels": "fisher", "likelihood": "fisher", "norm": "mas"}
    for name, kind in only.items():
        if given["kind"] != kind and given[name] != _CHOICES[name][0]:
            raise ValueError(
                f"estimate: {name} is {given[name]!r}, which kind {given['kind']!r} has not;"
                f" wanted {_CHOICES[name][0]!r}"
            )


def _wanted(model: nn.Module, parameters: Iterable[str] | None) -> dict[str, Tensor]:
    """The parameters to measure, by name."""
    found: dict[str, Tensor] = {}
    if parameters is None:
        found |= {n: p for n, p in model.named_parameters() if p.requires_grad}
        if not found:
            raise ValueError("estimate: no parameter of the model requires a gradient")
    else:
        if isinstance(parameters, str):
            raise TypeError("estimate: parameters is a str, wanted names in a list")
        for name in parameters:
            if (parameter := _parameter(model, name)) is None:
                raise ValueError(
                    f"estimate: parameters hold {name!r}, wanted names of the model's parameters"
                )
            found[name] = parameter
    for name, p in found.items():
        if not p.is_floating_point():
            raise TypeError(f"estimate: {name} is {p.dtype}, wanted a floating parameter")
    return found


def _parameter(model: nn.Module, name: str) -> Tensor | None:
    """The model's parameter of this name, None where it has none."""
    holder, _, leaf = str(name).rpartition(".")
    try:
        return model.get_submodule(holder)._parameters.get(leaf)
    except AttributeError:
        return None


def _zeros(parameter: Tensor) -> Tensor:
    wide = torch.float64 if parameter.dtype == torch.float64 else torch.float32
    if is_sharded(parameter):
        return torch.zeros_like(parameter, dtype=wide, requires_grad=False)
    return torch.zeros(parameter.shape, dtype=wide, device=parameter.device)


def _check_finite(subject: Subject) -> None:
    omegas = list(subject.omegas.values())
    odd = totals([(~local(o).isfinite()).any().long() for o in omegas], omegas, largest=True)
    for is_odd, parameter in zip(odd.tolist(), subject.omegas, strict=True):
        if is_odd:
            raise RuntimeError(
                f"estimate: the importance of {subject.names[parameter]} is not finite"
            )
