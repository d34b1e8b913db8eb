"""A traced model, and which units reach which of its values."""
