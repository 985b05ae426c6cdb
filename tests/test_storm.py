"""A short storm of faults; `python tests/storm.py --kills=100` is a long one."""

import pytest

from storm import FAULTS, storm


@pytest.mark.slow
def test_faults_at_random_moments_leave_no_trace(tmp_path):
    counts, finished, failures = storm(kills=6, ranks=1, seed=1, folder=tmp_path, report=lambda line: None)
    assert not failures and finished > 0 and sum(counts.values()) == 6 and set(counts) <= set(FAULTS)
