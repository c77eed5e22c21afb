"""Shows clips in web browsers: python examples/web_server.py sky.bundle, then open http://127.0.0.1:8000/?seed=3

Every viewer has a rollout and a player of their own, and all of them share the loaded model. The video is "motion
JPEG", one JPEG file after the other in an answer without end, which every browser shows as an <img>. It needs aiohttp,
and av for JPEG: pip install aiohttp av
"""

import argparse
import asyncio

from aiohttp import web

from styleinv.runtime import Bundle, Player, Rollout, Sessions
from styleinv.runtime.sinks import encode_jpeg

SESSIONS = web.AppKey("sessions", Sessions)
PLAYERS = web.AppKey("players", set)
PAGE = '<!doctype html><title>StyleInV</title><img src="/clip.mjpeg?seed={}" width="512" alt="seed {}">'


async def page(request):
    seed = seed_of(request)
    return web.Response(text=PAGE.format(seed, seed), content_type="text/html")


async def clip(request):
    """The clip of ?seed=N, until the viewer leaves."""
    rollout = Rollout(request.app[SESSIONS], seed_of(request))
    response = web.StreamResponse(headers={"Content-Type": "multipart/x-mixed-replace; boundary=frame"})
    await response.prepare(request)
    # With the policy "latest", a viewer whose line is slow sees fewer frames, and sees them in time.
    player = Player(rollout, fps=25, policy="latest")
    request.app[PLAYERS].add(player)
    try:
        async for frame in player:
            jpeg = await asyncio.to_thread(encode_jpeg, frame)  # in a thread, as other viewers need the loop meanwhile
            head = b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(jpeg)
            await response.write(head + jpeg + b"\r\n")
    except ConnectionResetError:
        pass  # the viewer has left
    finally:
        request.app[PLAYERS].discard(player)
        await asyncio.to_thread(player.close)  # it waits for the frame that is being computed
        counted = player.statistics
        print(f"seed {rollout.seed}: {counted.delivered} frames sent, {counted.dropped} dropped", flush=True)
    return response


def seed_of(request):
    try:
        seed = int(request.query.get("seed", "0"))
    except ValueError:
        seed = -1
    if not 0 <= seed < 2**64:
        raise web.HTTPBadRequest(
            text=f"seed: found {request.query['seed']!r}, expected a whole number from 0 to 2^64 - 1"
        )
    return seed


async def end_players(app):
    """When the server is stopped: clips have no end of their own, and it would wait for them."""
    for player in list(app[PLAYERS]):
        await asyncio.to_thread(player.close)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 is for everybody who can reach this machine")
    parser.add_argument("--port", type=int, default=8000)
    arguments = parser.parse_args()
    with Sessions(Bundle.open(arguments.bundle)) as sessions:
        app = web.Application()
        app[SESSIONS], app[PLAYERS] = sessions, set()
        app.add_routes([web.get("/", page), web.get("/clip.mjpeg", clip)])
        app.on_shutdown.append(end_players)
        web.run_app(app, host=arguments.host, port=arguments.port)


if __name__ == "__main__":
    main()
