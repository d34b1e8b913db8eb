"""``clarena.cl_algorithms.regularisers.hat_mask_sparsity``, of versions before 1.1."""

from maskcl.compat.clarena.cl_algorithms.regularizers import HATMaskSparsityReg

__all__ = ["HATMaskSparsityReg"]
