"""Distillation of one causal language model into another: what `kd-kernels distill` runs."""
