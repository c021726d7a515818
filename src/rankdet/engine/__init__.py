"""Training and its loop, evaluation of a model, and the files both leave behind."""
