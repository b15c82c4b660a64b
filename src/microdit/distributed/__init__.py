"""Processes that train together: starting them, strategies, sharding."""
