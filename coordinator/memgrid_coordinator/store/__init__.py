"""Everything durable, and the only place that knows SQL."""
