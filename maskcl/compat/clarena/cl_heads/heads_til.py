"""``clarena.cl_heads.heads_til``, as versions before 1.1 called ``clarena.heads.heads_til``."""

from maskcl.compat.clarena.heads.heads_til import HeadsTIL

__all__ = ["HeadsTIL"]
