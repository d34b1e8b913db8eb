"""Terms of the loss: ``clarena.cl_algorithms.regularizers``."""

from maskcl.compat.clarena.cl_algorithms.regularizers import hat_mask_sparsity
from maskcl.compat.clarena.cl_algorithms.regularizers.hat_mask_sparsity import HATMaskSparsityReg

__all__ = ["HATMaskSparsityReg", "hat_mask_sparsity"]
