"""Data sets: found, read, checked, split, summarised and loaded."""
