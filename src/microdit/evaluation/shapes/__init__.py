"""Metrics of the embedded shapes, whose pictures can be read back by measuring."""
