"""The coordinator: hands out work units, checks what comes back, publishes cubes."""
