"""Products with a sparse matrix that is the same in every step."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from maskcl.ops._autograd import OpFunction

_KEPT = "_maskcl_transposed"


class _SparseProduct(OpFunction):
    """matrix @ dense; the gradient is the transposed matrix times the gradient of the product."""

    @staticmethod
    def forward(matrix: Tensor, dense: Tensor) -> Tensor:
        return matrix @ dense

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.matrix = inputs[0]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        return None, _transposed(ctx.matrix) @ grad


def sparse_product(matrix: Tensor, dense: Tensor) -> Tensor:
    """matrix @ dense, [M, N] @ [N, C] -> [M, C].

    torch sorts a sparse matrix anew in every backward, which takes longer than the product. Here
    its transpose is made once and kept with it.

    Args:
        matrix: sparse CSR, itself without a gradient.
        dense: strided; the product is computed in the matrix's dtype, under autocast too.
    """
    return _SparseProduct.apply(matrix, dense.to(matrix.dtype))


def is_constant_csr(value: Any) -> bool:
    """Whether it is a sparse CSR tensor that needs no gradient."""
    is_csr = isinstance(value, Tensor) and value.layout == torch.sparse_csr
    return is_csr and not value.requires_grad


def _transposed(matrix: Tensor) -> Tensor:
    kept = getattr(matrix, _KEPT, None)
    if kept is None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*Sparse CSR.*")
            kept = matrix.t().to_sparse_csr()
        setattr(matrix, _KEPT, kept)
    return kept
