"""Published tables run again: each file is one table's protocol, `runs` does the rest."""
