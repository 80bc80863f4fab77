"""Cubes: what they contain, whose they are, and how a model uses them."""
