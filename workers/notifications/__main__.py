"""`python -m workers.notifications`: notices to e-mail and web push. Composition root, nothing else."""

from __future__ import annotations

from contextlib import AsyncExitStack

from notices.composing import Composer
from notices.language import require_language
from notices.letters import Writer
from runtime.dead_letters import open_dead_letters
from runtime.postgres.pool import postgres_pool
from runtime.process import fingerprint
from runtime.process.service import Service, run, settings_or_exit
from runtime.queue import open_queue
from runtime.redis.client import redis_client
from runtime.tokens.vapid import VapidKey
from workers.notifications.accounts import Accounts
from workers.notifications.mailed_secrets import MailedSecrets
from workers.notifications.push_sender import PushOffice, PushSender
from workers.notifications.push_services import PushServices
from workers.notifications.records import Records
from workers.notifications.smtp import MailServer
from workers.notifications.subscriptions import Subscriptions
from workers.notifications.worker import PostOffice, Sender
from workers.shards import Shards

NAME = "notifications"
SENDERS = 2  # connections to the mail server
SHARD_CONNECTIONS_MAX = 4  # to each shard, of all senders together


async def main(service: Service) -> None:
    """Open clients, send until told to stop, close clients."""
    settings = service.settings
    server = MailServer.from_url(settings.smtp_url)
    writer = Writer(sender=settings.mail_sender, link_url=settings.link_url, default_language=settings.default_language)
    secrets = MailedSecrets(settings.notice_key)
    push_key = None if settings.vapid_key is None else VapidKey.parse(settings.vapid_key.get_secret_value())
    async with AsyncExitStack() as stack:
        redis = redis_client(settings.redis_url)
        stack.push_async_callback(redis.aclose)
        if not await fingerprint.join(redis, service):
            return
        cache = redis_client(settings.cache_url)
        stack.push_async_callback(cache.aclose)
        queue = open_queue(settings.queue_url, settings.topology.queues, length_max=settings.queue_length_max)
        stack.push_async_callback(queue.close)
        letters = open_dead_letters(settings.catalogue_dsn, letters_max=settings.dead_letters_max)
        stack.push_async_callback(letters.close)
        pools = [
            await stack.enter_async_context(postgres_pool(dsn, size_max=SHARD_CONNECTIONS_MAX))
            for dsn in settings.shard_dsns
        ]
        shards, records = Shards(pools), Records(cache)
        office = PostOffice(Accounts(shards, settings.topology), records, secrets, writer, server)
        senders = [Sender(queue=queue, letters=letters, office=office, service=service) for _ in range(SENDERS)]
        service.background.start("mail server", senders[0].prove, returns=True)
        for number, sender in enumerate(senders):
            service.background.start(f"sender {number}", sender.run)
        if push_key is not None:
            contact, allowed = f"mailto:{writer.sender}", settings.push_addresses_allowed
            services = await stack.enter_async_context(PushServices(push_key, contact=contact, allowed=allowed))
            pushing = PushOffice(
                Subscriptions(shards, settings.topology),
                records,
                Composer(settings.link_url),
                services,
                require_language(settings.default_language),
            )
            push_sender = PushSender(queue=queue, letters=letters, office=pushing, service=service)
            service.background.start("push sender", push_sender.run)
        await service.background.finished()


if __name__ == "__main__":
    run(NAME, settings_or_exit(NAME), main)
