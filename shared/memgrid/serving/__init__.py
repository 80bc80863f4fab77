"""Talk to a model with cubes: choose them, answer with them, and serve the answers."""
