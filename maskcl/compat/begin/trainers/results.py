"""The result of a run: metrics, what is printed, what is saved."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

from torch import Tensor

from maskcl import metrics
from maskcl.files import write_atomic


def metrics_of(matrix: Tensor, untrained: Tensor | None) -> dict[str, Any]:
    """AP, AF and FWT of a matrix [T, T + 1] of scores.

    AP = mean of the last row. AF = sum over tasks but the last of (M[j, j] - M[T-1, j]), divided by
    T - 1: positive where something was forgotten. FWT, with ``untrained`` [T + 1] alone, = sum over
    tasks but the first of (M[j-1, j] - untrained[j]), divided by T - 1; else None.
    """
    scores = matrix[:, :-1].double().numpy()
    before = None if untrained is None else untrained[:-1].double().numpy()
    forward = None if before is None else metrics.forward_transfer(scores, before).value
    return {
        "exp_results": matrix,
        "AP": metrics.average_performance(scores).value,
        "AF": metrics.average_forgetting(scores).value,
        "FWT": forward,
    }


def summary(found: dict[str, Any], final: dict[str, Any]) -> dict[str, Any]:
    """The metrics by BeGin's names, and INT where there is a joint model."""
    rest: dict[str, Any] = {f"exp_{name}": final[name] for name in ("AP", "AF", "FWT")}
    if "accum_test" in found:
        joint = found["accum_test"][:, :-1].diagonal().double().numpy()
        scores = found["exp_test"][:, :-1].double().numpy()
        rest["exp_INT"] = metrics.intransigence(scores, joint).value
    return rest


def show(found: dict[str, Any]) -> None:
    """Print the result."""
    print("init_acc:", found["init_test"][:-1].numpy())
    print("algo_acc_mat:", found["exp_test"][:, :-1].numpy())
    for name in ("AP", "AF", "FWT"):
        if found[f"exp_{name}"] is not None:
            print(f"{name}:", round(found[f"exp_{name}"], 4))
    if "accum_test" in found:
        print("joint_acc_mat:", found["accum_test"][:, :-1].numpy())
        print("intransigence:", round(found["exp_INT"], 4))


def save(folder: str | os.PathLike[str], name: str, found: dict[str, Any]) -> Path:
    """Write the matrices as a pickled dict of numpy arrays; the file, ``name`` with .pkl behind."""
    path = Path(folder) / f"{name}.pkl"
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {name: v.numpy() for name, v in found.items() if isinstance(v, Tensor)}
    write_atomic(path, pickle.dumps(arrays))
    return path
