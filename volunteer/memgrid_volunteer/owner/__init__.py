"""The owner of the machine comes first: what is seen, what is wanted, and what may run."""
