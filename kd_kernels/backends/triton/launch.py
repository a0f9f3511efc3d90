"""Launch configurations. They are fixed: a timing run that chose among several would choose the order of sums too."""

# One program goes over its row in blocks of this many entries, four to a thread. A sweep keeps up to four accumulators
# and two logits an entry in registers; so cut, every kernel compiles without spills for sm_80, sm_90, sm_100 and gfx942
# (tests/compile_only), which eight entries to a thread do not.
ROW_BLOCK = 1024
_ROW_THREADS = 256

SCALE_BLOCK = 4096

# A tail's sweeps keep little in registers: eight entries to a thread, of which a 16-bit dtype loads 16 bytes at once.
TAIL_BLOCK = 2048
LISTED_BLOCK = 256


def row_options(family: str, amd: bool) -> dict[str, int | bool]:
    """Options of the row kernel's launch."""
    options = tail_options(amd)
    if not amd:
        # Four programs, AKL's three, share a multiprocessor's 65,536 registers. Left to itself ptxas aims at five and
        # spills.
        options["maxnreg"] = 80 if family == "akl" else 64
    return options


def tail_options(amd: bool) -> dict[str, int | bool]:
    """Options of the launches over a row's tail."""
    return {"num_warps": _ROW_THREADS // (64 if amd else 32), "enable_fp_fusion": False}


def sinkhorn_options(amd: bool) -> dict[str, int | bool]:
    """Options of the Sinkhorn kernels' launches: 16 entries of a tile to a thread, two programs to a multiprocessor."""
    return tail_options(amd) | ({} if amd else {"maxnreg": 128})


# A tile of costs is L1_TILE rows by as many; L1_STEP columns of the vocabulary at a time, L1_CHUNK to a sum of its own.
# Where there are few tiles, at least L1_PROGRAMS programs share the vocabulary: two for every multiprocessor of a large
# GPU.
L1_TILE, L1_STEP, L1_CHUNK, L1_PROGRAMS = 64, 8, 512, 264
# Of the derivative: rows and columns of a tile, rows of the other side at a time.
L1_GAIN = 32, 128, 8
L1_BLOCK = 2048


def l1_options(amd: bool) -> dict[str, int | bool]:
    """Options of the launches over pairs of rows: 16 sums to a thread, and all the registers it wants."""
    return tail_options(amd)
