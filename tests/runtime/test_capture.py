"""The state machine of a CUDA graph: enqueued first, captured once, replayed then; and what leads back or out."""

import pytest
from fake_device import FakeDevice

from styleinv.runtime.errors import EngineError
from styleinv.runtime.sessions.capture import Launcher


class Work:
    """Work that the engine takes, or refuses; `done` counts how often it was done."""

    def __init__(self, capture=True):
        self.device, self.takes, self.done = FakeDevice(), True, 0
        with self.device.current():
            self.stream, self.event = self.device.stream(), self.device.event()
        self.launcher = Launcher(self.device, self.stream, self.enqueue, capture, "sky.engine")

    def enqueue(self):
        if self.takes:
            self.device.compute(self.stream.handle, self.do)
        return self.takes

    def do(self):
        self.done += 1

    def launch(self):
        """Launches it and waits; returns what the device was asked for."""
        with self.device.current():
            self.device.log.clear()
            self.launcher.launch()
            asked = self.device.operations()
            self.device.record(self.event, self.stream)
            self.device.synchronize(self.event)
        return asked


def test_enqueued_then_captured_then_replayed():
    work = Work()
    assert work.launch() == ["enqueue"]
    assert work.launch() == ["begin_capture", "enqueue", "end_capture", "launch"]
    assert work.launch() == work.launch() == ["launch"]
    assert work.done == 4 and work.launcher.state == "replaying"


def test_without_capture_every_run_is_enqueued():
    work = Work(capture=False)
    assert [work.launch() for _ in range(3)] == [["enqueue"]] * 3


@pytest.mark.parametrize("failing", ["begin_capture", "a null graph"])
def test_what_cannot_be_captured_is_enqueued_for_ever(failing):
    work = Work()
    work.device.fails, work.device.can_capture = {failing}, failing != "a null graph"
    work.launch()
    assert work.launch()[-1] == "enqueue" and work.launcher.state == "plain"
    assert work.launch() == ["enqueue"] and work.done == 3
    work.takes = False
    with pytest.raises(EngineError, match=r"sky.engine: found a run that the engine refused"):
        work.launch()
    work.takes = True
    assert work.launch() == work.launch() == ["enqueue"]


def test_a_run_that_is_refused_begins_anew():
    work = Work()
    work.takes = False
    with pytest.raises(EngineError, match="refused"):
        work.launch()
    assert work.launcher.state == "fresh"
    work.takes = True
    work.launch()
    work.takes = False
    with pytest.raises(EngineError, match="refused"):  # while it is captured, and then by itself
        work.launch()
    assert work.device.operations() == ["begin_capture", "end_capture", "free_graph"]
    work.takes = True
    assert "launch" not in work.launch() and work.done == 2


def test_a_launch_that_fails_is_not_repeated():
    work = Work()
    work.launch(), work.launch()
    work.device.fails = {"launch"}
    with pytest.raises(EngineError, match="launch failed"):
        work.launch()
    assert work.device.operations() == ["launch", "free_graph"]
    work.device.fails = set()
    assert work.launch() == ["enqueue"] and work.launch()[0] == "begin_capture"


def test_an_exception_ends_the_capture():
    work = Work()
    work.launch()

    def interrupted():
        raise KeyboardInterrupt

    work.launcher._enqueue = interrupted
    with pytest.raises(KeyboardInterrupt):
        work.launch()
    assert work.device.operations() == ["begin_capture", "end_capture", "free_graph"]
    assert work.device.capturing is None
