"""A client in Python: asks for rooms in a message that it compresses, and prints what was agreed upon and each frame
that it hears, until a listing was updated."""

import asyncio
import json
import sys

from websockets.asyncio.client import connect
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory


async def main(url, window, rooms):
    offer = ClientPerMessageDeflateFactory(server_max_window_bits=int(window)) if window else None
    async with connect(url, extensions=[offer] if offer else None) as socket:
        print(socket.response.headers.get("Sec-WebSocket-Extensions"), flush=True)
        await socket.send(json.dumps({"type": "hello"}))
        await socket.send(json.dumps({"type": "subscribe", "id": 1, "rooms": rooms}))
        async for text in socket:
            print(text, flush=True)
            if json.loads(text)["type"] == "LISTING_UPDATED":
                return


asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3:]))
