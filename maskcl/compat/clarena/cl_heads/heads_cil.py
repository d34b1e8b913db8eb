"""``clarena.cl_heads.heads_cil``, as versions before 1.1 called ``clarena.heads.heads_cil``."""

from maskcl.compat.clarena.heads.heads_cil import HeadsCIL

__all__ = ["HeadsCIL"]
