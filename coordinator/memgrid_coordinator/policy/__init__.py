"""Decisions: values in, value out, no clock, no database."""
