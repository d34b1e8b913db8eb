"""``clarena.cl_algorithms.regularisers``, as versions before 1.1 spelled ``regularizers``."""

from maskcl.compat.clarena.cl_algorithms.regularisers import hat_mask_sparsity
from maskcl.compat.clarena.cl_algorithms.regularisers.hat_mask_sparsity import HATMaskSparsityReg

__all__ = ["HATMaskSparsityReg", "hat_mask_sparsity"]
