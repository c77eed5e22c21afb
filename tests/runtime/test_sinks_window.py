"""A window: it shows what it gets, at its pace, until somebody closes it; and it says so where there is none."""

import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from styleinv.runtime.errors import StyleInVError
from styleinv.runtime.sinks import open_sink, window

FRAME = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)


@pytest.fixture(scope="module")
def virtual_display():
    """The name of a display: the one that is there, or a new one of Xvfb's. Skips where there is neither."""
    pytest.importorskip("tkinter")
    if os.environ.get("DISPLAY"):
        yield os.environ["DISPLAY"]
        return
    if shutil.which("Xvfb") is None:
        pytest.skip("no display, and no Xvfb to make one")
    command = ["Xvfb", "-displayfd", "1", "-screen", "0", "1024x768x24"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        number = server.stdout.readline().strip()
        if not number:
            pytest.skip("no display, and Xvfb makes none")
        yield f":{number}"
        server.terminate()


@pytest.fixture
def display(virtual_display, monkeypatch):
    monkeypatch.setenv("DISPLAY", virtual_display)


@pytest.fixture
def clock(monkeypatch):
    """A clock that only `sleep` and the test move on; `clock.slept` says how long was slept."""
    clock = SimpleNamespace(now=100.0, slept=0.0)

    def sleep(seconds):
        clock.now += seconds
        clock.slept += seconds

    monkeypatch.setattr(window, "time", SimpleNamespace(monotonic=lambda: clock.now, sleep=sleep))
    return clock


def test_frames_are_shown_enlarged(display):
    with open_sink("window", 1000.0, (6, 8)) as sink:
        for frame in (FRAME, 255 - FRAME):
            sink.write(frame)
            assert (sink._picture.width(), sink._picture.height()) == (8 * 64, 6 * 64)
            for y, x in ((0, 0), (3, 5), (5, 7)):
                for inside in (0, 63):
                    assert sink._picture.get(64 * x + inside, 64 * y + inside) == tuple(frame[y, x])
        assert sink._window.winfo_width() == 8 * 64 and sink._window.winfo_viewable()


def test_large_frames_are_shown_as_they_are(display):
    with open_sink("window", 1000.0, (300, 400)) as sink:
        sink.write(np.zeros((300, 400, 3), np.uint8))
        assert (sink._picture.width(), sink._picture.height()) == (400, 300)


def test_frames_come_at_their_pace(display, clock):
    with open_sink("window", 10.0, (6, 8)) as sink:
        for slept in (0.0, 0.1, 0.2, 0.3):  # the first at once
            sink.write(FRAME)
            assert clock.slept == pytest.approx(slept)
        clock.now += 0.06  # a frame that takes part of its time to compute
        sink.write(FRAME)
        assert clock.slept == pytest.approx(0.34)
        clock.now += 0.75  # one that takes far longer is shown at once, and those after it do not hurry
        sink.write(FRAME)
        assert clock.slept == pytest.approx(0.34)
        sink.write(FRAME)
        assert clock.slept == pytest.approx(0.44)
    assert clock.slept == pytest.approx(0.54)  # the last one stays as long as the others


def test_an_error_closes_the_window_at_once(display, clock):
    with pytest.raises(KeyError), open_sink("window", 0.01, (6, 8)) as sink:
        sink.write(FRAME)
        raise KeyError
    assert clock.slept == 0.0


@pytest.mark.parametrize("how", ["<Escape>", "q", "close", "destroy"])
def test_whoever_closes_it_ends_the_rollout(display, clock, how):
    with pytest.raises(BrokenPipeError, match="the window was closed"), open_sink("window", 10.0, (6, 8)) as sink:
        sink.write(FRAME)
        if how == "close":  # as window managers ask for it
            sink._window.tk.call(sink._window.protocol("WM_DELETE_WINDOW"))
        elif how == "destroy":  # as they do it where a window does not answer
            sink._window.destroy()
        else:
            sink._window.focus_force()
            sink._window.event_generate(how)
        sink.write(FRAME)
    assert clock.slept < 0.1


PLAY = """
import sys
from styleinv.runtime.sinks import window
from styleinv.runtime.cli import main
write = window.WindowSink.write
count = 0

def write_and_leave(self, frame):
    global count
    count += 1
    if count == 3:
        self._leave()
    write(self, frame)

window.WindowSink.write = write_and_leave
sys.exit(main(["stream", sys.argv[1], "--frames", "0", "--threads", "1", "--out", "window"]))
"""


def test_stream_ends_quietly(display, tiny):
    finished = subprocess.run([sys.executable, "-c", PLAY, tiny.path], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    closing = finished.stderr.splitlines()[-1]
    assert closing.startswith("2 frames, ") and closing.endswith("written to window")


def test_no_display(monkeypatch):
    pytest.importorskip("tkinter")
    if not sys.platform.startswith("linux"):
        pytest.skip("only Linux tells by DISPLAY where windows go")
    monkeypatch.delenv("DISPLAY", raising=False)
    with pytest.raises(StyleInVError, match=r"window: found no display \(.*\), expected one; or write a video"):
        open_sink("window", 25.0, (8, 8))


def test_missing_tkinter(monkeypatch):
    monkeypatch.setitem(sys.modules, "tkinter", None)
    with pytest.raises(StyleInVError, match=r"window: found no tkinter \(.*\), expected it; install it"):
        open_sink("window", 25.0, (8, 8))
