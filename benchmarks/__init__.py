"""Benchmarks: correctness first, then time and memory beside named rivals, as rows of CSV."""
