"""NIXL as a peer: `with_nixl.py cma|tcp polled|thread SIDE`.

`polled` has no progress thread: whoever waits polls, and so does an owner that is asked over TCP.
`thread` is what the Python interface does by itself. With `cma` UCX chooses, which on one host is
process_vm_readv: the owner takes part in nothing but the connecting, so that it polls rarely.
"""

import os
import sys
import time

import side

if sys.argv[1] == "tcp":
    os.environ["UCX_TLS"] = "tcp"

import nixl_cu12._api as nixl  # noqa: E402
import numpy as np  # noqa: E402


class Nixl(side.Side):
    def start(self):
        thread = sys.argv[2] == "thread"
        config = nixl.nixl_agent_config(enable_prog_thread=thread, backends=["UCX"])
        if not thread:
            self.poll_every_s = 0.001 if sys.argv[1] == "cma" else 0
        self.agent = nixl.nixl_agent(self.name, config)
        self.requests = {}

    def register(self):
        region = [(self.address, side.REGION_BYTES, 0, "")]
        self.registered = self.agent.register_memory(region, "DRAM")

    def offer(self):
        return f"{self.address} {self.agent.get_agent_metadata().hex()}"

    def meet(self, offer):
        address, metadata = offer.split(" ")
        self.remote = int(address)
        self.agent.add_remote_agent(bytes.fromhex(metadata))
        self.bulk("read", {"block": 4096, "count": 1}, 0)

    def poll(self):
        self.agent.get_new_notifs()

    def request(self, right, pattern):
        """A transfer that can be posted any number of times."""
        key = (right, pattern["block"], pattern["count"])
        if key not in self.requests:
            mine, theirs = self.offsets(pattern)
            descriptors = []
            for base, offsets in ((self.address, mine), (self.remote, theirs)):
                rows = np.zeros((len(offsets), 3), dtype=np.uint64)
                rows[:, 0] = offsets + np.uint64(base)
                rows[:, 1] = pattern["block"]
                descriptors.append(self.agent.get_xfer_descs(rows, "DRAM"))
            request = self.agent.initialize_xfer(right.upper(), *descriptors, "owner")
            self.requests[key] = request
        return self.requests[key]

    def bulk(self, right, pattern, times):
        request = self.request(right, pattern)
        post, check, now = self.agent.transfer, self.agent.check_xfer_state, time.perf_counter
        totals, posts = [], []
        for turn in range(times + 1):
            started = now()
            state = post(request)
            posted = now()
            while state == "PROC":
                state = check(request)
            ended = now()
            if state != "DONE":
                raise RuntimeError(f"transfer ended in {state}")
            if turn > 0:
                totals.append(ended - started)
                posts.append(posted - started)
        return totals, posts


side.run(Nixl)
