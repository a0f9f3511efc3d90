"""What `kd-kernels bench` and the suite in bench/ measure, and how.

A *case* (case.py; rows.py, heads.py, transport.py) says what is computed, on which inputs, what it must cost at least,
and checks a result against the truth (truth.py, transport_truth.py). A *provider* (providers.py, peers.py; eager.py,
transport_eager.py) computes it: this library, eager PyTorch, torch.compile, a peer. `measure` (measure.py) brings them
together: correctness first, then memory (memory.py), then time (timing.py). The *measurement* is reported as a table,
JSON or CSV (report.py), or drawn (plot.py, sweep_plot.py).

A new target is a module like rows.py and a row in TARGETS.
"""

# Name -> module with KINDS, what it measures, ROWS and DTYPE, the defaults of a case, OPTIONS, the arguments for this
# target alone, and `cases(args) -> list[Case]`, from the parsed command line.
TARGETS = {name: f"kd_kernels.benchmark.{name}" for name in ("rows", "heads", "transport")}

# Who can be asked to compute a case: this library, eager PyTorch, torch.compile of the same, PyTorch another way, and
# peers.
PROVIDERS = ("kd", "eager", "compile", "plain", "liger", "trl", "pot")
