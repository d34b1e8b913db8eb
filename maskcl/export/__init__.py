"""One task's network for use elsewhere: small, ordinary, and as a file."""

from maskcl.export.shrink import compact

__all__ = ["compact"]
