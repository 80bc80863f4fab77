"""Looks at the machine: each probe sees one thing, or says why it can't."""
