"""One side of a peer: its memory, and the loop that takes questions (see src/protocol.rs)."""

import ctypes
import json
import mmap
import os
import select
import signal
import sys
import time
import zlib

import numpy as np

REGION_BYTES = 512 << 20
PR_SET_PDEATHSIG = 1


class Side:
    """What a peer adds: `start`, `register`, `offer`, `meet`, `bulk`, and `poll` if its owner polls."""

    # How long an owner that has to poll sleeps between two polls; None if it need not poll.
    poll_every_s = None

    def __init__(self, name):
        self.name = name
        self.is_owner = name == "owner"
        self.memory = mmap.mmap(-1, REGION_BYTES)
        self.memory.madvise(mmap.MADV_HUGEPAGE)
        self.bytes = np.frombuffer(self.memory, dtype=np.uint8)
        self.address = self.bytes.ctypes.data
        self.scramble(REGION_BYTES, 1 if self.is_owner else 2)

    def scramble(self, span, seed):
        words = np.random.Generator(np.random.SFC64(seed))
        piece = 16 << 20
        for at in range(0, span, piece):
            end = min(at + piece, span)
            fresh = words.integers(0, 1 << 64, (end - at) // 8, dtype=np.uint64)
            self.bytes[at:end] = fresh.view(np.uint8)

    def digest(self, block, count, first):
        sum_ = 0
        view = memoryview(self.memory)
        for at in range(first, 2 * block * count, 2 * block):
            sum_ = zlib.crc32(view[at : at + block], sum_)
        return sum_

    def offsets(self, pattern):
        """Where the blocks of initiator and owner start."""
        block, count = pattern["block"], pattern["count"]
        even = np.arange(count, dtype=np.uint64) * np.uint64(2 * block)
        return even, even + np.uint64(block)

    def take(self, question):
        do = question["do"]
        pattern = question.get("pattern")
        if do == "meet":
            self.meet(question["offer"])
        elif do == "scramble":
            self.scramble(2 * pattern["block"] * pattern["count"], question["seed"])
        elif do == "digest":
            block, count = pattern["block"], pattern["count"]
            first = block if self.is_owner else 0
            return {
                "blocks": self.digest(block, count, first),
                "gaps": self.digest(block, count, block - first),
            }
        elif do == "bulk":
            totals, posts = self.bulk(question["right"], pattern, question["times"])
            return {"totals": totals, "posts": posts}
        return {}


def run(make):
    """Is the side that the last argument names, until the questions end."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    # Libraries print; what is said to the other end of the pipe is not for them.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(answer):
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    try:
        side = make(sys.argv[-1])
        started = time.perf_counter()
        side.start()
        took = time.perf_counter() - started
        side.register()
        say({"start": took, "offer": side.offer() if side.is_owner else None})
    except Exception as error:  # whatever it is, the other end has to know
        say({"error": repr(error)})
        raise
    questions = os.fdopen(0, "rb", buffering=0)
    waiting = b""
    while True:
        while b"\n" not in waiting:
            more = questions.read(1 << 16)
            if not more:
                os._exit(0)
            waiting += more
        line, waiting = waiting.split(b"\n", 1)
        question = json.loads(line)
        try:
            say(side.take(question))
        except Exception as error:
            say({"error": repr(error)})
        if question["do"] == "serve":
            serve(side, questions)


def serve(side, questions):
    """Polls until there is a question."""
    pause = side.poll_every_s
    if pause is None:
        return
    while not select.select([questions], [], [], pause)[0]:
        for _ in range(1 if pause else 256):
            side.poll()
