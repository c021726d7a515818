"""Recipes: what a run is, in a file that is checked before anything is built.

`recipe` says what a recipe may hold, `load` reads it, `build` makes objects of it, `assemble`
everything that a training takes. Reading one imports no PyTorch.
"""
