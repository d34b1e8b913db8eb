"""Other projects' names on this engine: change an import line, not your code.

Nothing is imported here: ``maskcl.compat.begin`` is asked for by its own name.
"""
