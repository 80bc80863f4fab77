"""The pages that people look at, and the same as JSON."""
