"""A real S3 server on loopback for the tests: moto in a process of its own, which can be taken down and up again.

Run as a script it serves until its standard input closes; the lines `down` and `up` close and open its port while
what it stores is kept, as in a restart of a server with disks.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from typing import IO, Any

KEYS = {
    "AWS_ACCESS_KEY_ID": "tests",
    "AWS_SECRET_ACCESS_KEY": "tests-only",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_DEFAULT_REGION": "us-east-1",
}


@dataclass
class S3Server:
    """One running server; `uri` names a place on it with the options that lead there."""

    process: subprocess.Popen[str]
    port: int
    buckets: int = 0

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def client(self) -> Any:
        """A boto3 client: a second opinion on what lies there."""
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name=KEYS["AWS_DEFAULT_REGION"],
            aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
        )

    def bucket(self) -> str:
        """A new, empty bucket."""
        self.buckets += 1
        name = f"bucket-{self.buckets}"
        self.client.create_bucket(Bucket=name)
        return name

    def uri(self, path: str) -> str:
        return f"s3://{path}?endpoint_override=127.0.0.1:{self.port}&scheme=http&region=us-east-1"

    def keys(self, bucket: str) -> list[str]:
        """All objects of a bucket, as the server sees them, without the markers of folders."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=bucket)
        return [o["Key"] for page in pages for o in page.get("Contents", []) if not o["Key"].endswith("/")]

    def say(self, override: str) -> None:
        """`down` or `up`; returns when it is done."""
        assert self.process.stdin is not None
        self.process.stdin.write(override + "\n")
        self.process.stdin.flush()
        _wait_for(self.process.stdout, override)

    def stop(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def start() -> S3Server:
    """Start a server on a free port and wait until it answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    process = subprocess.Popen(
        [sys.executable, __file__, str(port)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    _wait_for(process.stdout, "up")
    return S3Server(process, port)


def _wait_for(stream: IO[str] | None, override: str) -> None:
    assert stream is not None
    for line in stream:
        if line.strip() == f"server is {override}":
            return
    raise RuntimeError("the S3 server ended; run `python tests/s3_server.py 9000` to see why")


def _serve(port: int) -> None:
    import logging

    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", port, verbose=False)
    server.start()
    print("server is up", flush=True)
    for line in sys.stdin:
        override = line.strip()
        if override == "down":
            server.stop()
        elif override == "up":
            server = ThreadedMotoServer("127.0.0.1", port, verbose=False)
            server.start()
        print(f"server is {override}", flush=True)
    os._exit(0)  # its threads may still wait for clients


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
