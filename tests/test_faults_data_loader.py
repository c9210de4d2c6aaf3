"""Loader processes: too little shared memory, killed ones, stalled drives."""

from src.data.build import workers_that_fit


def test_f38_fewer_workers_where_shared_memory_is_small(caplog):
    assert workers_that_fit(8, 10**6, None) == 8
    assert workers_that_fit(8, 10**6, 24 * 10**6) == 8
    assert caplog.text == ""
    assert workers_that_fit(8, 10**6, 20 * 10**6) == 6
    assert "using 6. In Docker give --shm-size" in caplog.text
    assert workers_that_fit(8, 10**9, 10**6) == 0
