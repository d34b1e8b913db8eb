"""A task's masks as a file of one bit a weight, bound to the weights under them."""

from maskcl.masks.mask_file import MaskFile, MaskFileError, read_masks
from maskcl.masks.transfer import export_masks, import_masks

__all__ = ["MaskFile", "MaskFileError", "export_masks", "import_masks", "read_masks"]
