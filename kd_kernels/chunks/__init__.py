"""Losses of inputs that are never held whole."""
