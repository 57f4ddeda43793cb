"""Kills the backoffice while it publishes a sale."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from functools import partial

from faults.conditions import NotFired
from faults.history import Ending
from faults.proxy import Harm, Trap
from faults.redis_faults import sprung
from faults.scenario import Act, Drill, Fault
from faults.wire import Wire, order_request
from ops.shop import ShopError


def publish_killed(harm: Harm) -> Act:
    """Kill the backoffice at the step that loads a lane, before or after its execution."""

    async def act(drill: Drill) -> str:
        stage = drill.stage
        shop = await asyncio.to_thread(stage.staff)
        draft = await asyncio.to_thread(
            partial(shop.create_draft_sale, name="Published", stock={drill.skus[1]: 100}, price_minor=1)
        )
        old = stage.pid("backoffice")
        trap = Trap(harm, (b"EVAL", b":state"), action=partial(os.kill, old, signal.SIGKILL))
        stage.proxy("backoffice").set_trap(trap)
        try:
            await asyncio.to_thread(shop.publish, draft["id"])
        except ShopError:
            pass  # the process was killed, as intended
        else:
            raise NotFired("publishing succeeded")
        await sprung(drill, trap, "the backoffice reached the step")
        await stage.replaced("backoffice", old)
        shop = await asyncio.to_thread(stage.staff)
        sale = await asyncio.to_thread(shop.publish, draft["id"])
        wire = Wire(list(drill.buyers.urls))
        user, token = drill.rng.choice(stage.users)
        body = json.dumps({"items": [{"sku": drill.skus[1], "quantity": 1}]}).encode()
        path = f"/v1/sales/{sale['id']}/orders"
        attempt = await wire.ask(order_request(wire.host, path, token=token, key=f"{user}", body=body))
        wire.close()
        available = (await asyncio.to_thread(shop.report, sale["id"]))["items"][0]["available"]
        if attempt.ending is not Ending.OK or sale["state"] != "open" or available != 99:
            drill.fail(
                "A",
                f"after publishing again: {sale['state']}, order {attempt.code or attempt.status}, {available} left",
            )
        return f"pid {old} killed there; published again, the sale is open and its stock is loaded once"

    return act


FAULTS = [
    Fault(
        "backoffice-killed-before-load", "backoffice killed before it loads a lane",
        "publishing again completes it", publish_killed(Harm.BEFORE),
    ),
    Fault(
        "backoffice-killed-after-load", "backoffice killed after it loaded a lane, before the answer arrives",
        "publishing again completes it; the stock is loaded once", publish_killed(Harm.AFTER),
    ),
]  # fmt: skip
