"""Long computations as plain functions over files."""
