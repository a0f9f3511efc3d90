"""Divergences whose logits are never held whole: a chunk of rows, or of the vocabulary, at a time."""
