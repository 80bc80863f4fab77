"""The `memgrid` command."""
