"""What every network of tasks has: the active task, heads, norms, and modules in others' places."""
