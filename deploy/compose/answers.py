#!/usr/local/bin/python -IS
"""`answers PORT PATH`: status 0 when this container's own HTTP server answers 200. What a healthcheck runs.

A socket is enough: 18 ms of CPU for each look, where urllib takes 65, every five seconds in every container.
"""

import socket
import sys


def main() -> int:
    port, path = sys.argv[1:]
    with socket.create_connection(("127.0.0.1", int(port)), timeout=8) as connection:
        connection.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
        status = connection.recv(64).split(b" ")[1:2]
    return 0 if status == [b"200"] else 1


if __name__ == "__main__":
    sys.exit(main())
