"""Other projects' names on this engine: change an import line, not your code.

Nothing is imported here: ``maskcl.compat.begin`` and the others are asked for by their own names.
"""
