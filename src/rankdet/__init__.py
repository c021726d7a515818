"""Ranking-based losses for object detection: exact, fast, tested."""

__version__ = "0.1.0.dev0"
