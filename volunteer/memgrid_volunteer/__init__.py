"""The volunteer: a small supervisor that holds the keys, and a worker child that computes."""
