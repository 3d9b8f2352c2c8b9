"""The command ``etlworks-sandbox``, also ``python -m airflow_provider_etlworks.sandbox``."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shlex
import sys
import threading
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

from airflow_provider_etlworks import __version__
from airflow_provider_etlworks.sandbox.control import CLEAR_FAULTS_PATH, FAULTS_PATH, KINDS, RUNS_PATH, SCHEDULE
from airflow_provider_etlworks.sandbox.flows import load_flows
from airflow_provider_etlworks.sandbox.server import Sandbox

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

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
    if options.command in _CONTROLS:
        return control(options.url, *_CONTROLS[options.command](options))
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


def control(url: str, path: str, form: Mapping[str, str] | None) -> int:
    """
    Send a request to a running sandbox, and print its answer.

    :param url: The address of the sandbox.
    :param path: What to ask for.
    :param form: The fields to send; None to read only.
    :return: The exit code.
    """
    # No proxy of the environment: the sandbox is on this machine, or near it.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    body = None if form is None else urllib.parse.urlencode(form).encode()
    try:
        with opener.open(url.rstrip("/") + path, body, timeout=10) as response:
            result = json.load(response)
    except urllib.error.HTTPError as refused:
        return _fail(_message(refused.read()))
    except (OSError, ValueError) as error:
        return _fail(
            f"no sandbox answers at {url}: {getattr(error, 'reason', error)}. Is `etlworks-sandbox serve` running?"
        )
    rows = result if isinstance(result, list) else [result]
    for row in rows:
        _say("  ".join(f"{name}={value}" for name, value in row.items() if value is not None))
    if not rows:
        _say("None.")
    return 0


def _message(body: bytes) -> str:
    """Return what a refusal says; a program that is not a sandbox may answer anything."""
    try:
        return str(json.loads(body)["message"])
    except (ValueError, KeyError, TypeError):
        return "what answers there is not a sandbox"


# What each command for a running sandbox sends.
_CONTROLS: Mapping[str, Callable[[argparse.Namespace], tuple[str, Mapping[str, str] | None]]] = {
    "runs": lambda options: (RUNS_PATH, None),
    "start": lambda options: (RUNS_PATH, {"flow": str(options.flow), "by": options.by}),
    "faults": lambda options: (CLEAR_FAULTS_PATH, {}) if options.clear else (FAULTS_PATH, None),
    "fault": lambda options: (
        FAULTS_PATH,
        {name: str(getattr(options, name)) for name in ("method", "path", "kind", "code", "seconds", "times", "after")},
    ),
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="etlworks-sandbox", description="A local Etlworks for demos and tests.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    server = commands.add_parser("serve", help="serve the documented Etlworks API until interrupted")
    server.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    server.add_argument("--port", type=_port, default=DEFAULT_PORT, help="0 for a free one (default: %(default)s)")
    server.add_argument("--flows", type=Path, metavar="FILE.yaml", help="flows to serve (default: a small company's)")
    _add_controls(commands)
    demo = commands.add_parser("demo", help="run the example DAGs in a real Airflow against a sandbox")
    demo.add_argument("--keep", action="store_true", help="keep Airflow and the sandbox running afterwards")
    demo.add_argument(
        "--promotion", action="store_true", help="instead, promote flows from one sandbox to another, and roll back"
    )
    return parser


def _add_controls(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands for a sandbox that is running, for a second terminal."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--url",
        default=f"http://127.0.0.1:{DEFAULT_PORT}",
        help="address of the running sandbox (default: %(default)s)",
    )
    commands.add_parser("runs", parents=[common], help="list the newest runs of a running sandbox")
    start = commands.add_parser("start", parents=[common], help="start a run, as the flow's schedule or a person does")
    start.add_argument("flow", type=int, help="the flow's id")
    start.add_argument("--by", default=SCHEDULE, help="a person's name, or the default: %(default)s")
    armed = commands.add_parser("faults", parents=[common], help="list the armed faults of a running sandbox")
    armed.add_argument("--clear", action="store_true", help="disarm all of them")
    fault = commands.add_parser("fault", parents=[common], help="arm a fault in a running sandbox")
    fault.add_argument("method", help="GET, POST, …, or '*' for all")
    fault.add_argument("path", help="from the root, such as '/rest/v1/executions/*'; * matches any characters")
    fault.add_argument("kind", choices=KINDS, help="; ".join(f"{kind}: {does}" for kind, (does, _) in KINDS.items()))
    fault.add_argument("--code", type=int, default=503, help="the status of 'status' (default: %(default)s)")
    fault.add_argument("--seconds", type=float, default=0.0, help="delay of the answer (default: %(default)s)")
    fault.add_argument("--times", default="1", help="how many requests, or 'all' (default: %(default)s)")
    fault.add_argument("--after", type=int, default=0, help="matching requests that pass first (default: %(default)s)")


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
        f"Its pages, to start runs and to arm faults: {sandbox.url}/",
        "From another terminal: etlworks-sandbox runs | start FLOW | fault METHOD PATH KIND"
        + (f" --url {sandbox.url}" if not sandbox.url.endswith(f":{DEFAULT_PORT}") else ""),
        "Ctrl-C stops it. Nothing is stored.",
    ]
    if host not in LOOPBACK:
        lines.insert(1, f"It listens on {host}: everybody who can reach this machine can use it (the key is public).")
    return "\n".join(lines)


def _say(text: str) -> None:
    try:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever reads, such as `head`, has enough. Python would complain once more when it closes the pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


def _fail(reason: str) -> int:
    sys.stderr.write(f"etlworks-sandbox: {reason}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
