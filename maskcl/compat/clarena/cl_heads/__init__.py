"""``clarena.cl_heads``, as early versions called ``clarena.heads``."""

from maskcl.compat.clarena.heads import HeadsTIL

__all__ = ["HeadsTIL"]
