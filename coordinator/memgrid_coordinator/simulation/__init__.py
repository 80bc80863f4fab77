"""A grid of virtual hosts that is decided about by the real policies: what the rules of trust are worth, and cost."""
