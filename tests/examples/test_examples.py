"""The examples do what they say, run as a user runs them."""

import http.client
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest

from styleinv.runtime import Rollout

EXAMPLES = Path(__file__).parents[2] / "examples"
LONG = 60.0  # seconds, within which everything happens that happens at all

# What examples/window.py uses of tkinter, for machines without a display. Its user presses keys as pictures come.
FAKE_TKINTER = """
import time

class TclError(Exception):
    pass

class Tk:
    def __init__(self, className):
        self.waiting, self.keys, self.gone = [], {}, False
    def after(self, milliseconds, call):
        self.waiting.append((time.monotonic() + milliseconds / 1000, call))
    def bind(self, key, call):
        self.keys[key] = call
    def destroy(self):
        self.gone = True
    def mainloop(self):
        presses = {3: "space", 6: "Up", 8: "Down", 10: "Left", 12: "Right", 14: "Home", 20: "Escape"}
        while not self.gone:
            try:
                self.call_next()
                key = presses.pop(PhotoImage.shown, None)
                if key:
                    self.keys[f"<{key}>"](None)
                if key == "space":  # paused: nothing is shown, until it is pressed again
                    for _ in range(20):
                        self.call_next()
                    assert PhotoImage.shown == 3
                    self.keys["<space>"](None)
            except Exception as error:
                self.report_callback_exception(type(error), error, error.__traceback__)
    def call_next(self):
        due, call = self.waiting.pop(0)
        time.sleep(max(0.0, due - time.monotonic()))
        call()

class PhotoImage:
    shown = 0
    def __init__(self, master):
        pass
    def configure(self, data, format):
        assert format == "ppm" and data.startswith(b"P6 512 512 255\\n") and len(data) == 15 + 3 * 512 * 512
        PhotoImage.shown += 1

class Label:
    def __init__(self, master, image):
        pass
    def pack(self):
        pass
"""


def command(example, *arguments):
    return [sys.executable, str(EXAMPLES / example), *map(str, arguments)]


@contextmanager
def running(example, *arguments, **environment):
    """The example in a process of its own, which is ended if it does not end by itself."""
    process = subprocess.Popen(
        command(example, *arguments),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment},
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def run(example, *arguments, **environment):
    """Runs the example to its end."""
    return subprocess.run(
        command(example, *arguments),
        capture_output=True, text=True, timeout=LONG, check=False, env={**os.environ, **environment},
    )  # fmt: skip


def stopped(process, number):
    """Sends the signal and waits; exit status, standard output and standard error."""
    process.send_signal(number)
    out, err = process.communicate(timeout=LONG)
    return process.returncode, out, err


def wait_until(holds):
    deadline = time.monotonic() + LONG
    while not (found := holds()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return found


def test_ten_lines(small_bundle, tmp_path):
    assert len((EXAMPLES / "ten_lines.py").read_text().splitlines()) == 10
    finished = run("ten_lines.py", small_bundle, f"{tmp_path / 'pictures'}/")
    assert finished.returncode == 0, finished.stderr
    assert len(list((tmp_path / "pictures").glob("*.png"))) == 50


def test_window_with_a_tkinter_that_has_no_display(small_bundle, tmp_path):
    (tmp_path / "tkinter.py").write_text(FAKE_TKINTER)
    finished = run("window.py", small_bundle, 3, PYTHONPATH=str(tmp_path))
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.startswith("20 frames shown")


def test_window_says_that_there_is_no_display(small_bundle):
    pytest.importorskip("tkinter")
    finished = run("window.py", small_bundle, DISPLAY="")
    assert finished.returncode == 1 and "Traceback" not in finished.stderr
    assert finished.stderr.startswith("window.py: found no display (") and finished.stderr.count("\n") == 1


def test_window_says_that_there_is_no_tkinter(small_bundle, tmp_path):
    (tmp_path / "tkinter.py").write_text("raise ImportError('not installed')")
    finished = run("window.py", small_bundle, PYTHONPATH=str(tmp_path))
    assert finished.returncode == 1
    assert finished.stderr.startswith("window.py: found no tkinter (not installed), expected one")


@pytest.mark.skipif(shutil.which("Xvfb") is None, reason="Xvfb is not installed")
def test_window_on_a_screen(small_bundle, tmp_path):
    pytest.importorskip("tkinter")
    screen = ["Xvfb", "-displayfd", "1", "-screen", "0", "640x640x24", "-fbdir", str(tmp_path)]
    with subprocess.Popen(screen, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        try:
            display = server.stdout.readline().strip()

            def colours():
                return len(np.unique(screenshot(tmp_path / "Xvfb_screen0").reshape(-1, 4), axis=0))

            assert colours() == 1
            with running("window.py", small_bundle, 3, DISPLAY=f":{display}") as window:
                wait_until(lambda: colours() > 20)
                before = screenshot(tmp_path / "Xvfb_screen0")
                wait_until(lambda: (screenshot(tmp_path / "Xvfb_screen0") != before).any())
                status, out, err = stopped(window, signal.SIGINT)
            assert status == 0, err
            assert "frames shown" in out
        finally:
            server.terminate()


def screenshot(file):
    """The screen [640, 640, 4], in blue, green, red and nothing, as Xvfb keeps it: an XWD file."""
    data = file.read_bytes()
    header = struct.unpack(">25I", data[:100])
    offset = header[0] + 12 * header[19]  # the header's size, and the colours' number
    return np.frombuffer(data, np.uint8, 640 * 640 * 4, offset).reshape(640, 640, 4)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def answer(port, path):
    """The server's answer, once it listens."""

    def connected():
        try:
            connection.connect()
        except ConnectionRefusedError:
            return False
        return True

    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LONG)
    wait_until(connected)
    connection.request("GET", path)
    response = connection.getresponse()
    connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # leaves at once
    return response, connection


def pictures(response, count):
    """The JPEG files of the next parts."""
    for _ in range(count):
        assert response.readline() == b"--frame\r\n"
        assert response.readline() == b"Content-Type: image/jpeg\r\n"
        size = int(response.readline().removeprefix(b"Content-Length: "))
        assert response.readline() == b"\r\n"
        picture = response.read(size)
        assert response.readline() == b"\r\n"
        yield picture


def test_web_server(small_bundle):
    pytest.importorskip("aiohttp")
    av = pytest.importorskip("av")
    port = free_port()
    with running("web_server.py", small_bundle, "--port", port) as server:
        page, connection = answer(port, "/?seed=3")
        assert page.status == 200 and b'<img src="/clip.mjpeg?seed=3"' in page.read()
        connection.close()
        for seed in ("-1", "x", 2**64):
            refused, connection = answer(port, f"/clip.mjpeg?seed={seed}")
            assert refused.status == 400 and b"expected a whole number" in refused.read()
            connection.close()

        viewers = [answer(port, f"/clip.mjpeg?seed={seed}") for seed in (3, 4)]
        assert viewers[0][0].getheader("Content-Type") == "multipart/x-mixed-replace; boundary=frame"
        first = [next(pictures(response, 1)) for response, _ in viewers]
        assert first[0] != first[1]
        with Rollout.open(small_bundle, seed=3) as rollout:
            (decoded,) = av.CodecContext.create("mjpeg", "r").decode(av.Packet(first[0]))
            difference = decoded.to_ndarray(format="rgb24").astype(float) - rollout[0]
            assert np.abs(difference).mean() < 8
        for response, _ in viewers:
            for picture in pictures(response, 2):
                (decoded,) = av.CodecContext.create("mjpeg", "r").decode(av.Packet(picture))
                assert (decoded.height, decoded.width) == (16, 16)

        viewers[0][0].close()
        viewers[0][1].close()
        lines = iter(server.stdout.readline, "")
        assert any(line.startswith("seed 3: ") for line in lines)  # its player was closed
        assert len(list(pictures(viewers[1][0], 3))) == 3  # the other one goes on
        begin = time.monotonic()
        status, out, err = stopped(server, signal.SIGTERM)
        assert status == 0 and "Traceback" not in err, err
        assert "seed 4: " in out and time.monotonic() - begin < 30  # it does not wait for the viewer to leave
        viewers[1][1].close()


@pytest.fixture
def frame_ring(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    import frame_ring

    yield frame_ring
    del sys.modules["frame_ring"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_frames_in_shared_memory(small_bundle, frame_ring, number):
    with running("shared_memory_server.py", small_bundle, "--seed", 3) as server:
        name = server.stdout.readline().strip()
        for _ in range(2):  # that the first one has ended takes nothing from the second
            client = run("shared_memory_client.py", name, 5)
            assert client.returncode == 0 and client.stderr == ""
            lines = client.stdout.splitlines()
            assert len(lines) == 5
        with Rollout.open(small_bundle, seed=3) as rollout, closing(frame_ring.RingReader(name)) as reader:
            red, green, blue = rollout[float(lines[-1].split()[2].rstrip(":"))].mean(axis=(0, 1))
            assert lines[-1].endswith(f"mean colour {red:.1f} {green:.1f} {blue:.1f}")
            t, frame = reader.read(lambda frame, t: (t, frame.copy()))
            np.testing.assert_array_equal(frame, rollout[t])
        with running("shared_memory_client.py", name, 10**6) as client:
            client.stdout.readline()
            status, _, err = stopped(server, number)
            assert (status, err) == (0, "the shared memory is removed\n")
            _, err = client.communicate(timeout=LONG)
            assert (client.returncode, err) == (1, "the server has ended\n")
    late = run("shared_memory_client.py", name)
    assert late.returncode == 1 and "is the server running?" in late.stderr


def test_shared_memory_is_removed_after_a_kill(small_bundle, frame_ring):
    with running("shared_memory_server.py", small_bundle) as server:
        name = server.stdout.readline().strip()
        with closing(frame_ring.RingReader(name)) as reader:
            assert reader.read(lambda frame, t: t) is not None
            server.kill()
            server.communicate(timeout=LONG)
            with pytest.raises(TimeoutError, match="found no new frame"):
                while reader.read(lambda frame, t: t, timeout=0.1) is not None:
                    pass

    def gone():
        try:
            frame_ring.attach(name).close()
        except FileNotFoundError:
            return True

    wait_until(gone)


def test_a_frame_that_was_overwritten_meanwhile_is_not_used(frame_ring):
    seen = []
    with closing(frame_ring.RingWriter(2, 3, slots=4)) as writer, closing(frame_ring.RingReader(writer.name)) as reader:

        def slow(frame, t):
            first = frame[0, 0, 0].item()
            if len(seen) < 2:
                for n in range(10 * len(seen) + 1, 10 * len(seen) + 5):  # the writer comes round once
                    writer.write(np.full((2, 3, 3), n, np.uint8), n)
            seen.append(first)
            return first, frame[-1, -1, -1].item(), t

        writer.write(np.zeros((2, 3, 3), np.uint8), 0)
        assert reader.read(slow) == (14, 14, 14) and seen == [0, 4, 14]
        with pytest.raises(TimeoutError):
            reader.read(slow, timeout=0.01)  # each frame once
        writer.write(np.ones((2, 3, 3), np.uint8), 15)
        with pytest.raises(ValueError, match="read-only"):
            reader.read(lambda frame, t: frame.fill(0))


def test_a_frame_that_is_being_written_is_not_used(frame_ring):
    class Slow:
        """A frame, before whose bytes are there the reader looks."""

        def __array__(self, dtype=None, copy=None):
            with pytest.raises(TimeoutError):
                reader.read(lambda frame, t: t, timeout=0.01)
            return np.ones((2, 3, 3), np.uint8)

    with closing(frame_ring.RingWriter(2, 3, slots=1)) as writer, closing(frame_ring.RingReader(writer.name)) as reader:
        writer.write(np.zeros((2, 3, 3), np.uint8), 0)
        writer.write(Slow(), 1)
        assert reader.read(lambda frame, t: (t, frame.min())) == (1, 1)


def test_no_torn_frame_is_used_while_the_writer_hurries(frame_ring):
    stop = threading.Event()
    with (
        closing(frame_ring.RingWriter(64, 64, slots=2)) as writer,
        closing(frame_ring.RingReader(writer.name)) as reader,
    ):

        def write():
            n = 0
            while not stop.is_set():
                writer.write(np.full((64, 64, 3), n % 251, np.uint8), n)
                n += 1

        writing = threading.Thread(target=write)
        writing.start()
        try:
            for _ in range(300):
                low, high, t = reader.read(lambda frame, t: (frame.min(), frame.max(), t), timeout=LONG)
                assert low == high == t % 251
        finally:
            stop.set()
            writing.join()
