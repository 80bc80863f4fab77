"""What a model's honest hosts and its cheats look like, made on this machine with the real code."""
