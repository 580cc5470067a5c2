"""The barest subscriber there can be: libzmq's, from C, without a bound on its queue; it only counts.

What it misses of a kernel's flood, no subscriber could have had on this machine: it was dropped before it was sent.
Usage: drain.py CONNECTION_FILE; prints a line when it is subscribed, and one with how many stream messages came and how
many seconds of a core that took.
"""

import ctypes
import json
import os
import sys
import time

import zmq
from flood_kernel import Frame, libzmq

FIRST_MS, QUIET_MS = 60_000, 2_000

with open(sys.argv[1]) as file:
    info = json.load(file)
socket = zmq.Context().socket(zmq.SUB)
socket.rcvhwm = 0
socket.subscribe(b"")
socket.rcvtimeo = FIRST_MS
socket.connect(f"tcp://{info['ip']}:{info['iopub_port']}")
# Each request that the benchmark sends makes the kernel publish its state.
while b"status" not in socket.recv_multipart():
    pass
print("subscribed", flush=True)
drain = ctypes.CDLL(os.environ["FLOOD_LIBRARY"]).drain
drain.restype = ctypes.c_long
drain.argtypes = [ctypes.c_void_p, ctypes.c_void_p, Frame]
topic = b"stream.stdout"
# The kernel may take long to make its messages before it sends the first.
while socket.recv_multipart()[0] != topic:
    pass
socket.rcvtimeo = QUIET_MS
before = time.process_time()
count = 1 + drain(ctypes.cast(libzmq().zmq_recv, ctypes.c_void_p), socket.underlying, Frame.of(topic))
print(count, time.process_time() - before, flush=True)
