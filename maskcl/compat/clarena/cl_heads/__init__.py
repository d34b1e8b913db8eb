"""``clarena.cl_heads``, as versions before 1.1 called ``clarena.heads``."""

from maskcl.compat.clarena.heads import HeadsCIL, HeadsTIL

__all__ = ["HeadsTIL", "HeadsCIL"]
