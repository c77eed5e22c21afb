"""The player as an asynchronous iterator."""

import asyncio
import random
import time

import pytest
from fake_clip import FAST, LONG, FakeClip, got, started, t_of, wait_until

from styleinv.runtime import Player

pytestmark = pytest.mark.usefixtures("no_player_is_left")


def test_async_for():
    async def play():
        with Player(FakeClip(), fps=FAST, count=20) as player:
            return [t_of(frame) async for frame in player]

    assert asyncio.run(play()) == list(range(20))


def test_async_for_gives_others_their_turn_even_where_every_frame_is_late():
    async def play(player):
        turns, left = 0, 100

        async def turn():
            nonlocal turns
            while left:
                turns += 1
                await asyncio.sleep(0)

        other = asyncio.create_task(turn())
        while left:
            await anext(player)
            left -= 1
        await other
        return turns

    with Player(FakeClip(), fps=1e9, lookahead=100) as player:
        wait_until(lambda: player.statistics.queue_depth == 100)
        assert asyncio.run(play(player)) >= 100


def test_async_for_sleeps_while_it_waits():
    async def play(player):
        waiting = asyncio.ensure_future(anext(player))
        await asyncio.sleep(0.01)
        player.resume()  # a change, which is no frame
        begin = time.thread_time()
        await asyncio.wait([waiting], timeout=0.3)
        busy = time.thread_time() - begin
        waiting.cancel()
        return busy

    clip = FakeClip(gated=True)
    with Player(clip, fps=FAST) as player:
        assert asyncio.run(play(player)) < 0.05
        clip.permit.release()


def test_async_for_raises_what_computing_raises():
    async def play(player):
        async for frame in player:
            played.append(t_of(frame))

    played, error = [], RuntimeError("no more frames")
    with Player(FakeClip(fails={2: error}), fps=FAST) as player:
        for _ in range(2):
            with pytest.raises(RuntimeError) as raised:
                asyncio.run(play(player))
            assert raised.value is error
    assert played == [0, 1]


def test_cancelling_loses_no_frame():
    async def play():
        generator = random.Random(5)
        played, cancelled = [], 0
        with Player(FakeClip(), fps=FAST) as player:
            while len(played) < 200:
                task = asyncio.ensure_future(anext(player))
                await asyncio.sleep(generator.choice([0.0, 0.0002, 0.0008, 0.002]))
                task.cancel()
                try:
                    played.append(t_of(await task))
                except asyncio.CancelledError:
                    cancelled += 1
            assert len(asyncio.all_tasks()) == 1
        return played, cancelled

    played, cancelled = asyncio.run(play())
    assert played == list(range(200)) and cancelled > 0


def test_closing_from_another_thread_ends_async_for():
    async def play(player):
        return [t_of(frame) async for frame in player]

    clip, played = FakeClip(gated=True), []
    player = Player(clip, fps=FAST)
    clip.permit.release(2)
    for _ in range(3):
        assert clip.asked.acquire(timeout=LONG)
    loop = started(lambda: played.extend(asyncio.run(play(player))))
    wait_until(lambda: player.statistics.delivered == 2)
    closing = started(player.close)
    loop.join(LONG)
    assert not loop.is_alive() and played == [0, 1]
    clip.permit.release()
    closing.join(LONG)


def test_a_loop_that_was_left_while_it_waited_does_no_harm():
    clip = FakeClip(gated=True)
    with Player(clip, fps=FAST) as player:
        loop = asyncio.new_event_loop()
        waiting = loop.create_task(anext(player))
        loop.run_until_complete(asyncio.sleep(0.01))
        loop.close()
        clip.permit.release(100)
        assert got(player, 3) == [0, 1, 2]
        del waiting
