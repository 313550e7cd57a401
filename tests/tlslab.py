"""A certificate authority of one's own, and TLS in front of a server that was built without it (as stunnel does it)."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import ssl
import subprocess
import threading
from pathlib import Path

import pytest

from shardkit.local.ports import HOST

_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


class Authority:
    """``certificate`` is the path to hand out; ``issue`` makes certificates that it vouches for."""

    def __init__(self, directory: Path, name: str = "ca") -> None:
        if shutil.which("openssl") is None:
            pytest.skip("no openssl program to make a certificate authority with")
        self.directory, self.name = directory, name
        self.certificate = directory / f"{name}.crt"
        self._openssl(
            "req", "-x509", *_KEY, "-keyout", f"{name}.key", "-out", f"{name}.crt", "-days", "2", "-subj", f"/CN={name}"
        )

    def _openssl(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=self.directory, check=True, capture_output=True)

    def issue(self, subject: str) -> ssl.SSLContext:
        """A server's context; *subject* as in ``IP:127.0.0.1`` or ``DNS:localhost``."""
        stem, ca = subject.replace(":", "-"), self.name
        request = (
            "-keyout",
            f"{stem}.key",
            "-out",
            f"{stem}.csr",
            "-subj",
            "/CN=server",
            "-addext",
            f"subjectAltName={subject}",
        )
        self._openssl("req", *_KEY, *request)
        signed = ("-CA", f"{ca}.crt", "-CAkey", f"{ca}.key", "-CAcreateserial", "-copy_extensions", "copy", "-days", "2")
        self._openssl("x509", "-req", "-in", f"{stem}.csr", *signed, "-out", f"{stem}.crt")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.directory / f"{stem}.crt", self.directory / f"{stem}.key")
        return context


class Terminator:
    """Takes TLS connections on ``port`` and carries what is in them to the server at *target*; ``carried`` counts the bytes."""

    def __init__(self, target: int, context: ssl.SSLContext) -> None:
        self.carried, self._target, self._context = 0, target, context
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(lambda *_: None)  # handshakes that fail are what is tried
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(20)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _start(self) -> asyncio.Server:
        return await asyncio.start_server(self._serve, HOST, 0, ssl=self._context)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = await asyncio.open_connection(HOST, self._target)
        try:
            await asyncio.gather(self._carry(reader, there[1]), self._carry(there[0], writer))
        finally:
            for one in (there[1], writer):
                one.transport.abort()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                self.carried += len(data)
                writer.write(data)
                await writer.drain()
        writer.close()

    def close(self) -> None:
        async def end() -> None:
            self._server.close()
            ours = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in ours:
                task.cancel()
            await asyncio.gather(*ours, return_exceptions=True)
            await asyncio.sleep(0)  # the transports close in the loop's next turn

        asyncio.run_coroutine_threadsafe(end(), self._loop).result(20)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(20)
        self._loop.close()
