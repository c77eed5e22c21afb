"""A window that shows frames as they come, where there is a display."""

from __future__ import annotations

import time
from contextlib import suppress
from types import TracebackType

from styleinv.runtime.closing import Closing
from styleinv.runtime.errors import StyleInVError
from styleinv.runtime.frames import Frame

COMFORTABLE_PIXELS = 512  # smaller frames are enlarged, by a whole factor, up to this height and width
EVENT_SECONDS = 0.01  # how often keys and the mouse are looked after


class WindowSink(Closing):
    """Shows frames at `fps`; one that is late is shown at once. Escape, q or closing the window end it: `write` raises
    BrokenPipeError then.

    Raises: StyleInVError where Python has no tkinter or there is no display.
    """

    def __init__(self, fps: float, size: tuple[int, int]) -> None:
        try:
            import tkinter
        except ImportError as error:
            raise StyleInVError(
                f"window: found no tkinter ({error}), expected it; install it (Debian: python3-tk) or write a video"
            ) from error
        try:
            self._window = tkinter.Tk(className="StyleInV")
        except tkinter.TclError as error:
            raise StyleInVError(f"window: found no display ({error}), expected one; or write a video") from error
        self._gone = tkinter.TclError  # what a window that is no more raises
        self._seconds = 1.0 / fps
        self._due = time.monotonic()  # when the next frame is to be shown
        self._left = False
        self._scale = max(1, COMFORTABLE_PIXELS // max(size))
        self._picture = tkinter.PhotoImage(master=self._window)
        tkinter.Label(self._window, image=self._picture, borderwidth=0).pack()
        self._window.title("StyleInV")
        self._window.resizable(False, False)
        self._window.protocol("WM_DELETE_WINDOW", self._leave)
        for event in ("<Escape>", "q", "<Destroy>"):
            self._window.bind(event, self._leave)

    def write(self, frame: Frame) -> None:
        """Waits until the frame, uint8 [H, W, 3], is due, and shows it."""
        self._wait()
        picture = frame.repeat(self._scale, axis=0).repeat(self._scale, axis=1)
        height, width, _ = picture.shape
        self._picture.configure(data=b"P6 %d %d 255\n" % (width, height) + picture.tobytes(), format="ppm")
        self._look_after()
        now = time.monotonic()
        self._due = (now if now - self._due > self._seconds else self._due) + self._seconds  # nothing is made up for

    def close(self) -> None:
        """Closes the window. Closing twice is allowed."""
        with suppress(self._gone):
            self._window.destroy()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            with suppress(BrokenPipeError):
                self._wait()  # the last frame stays as long as the others
        self.close()

    def _leave(self, event: object = None) -> None:
        self._left = True

    def _wait(self) -> None:
        """Looks after the window until the next frame is due."""
        while (remaining := self._due - time.monotonic()) > 0:
            self._look_after()
            time.sleep(min(remaining, EVENT_SECONDS))

    def _look_after(self) -> None:
        """Draws, and takes keys and clicks. Raises BrokenPipeError where the window was closed."""
        with suppress(self._gone):
            self._window.update()
        if self._left:
            raise BrokenPipeError("the window was closed")
