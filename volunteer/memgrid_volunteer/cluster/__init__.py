"""A donor's cluster as one host: what runs on its nodes, and how the supervisor works with them."""
