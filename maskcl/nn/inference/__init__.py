"""Which task a sample is of, from sums over the tasks' training samples."""
