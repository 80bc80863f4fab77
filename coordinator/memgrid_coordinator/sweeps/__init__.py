"""Idempotent reconcilers that look only at stored state."""
