"""The pointwise functions of each family, near and far: `value, h` of an entry. One file per family."""
