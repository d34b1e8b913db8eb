"""A training run: the loop over tasks, what it measures, and the networks to compare with."""
