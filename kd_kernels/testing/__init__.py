"""Inputs, truth and error budgets shared by the tests, the benchmarks and `kd-kernels selftest`."""
