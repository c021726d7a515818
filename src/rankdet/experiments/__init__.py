"""The experiments of the paper: tables of runs, what they measured, and what can be said of it."""
