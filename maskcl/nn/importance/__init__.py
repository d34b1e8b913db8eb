"""One network with an importance and an anchor a parameter (MAS, EWC)."""
