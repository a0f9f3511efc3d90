"""Launch configurations. They are fixed: a timing run that chose among several would choose the order of sums with them."""

# One program goes over its row in blocks of this many entries, four to a thread. A sweep keeps up to four accumulators
# and two logits an entry in registers; so cut, every kernel compiles without spills for sm_80, sm_90, sm_100 and gfx942
# (tests/compile_only), which eight entries to a thread do not.
ROW_BLOCK = 1024
ROW_THREADS = 256

SCALE_BLOCK = 4096


def row_warps(threads_per_warp: int) -> int:
    return ROW_THREADS // threads_per_warp
