"""What the coordinator does: one verb, one transaction."""
