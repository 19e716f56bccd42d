"""An interruption is heard once, wherever it comes."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from search import interrupts


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in interrupts.SIGNALS}
    interrupts.listen()
    yield
    interrupts.listen()
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", interrupts.SIGNALS)
def test_a_signal_interrupts(number: signal.Signals) -> None:
    interrupts.check()
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), number)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_one_that_python_drops_is_heard_later() -> None:
    class Dropped:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGINT)

    Dropped()
    with pytest.raises(KeyboardInterrupt):
        interrupts.check()


def test_where_it_has_to_wait_it_is_heard_afterwards() -> None:
    with interrupts.deferred():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        interrupts.check()


def test_on_the_way_out_nothing_is_heard() -> None:
    interrupts.ignore()
    os.kill(os.getpid(), signal.SIGTERM)
    interrupts.check()
