"""What the units of each kind contain, and how two answers are compared."""
