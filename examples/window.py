"""Shows a clip in a window, in real time: python examples/window.py sky.bundle [SEED]

Space pauses, the right and left arrows play forwards and backwards, up and down change the speed, Home goes back to the
beginning, Escape leaves. It needs tkinter, which most installations of Python have (on Debian: python3-tk).
"""

import sys
from contextlib import suppress

from styleinv.runtime import Player, Rollout

ENLARGED_TO = 512  # pixels; smaller frames are enlarged by a whole factor
POLL_MILLISECONDS = 5


def main(bundle, seed=0):
    window = open_window()
    # With the policy "latest" the clip keeps pace with the clock, whatever else the window has to do.
    with Rollout.open(bundle, int(seed)) as rollout, Player(rollout, fps=25, policy="latest") as player:
        play(player, window, factor=max(1, ENLARGED_TO // rollout.size[0]))


def open_window():
    """A window; where there cannot be one, says why and leaves."""
    try:
        import tkinter
    except ImportError as error:
        sys.exit(f"window.py: found no tkinter ({error}), expected one; on Debian, install python3-tk")
    try:
        return tkinter.Tk(className="StyleInV")
    except tkinter.TclError as error:
        sys.exit(f"window.py: found no display ({error}), expected one")


def play(player, window, factor):
    """Shows the player's frames until somebody leaves, each pixel `factor` times as wide and high."""
    import tkinter

    picture = tkinter.PhotoImage(master=window)
    tkinter.Label(window, image=picture).pack()

    def show():
        # A window has a loop of its own and must not wait: `poll` gives None while no frame is due.
        window.after(POLL_MILLISECONDS, show)
        frame = player.poll()
        if frame is not None:
            pixels = frame.repeat(factor, axis=0).repeat(factor, axis=1)
            header = b"P6 %d %d 255\n" % (pixels.shape[1], pixels.shape[0])  # PPM, the plainest format of pictures
            picture.configure(data=header + pixels.tobytes(), format="ppm")

    def pause(_event):
        if player.paused:
            player.resume()
        else:
            player.pause()

    def change_speed(factor):
        player.speed *= factor

    def turn(direction):
        player.speed = direction * abs(player.speed)  # backwards it ends at the beginning, and can turn there, too

    window.bind("<space>", pause)
    window.bind("<Right>", lambda _event: turn(1))
    window.bind("<Left>", lambda _event: turn(-1))
    window.bind("<Up>", lambda _event: change_speed(1.25))
    window.bind("<Down>", lambda _event: change_speed(0.8))
    window.bind("<Home>", lambda _event: player.seek(0))
    window.bind("<Escape>", lambda _event: window.destroy())

    errors = []

    def leave(_kind, error, _traceback):  # without this, tkinter prints what goes wrong in `show`, and goes on
        errors.append(error)
        window.destroy()

    window.report_callback_exception = leave
    show()
    with suppress(KeyboardInterrupt):  # Ctrl-C
        window.mainloop()
        if errors:
            raise errors[0]
    print(f"{player.statistics.delivered} frames shown, {player.statistics.dropped} dropped")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    main(*sys.argv[1:])
