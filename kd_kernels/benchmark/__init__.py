"""What `kd-kernels bench` and the suite in bench/ measure, and how.

A *case* (case.py; rows.py, heads.py) says what is computed, on which inputs, what it must cost at least, and checks a
result against the truth (truth.py). A *provider* (providers.py, peers.py; eager.py) computes it: this library, eager
PyTorch, torch.compile, a peer. `measure` (measure.py) brings them together: correctness first, then memory (memory.py),
then time (timing.py). The *measurement* is reported as a table, JSON or CSV (report.py), or drawn (plot.py,
sweep_plot.py).

A new target is a module like rows.py and a row in TARGETS.
"""

# Name -> module with ROWS, how many a case has by default, OPTIONS, the arguments that are for this target alone, and
# `cases(args) -> list[Case]`, from the parsed command line.
TARGETS = {"rows": "kd_kernels.benchmark.rows", "heads": "kd_kernels.benchmark.heads"}

# Who can be asked to compute a case: this library, eager PyTorch, torch.compile of the same, and peers.
PROVIDERS = ("kd", "eager", "compile", "liger", "trl")
