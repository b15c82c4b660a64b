"""Where captioned pictures come from: one file per kind, all answering the same two questions (see captioned.py)."""
