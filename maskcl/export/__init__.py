"""One task's network for use elsewhere: small, ordinary, measured, and as a file."""

from maskcl.export.files import save
from maskcl.export.measure import Cost, Report, report
from maskcl.export.shrink import compact

__all__ = ["Cost", "Report", "compact", "report", "save"]
