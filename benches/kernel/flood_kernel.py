"""A kernel that publishes a flood of messages.

The code of an execute_request is a JSON object:
  count    number of stream messages, each with 200 bytes of text
  how      "session": created, signed and sent one by one by jupyter_client, as ipykernel does
           "pyzmq":   signed beforehand, sent from Python
           "libzmq":  signed beforehand, sent from C
  rate     messages per second, sent in ticks of a millisecond; unlimited if absent ("libzmq" only)
  nodrop   whether to set XPUB_NODROP, with which the kernel waits for its subscribers

The reply's user_expressions have the number of sent messages and the seconds that sending took.
"""

import ctypes
import glob
import hashlib
import hmac
import json
import os
import sys
import threading
import time

import zmq
from jupyter_client.jsonutil import json_default
from jupyter_client.session import Session

TEXT_BYTES = 200
HEADER_NUMBER = "000000000"


class Frame(ctypes.Structure):
    _fields_ = [("data", ctypes.c_char_p), ("size", ctypes.c_size_t)]

    @classmethod
    def of(cls, data):
        return cls(data, len(data))


def dumps(value):
    return json.dumps(value, default=json_default, ensure_ascii=False).encode()


class FloodKernel:
    def __init__(self, connection_file):
        with open(connection_file) as file:
            info = json.load(file)
        self.info = info
        self.key = info["key"].encode()
        self.session = Session(key=self.key, signature_scheme=info["signature_scheme"])
        self.context = zmq.Context()
        self.shell = self.bind(zmq.ROUTER, "shell_port")
        self.control = self.bind(zmq.ROUTER, "control_port")
        self.stdin = self.bind(zmq.ROUTER, "stdin_port")
        self.iopub = self.bind(zmq.XPUB, "iopub_port")
        self.heartbeat = self.bind(zmq.REP, "hb_port")
        threading.Thread(target=self.beat, daemon=True).start()

    def bind(self, kind, port):
        socket = self.context.socket(kind)
        socket.linger = 1000
        transport, ip, number = self.info["transport"], self.info["ip"], self.info[port]
        socket.bind(f"{transport}://{ip}:{number}" if transport == "tcp" else f"{transport}://{ip}-{number}")
        return socket

    def beat(self):
        while True:
            self.heartbeat.send(self.heartbeat.recv())

    def run(self):
        poller = zmq.Poller()
        for socket in (self.shell, self.control, self.iopub):
            poller.register(socket, zmq.POLLIN)
        while True:
            ready = dict(poller.poll())
            if self.iopub in ready:
                self.iopub.recv()
            for socket in (self.control, self.shell):
                if socket in ready and not self.handle(socket):
                    return

    def handle(self, socket):
        identities, message = self.session.recv(socket, mode=0)
        parent = message["header"]
        msg_type = parent["msg_type"]
        self.status("busy", parent)
        if msg_type == "kernel_info_request":
            content = {
                "status": "ok",
                "protocol_version": "5.3",
                "implementation": "flood",
                "implementation_version": "0",
                "language_info": {"name": "flood", "version": "0", "mimetype": "text/plain", "file_extension": ".txt"},
                "banner": "",
            }
        elif msg_type == "execute_request":
            flood = json.loads(message["content"]["code"])
            content = {"status": "ok", "execution_count": 1, "user_expressions": self.flood(flood, parent)}
        else:
            content = {"status": "ok", "restart": False}
        self.session.send(socket, msg_type.replace("_request", "_reply"), content, parent=parent, ident=identities)
        self.status("idle", parent)
        return msg_type != "shutdown_request"

    def status(self, state, parent):
        self.session.send(self.iopub, "status", {"execution_state": state}, parent=parent, ident=b"status")

    def flood(self, flood, parent):
        self.iopub.set(zmq.XPUB_NODROP, int(flood.get("nodrop", False)))
        send = {"session": self.send_by_session, "pyzmq": self.send_by_pyzmq, "libzmq": self.send_by_libzmq}
        sent, seconds = send[flood["how"]](flood, parent)
        self.iopub.set(zmq.XPUB_NODROP, 0)
        return {"sent": sent, "seconds": seconds}

    def send_by_session(self, flood, parent):
        text = "x" * TEXT_BYTES
        begun = time.perf_counter()
        for _ in range(flood["count"]):
            content = {"name": "stdout", "text": text}
            self.session.send(self.iopub, "stream", content, parent=parent, ident=b"stream.stdout")
        return flood["count"], time.perf_counter() - begun

    def signed(self, flood, parent):
        """The frames of a message, with its header split at the number, and the signatures of all messages."""
        header = self.session.msg_header("stream")
        header["msg_id"] = f"{self.session.session}_{HEADER_NUMBER}"
        before, after = dumps(header).split(HEADER_NUMBER.encode(), 1)
        parent, metadata = dumps(parent), b"{}"
        content = dumps({"name": "stdout", "text": "x" * TEXT_BYTES})
        rest = after + parent + metadata + content
        start = hmac.new(self.key, before, hashlib.sha256)
        signatures = []
        for number in range(flood["count"]):
            digest = start.copy()
            digest.update(b"%09d" % number + rest)
            signatures.append(digest.hexdigest().encode())
        return before, after, parent, metadata, content, signatures

    def send_by_pyzmq(self, flood, parent):
        before, after, parent, metadata, content, signatures = self.signed(flood, parent)
        send = self.iopub.send_multipart
        begun = time.perf_counter()
        for number, signature in enumerate(signatures):
            header = b"%b%09d%b" % (before, number, after)
            send([b"stream.stdout", b"<IDS|MSG>", signature, header, parent, metadata, content])
        return flood["count"], time.perf_counter() - begun

    def send_by_libzmq(self, flood, parent):
        before, after, parent, metadata, content, signatures = self.signed(flood, parent)
        header = ctypes.create_string_buffer(before + HEADER_NUMBER.encode() + after)
        rate = flood.get("rate")
        per_tick = max(1, round(rate / 1000)) if rate else 0
        function = ctypes.CDLL(os.environ["FLOOD_LIBRARY"]).flood
        function.restype = ctypes.c_long
        function.argtypes = [
            ctypes.c_void_p, ctypes.c_void_p, Frame, Frame, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_size_t,
            ctypes.c_size_t, Frame, Frame, Frame, ctypes.c_long, ctypes.c_long, ctypes.c_long,
        ]  # fmt: skip
        signatures = b"".join(signatures)
        begun = time.perf_counter()
        sent = function(
            ctypes.cast(libzmq().zmq_send, ctypes.c_void_p), self.iopub.underlying, Frame.of(b"stream.stdout"),
            Frame.of(b"<IDS|MSG>"), signatures, ctypes.addressof(header), len(header) - 1, len(before),
            Frame.of(parent), Frame.of(metadata), Frame.of(content), flood["count"], per_tick, 1_000_000,
        )  # fmt: skip
        return sent, time.perf_counter() - begun


def libzmq():
    """The libzmq that pyzmq has loaded. pyzmq's wheels contain it."""
    site = os.path.dirname(os.path.dirname(zmq.__file__))
    found = glob.glob(os.path.join(site, "pyzmq.libs", "libzmq*.so*"))
    return ctypes.CDLL(found[0] if found else "libzmq.so.5")


if __name__ == "__main__":
    FloodKernel(sys.argv[1]).run()
