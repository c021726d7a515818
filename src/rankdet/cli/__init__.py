"""The command `rankdet`: one file for each of its verbs."""
