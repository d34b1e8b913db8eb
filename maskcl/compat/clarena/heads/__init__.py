"""CLArena's output heads: ``clarena.heads``."""

from maskcl.compat.clarena.heads.head_dil import HeadDIL
from maskcl.compat.clarena.heads.heads_cil import HeadsCIL
from maskcl.compat.clarena.heads.heads_til import HeadsTIL

__all__ = ["HeadsTIL", "HeadsCIL", "HeadDIL"]
