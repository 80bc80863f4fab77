"""The HTTP data plane, the pool and the pages."""
