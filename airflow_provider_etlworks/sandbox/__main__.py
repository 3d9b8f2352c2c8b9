"""The command ``etlworks-sandbox``, also ``python -m airflow_provider_etlworks.sandbox``."""

from __future__ import annotations

import argparse
import importlib
import os
import shlex
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from airflow_provider_etlworks.sandbox.flows import load_flows
from airflow_provider_etlworks.sandbox.server import Sandbox

if TYPE_CHECKING:
    from collections.abc import Sequence

DEFAULT_PORT = 8085
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Run the command.

    :param arguments: Its arguments; default those of the process.
    :return: The exit code: 0 on success and after an interruption, 1 on failure.
    """
    options = _parser().parse_args(arguments)
    if options.command == "serve":
        return serve(options.host, options.port, options.flows)
    # The server must not need the packages that the demo imports, such as Airflow.
    name = "promotion" if options.promotion else "examples"
    demo = importlib.import_module(f"airflow_provider_etlworks.sandbox.demo.{name}")
    code: int = demo.main(keep=options.keep)
    return code


def serve(host: str, port: int, flows: Path | None) -> int:
    """
    Serve until interrupted.

    :param host: Address to listen on.
    :param port: Port to listen on; 0 is a free one.
    :param flows: YAML file with the flows; None for the built-in ones.
    :return: The exit code.
    """
    try:
        sandbox = Sandbox(None if flows is None else load_flows(flows), host=host, port=port)
    except (ValueError, OSError) as error:
        return _fail(str(error))
    try:
        sandbox.start()
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
        return _fail(f"cannot listen on {host}:{port}: {reason}")
    try:
        _say(_greeting(sandbox, host))
        threading.Event().wait()
    except KeyboardInterrupt:
        _say("Stopped.")
    finally:
        sandbox.stop()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="etlworks-sandbox", description="A local Etlworks for demos and tests.")
    commands = parser.add_subparsers(dest="command", required=True)
    server = commands.add_parser("serve", help="serve the documented Etlworks API until interrupted")
    server.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    server.add_argument("--port", type=_port, default=DEFAULT_PORT, help="0 for a free one (default: %(default)s)")
    server.add_argument("--flows", type=Path, metavar="FILE.yaml", help="flows to serve (default: a small company's)")
    demo = commands.add_parser("demo", help="run the example DAGs in a real Airflow against a sandbox")
    demo.add_argument("--keep", action="store_true", help="keep Airflow and the sandbox running afterwards")
    demo.add_argument(
        "--promotion", action="store_true", help="instead, promote flows from one sandbox to another, and roll back"
    )
    return parser


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) <= 65535):
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 65535, got {text!r}")
    return int(text)


def _greeting(sandbox: Sandbox, host: str) -> str:
    lines = [
        f"Etlworks sandbox at {sandbox.url}, REST API at {sandbox.url}/rest",
        f"API key:  {sandbox.api_key}",
        f"Login:    {sandbox.login}, password {sandbox.password}",
        f"Flows:    {', '.join(str(flow_id) for flow_id in sandbox.flows)}",
        "",
        "For Airflow:",
        f"  export AIRFLOW_CONN_ETLWORKS_DEFAULT={shlex.quote(sandbox.airflow_connection)}",
        "",
        "Ctrl-C stops it. Nothing is stored.",
    ]
    if host not in LOOPBACK:
        lines.insert(1, f"It listens on {host}: everybody who can reach this machine can use it (the key is public).")
    return "\n".join(lines)


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _fail(reason: str) -> int:
    sys.stderr.write(f"etlworks-sandbox: {reason}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
