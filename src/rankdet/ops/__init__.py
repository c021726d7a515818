"""Tensor maths without state: the ranking operator, boxes, and checks at the public doors."""
