"""CLArena's output heads for HAT: ``clarena.heads``."""

from maskcl.compat.clarena.heads.head_dil import HeadDIL
from maskcl.compat.clarena.heads.heads_til import HeadsTIL

__all__ = ["HeadDIL", "HeadsTIL"]
