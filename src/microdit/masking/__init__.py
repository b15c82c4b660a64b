"""Masking methods: which patches are dropped and how tokens travel, one file a method behind one contract."""
