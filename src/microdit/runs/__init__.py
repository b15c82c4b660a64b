"""The run folder: its file names, configuration, result, and how runs are found and compared."""
