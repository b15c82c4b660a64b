"""Data: shards (the format), stream (order, mix, batches), prepare, sources, and the embedded shapes."""
