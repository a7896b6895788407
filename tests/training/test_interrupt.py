import os
import signal
import threading

import pytest

from cvt.runtime import stop_requests


@pytest.mark.parametrize("which", [signal.SIGINT, signal.SIGTERM])
def test_the_first_request_waits_and_the_second_does_not(which):
    before = signal.getsignal(which)
    with stop_requests() as stop:
        assert not stop.is_set
        os.kill(os.getpid(), which)
        assert stop.is_set
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), which)
    assert signal.getsignal(which) is before


def test_other_threads_work_without_signals():
    seen = []

    def work():
        with stop_requests() as stop:
            seen.append(stop.is_set)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]
