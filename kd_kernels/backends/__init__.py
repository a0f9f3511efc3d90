"""Implementations of the ops, interchangeable. None imports another; `select` says which one runs."""
