"""Mooncake's transfer engine as a peer, over TCP and without a metadata server:
`with_mooncake.py SIDE`.
"""

import os
import time

import side

# By itself it fails a batch of some 2,000 blocks or more, and all that come after.
os.environ["MC_TCP_MAX_QUEUED_TRANSFERS_PER_PEER"] = "65535"
from mooncake.engine import TransferEngine  # noqa: E402


class Mooncake(side.Side):
    def start(self):
        self.engine = TransferEngine()
        if self.engine.initialize("127.0.0.1", "P2PHANDSHAKE", "tcp", "") != 0:
            raise RuntimeError("it does not start")
        self.lists = {}

    def register(self):
        if self.engine.register_memory(self.address, side.REGION_BYTES) != 0:
            raise RuntimeError("it does not register")

    def offer(self):
        return f"{self.address} 127.0.0.1:{self.engine.get_rpc_port()}"

    def meet(self, offer):
        address, self.target = offer.split(" ")
        self.remote = int(address)

    def descriptors(self, pattern):
        key = (pattern["block"], pattern["count"])
        if key not in self.lists:
            mine, theirs = self.offsets(pattern)
            mine = [self.address + int(offset) for offset in mine]
            theirs = [self.remote + int(offset) for offset in theirs]
            self.lists[key] = (mine, theirs, [pattern["block"]] * pattern["count"])
        return self.lists[key]

    def bulk(self, right, pattern, times):
        lists = self.descriptors(pattern)
        # The call that waits is the faster one, and all that many users know.
        move = getattr(self.engine, f"batch_transfer_sync_{right}")
        totals = []
        for turn in range(times + 1):
            started = time.perf_counter()
            code = move(self.target, *lists)
            ended = time.perf_counter()
            if code != 0:
                raise RuntimeError(f"transfer ended in {code}")
            if turn > 0:
                totals.append(ended - started)
        return totals, totals


side.run(Mooncake)
