"""The pool: finding, fetching and keeping cubes."""
