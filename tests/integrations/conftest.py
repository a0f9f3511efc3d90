import gc

import pytest


@pytest.fixture(scope="package", autouse=True)
def _what_is_loaded_stays():
    """Trainers collect garbage at the end of each run: what the imports brought need not be looked through."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
