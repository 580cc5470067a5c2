"""A minimal subscriber: a loop in C on libzmq's SUB socket that only counts stream messages.

Its queue is unbounded, so any message that it misses was dropped by the kernel's socket, and no other subscriber on
this machine could have received it. Usage: drain.py CONNECTION_FILE. Prints "subscribed" once it receives messages, and
at the end the number of stream messages and the seconds of CPU time.
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
# The benchmark sends requests until the kernel's status arrives here.
while b"status" not in socket.recv_multipart():
    pass
print("subscribed", flush=True)
drain = ctypes.CDLL(os.environ["FLOOD_LIBRARY"]).drain
drain.restype = ctypes.c_long
drain.argtypes = [ctypes.c_void_p, ctypes.c_void_p, Frame]
topic = b"stream.stdout"
# The kernel signs all messages before it sends the first, which may take long.
while socket.recv_multipart()[0] != topic:
    pass
socket.rcvtimeo = QUIET_MS
before = time.process_time()
count = 1 + drain(ctypes.cast(libzmq().zmq_recv, ctypes.c_void_p), socket.underlying, Frame.of(topic))
print(count, time.process_time() - before, flush=True)
