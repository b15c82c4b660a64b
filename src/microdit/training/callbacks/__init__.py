"""What watches a run: telemetry, progress, pictures, checkpoints, stopping, loggers."""
