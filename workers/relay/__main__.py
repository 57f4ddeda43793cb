"""`python -m workers.relay`: relays every lane whose lease this process gets. Composition root, nothing else."""

from __future__ import annotations

from functools import partial

from runtime.dead_letters import open_dead_letters
from runtime.process import fingerprint, service
from runtime.queue import open_queue
from runtime.redis.client import redis_client
from workers.relay.lanes import measure_lanes, own_lane


async def main(process: service.Service) -> None:
    """Relay until the process is to stop."""
    settings = process.settings
    # A lane keeps one connection waiting for entries, and shares the rest.
    redis = redis_client(settings.redis_url, connections_max=2 * settings.lanes + 4)
    queue = open_queue(settings.queue_url, settings.topology.queues, length_max=settings.queue_length_max)
    letters = open_dead_letters(settings.catalogue_dsn, letters_max=settings.dead_letters_max)
    try:
        if not await fingerprint.join(redis, process):
            return
        process.background.start("lag", partial(measure_lanes, service=process, redis=redis))
        for lane in range(settings.lanes):
            relay = partial(own_lane, lane, service=process, redis=redis, queue=queue, letters=letters)
            process.background.start(f"lane {lane}", relay)
        await process.background.finished()
    finally:
        await queue.close()
        await letters.close()
        await redis.aclose()


if __name__ == "__main__":
    service.run("relay", service.settings_or_exit("relay"), main)
