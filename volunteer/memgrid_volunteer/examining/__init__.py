"""What `memgrid volunteer doctor` looks at, a part of the volunteer in each file."""
