"""One task's network for use elsewhere: small, ordinary, measured, and as a file."""

from maskcl.export.compact_network import compact
from maskcl.export.flops_and_latency import Cost, Report, report
from maskcl.export.save_file import save

__all__ = ["Cost", "Report", "compact", "report", "save"]
