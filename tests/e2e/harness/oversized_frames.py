"""A hostile kernel: it completes the ZMTP handshake, then announces a frame of 2^60 bytes and sends none of them.

`python oversized_frames.py CONNECTION_FILE CLAIMS_FILE` appends the channel's name to CLAIMS_FILE for each such frame.
"""

import json
import socket
import sys
import threading

CHANNELS = {"shell": b"ROUTER", "control": b"ROUTER", "stdin": b"ROUTER", "iopub": b"XPUB", "hb": b"REP"}
GREETING = b"\xff\0\0\0\0\0\0\0\x01\x7f\x03\0NULL".ljust(64, b"\0")
CLAIM = b"\x02" + (1 << 60).to_bytes(8, "big")


def claim(channel: str, connection: socket.socket, claims: str) -> None:
    """Completes the handshake, announces the frame and records that in the claims file."""
    kind = CHANNELS[channel]
    ready = b"\x05READY\x0bSocket-Type" + len(kind).to_bytes(4, "big") + kind
    try:
        connection.sendall(GREETING + bytes([4, len(ready)]) + ready)
        # A connection that only checks whether the port is open sends nothing.
        if not connection.recv(1):
            return
        connection.sendall(CLAIM)
        with open(claims, "a") as file:
            file.write(f"{channel}\n")
        while connection.recv(65536):
            pass
    except OSError:
        pass
    finally:
        connection.close()


def serve(channel: str, listener: socket.socket, claims: str) -> None:
    while True:
        connection = listener.accept()[0]
        threading.Thread(target=claim, args=(channel, connection, claims)).start()


def main() -> None:
    connection_file, claims = sys.argv[1:3]
    with open(connection_file) as file:
        info = json.load(file)
    for channel in CHANNELS:
        listener = socket.create_server((info["ip"], info[f"{channel}_port"]))
        threading.Thread(target=serve, args=(channel, listener, claims)).start()


if __name__ == "__main__":
    main()
