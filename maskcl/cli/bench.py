"""``maskcl bench``: what an op or a training step takes here, and where ours loses."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Annotated, Any

import torch
import typer

from maskcl import __version__, bench
from maskcl.backends import BACKENDS, BackendError
from maskcl.cli.options import CommandError
from maskcl.cli.output import say, show
from maskcl.text import shown

app = typer.Typer(
    invoke_without_command=True,
    help="Time an op on every backend that is here, or training steps: maskcl bench steps -h.",
)
_DEVICES = ("cpu", "cuda")
_MOST = 1 << 14

Size = Annotated[int, typer.Option(help="Units a layer: weights are [size, size].")]
Batch = Annotated[int, typer.Option(help="Samples.")]
Threads = Annotated[
    int | None, typer.Option(help="Of torch (default torch's own).", show_default=False)
]
Seconds = Annotated[float, typer.Option(help="Of a measurement, aside from warming up.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document in place of tables.")]


@app.callback()
def ops(
    context: typer.Context,
    op: Annotated[
        list[str] | None,
        typer.Option("--op", help="An op, or all; may be repeated.", show_default=False),
    ] = None,
    listed: Annotated[bool, typer.Option("--list", help="Name what can be timed.")] = False,
    size: Size = 1024,
    batch: Batch = 64,
    threads: Threads = None,
    backend: Annotated[
        list[str] | None,
        typer.Option(help="reference, cpp, triton or cuda (default all here).", show_default=False),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    compiled: Annotated[
        bool, typer.Option("--compile/--no-compile", help="Whether torch.compile takes part.")
    ] = True,
    seconds: Seconds = 1.0,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Time ops beside careful eager torch, torch.compile and a copy of the same bytes.

    A result is compared with the formula's first: one that differs gets no figure.
    """
    if context.invoked_subcommand is not None:
        return
    if listed:
        show(_list())
        return
    if not op:
        raise CommandError("bench needs --op NAME, --op all, --list, or steps")
    names = _known_ops(op)
    for name in backend or []:
        _one_of("backend", name, tuple(BACKENDS))
    _one_of("device", device, _DEVICES)
    if device == "cuda" and not torch.cuda.is_available():
        raise CommandError("--device is cuda, and torch finds no CUDA device here")
    _whole("size", size, _MOST)
    _whole("batch", batch, _MOST)
    _start(threads, seconds)
    try:
        timed = (
            found
            for name in names
            for found in bench.time_op(
                name, size, batch, device=device, names=backend, compiled=compiled, seconds=seconds
            )
        )
        is_wrong = _print_ops(timed, {"size": size, "batch": batch, "device": device}, as_json)
    except BackendError as error:
        raise CommandError(str(error)) from None
    if is_wrong:
        say(f"not timed, for their results differ from the formula's: {', '.join(is_wrong)}")
        raise typer.Exit(1)


@app.command("steps")
def steps(
    network: Annotated[
        str, typer.Option(help=f"Widths such as 784-400-400-10, {', '.join(bench.NETWORKS)}.")
    ] = "784-400-400-10",
    batch: Batch = 64,
    method: Annotated[
        list[str] | None,
        typer.Option(help=f"{', '.join(bench.METHODS)} (default all).", show_default=False),
    ] = None,
    optimizer: Annotated[str, typer.Option(help=", ".join(bench.OPTIMIZERS) + ".")] = "adamw",
    compiled: Annotated[
        bool, typer.Option("--compile", help="Compile forward and loss, the unmasked ones too.")
    ] = False,
    schedule: Annotated[
        bool, typer.Option("--schedule", help="Change the learning rate at every step.")
    ] = False,
    threads: Threads = None,
    seconds: Seconds = 4.0,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Time a training step of each method beside the network's unmasked step and careful eager.

    It is the second task's step, the optimizer protected. The unmasked step is torch's fastest of
    fused and foreach; small steps are taken a dozen at a time, each method's in turn.
    """
    methods = tuple(_method(name) for name in method or bench.METHODS)
    _one_of("optimizer", optimizer, tuple(bench.OPTIMIZERS))
    _whole("batch", batch, _MOST)
    _start(threads, seconds)
    count = torch.get_num_threads()
    setting = bench.Setting(network, batch, optimizer, count, compiled, schedule)
    try:
        found = bench.time_steps(setting, methods, seconds)
    except ValueError as error:
        raise CommandError(f"--network: {error}") from None
    except ImportError as error:
        raise CommandError(str(error)) from None
    if as_json:
        show(json.dumps({**_facts(), **bench.step_data(found)}, indent=1))
    else:
        show(f"{_machine()}, medians of steps in turn\n\n{bench.step_text(found)}")


def _list() -> str:
    rows = [f"  {name}" for name in bench.cases()]
    networks = [f"  {name:<10}{text}" for name, text in bench.NETWORKS.items()]
    return "\n".join(
        ["ops, by --op:", *rows, "", bench.SHAPES, "", "networks, by steps --network:", *networks]
    )


def _known_ops(asked: list[str]) -> list[str]:
    known = list(bench.cases())
    if asked == ["all"]:
        return known
    for name in asked:
        if name not in known:
            raise CommandError(f"unknown op {shown(name)}: maskcl bench --list names them")
    return asked


def _method(name: str) -> str:
    known = {method.lower(): method for method in bench.METHODS}
    _one_of("method", name.lower(), tuple(known))
    return known[name.lower()]


def _one_of(flag: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise CommandError(f"unknown {flag} {shown(value)}: known are {', '.join(known)}")


def _whole(flag: str, value: int, most: int) -> None:
    if not 1 <= value <= most:
        raise CommandError(f"{flag} must be at least 1 and at most {most}, got {value}")


def _start(threads: int | None, seconds: float) -> None:
    if not 0 < seconds <= 600:
        raise CommandError(f"seconds must be above 0 and at most 600, got {seconds:g}")
    if threads is not None:
        _whole("threads", threads, 1024)
        torch.set_num_threads(threads)


def _facts() -> dict[str, Any]:
    return {
        "machine": bench.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "maskcl": __version__,
    }


def _machine() -> str:
    facts = _facts()
    threads = "1 thread" if facts["threads"] == 1 else f"{facts['threads']} threads"
    return f"{facts['machine']}, {threads}, torch {facts['torch']}, maskcl {facts['maskcl']}"


def _print_ops(timed: Iterable[bench.OpTimes], sizes: dict[str, Any], as_json: bool) -> list[str]:
    """Print every op when it is timed, or all as one document; returns what is wrong."""
    seen: list[bench.OpTimes] = []

    def each() -> Iterator[bench.OpTimes]:
        for found in timed:
            seen.append(found)
            yield found

    if as_json:
        ops = [bench.op_data(found) for found in each()]
        show(json.dumps({**_facts(), **sizes, "ops": ops}, indent=1))
    else:
        words = ", ".join(f"{name} {value}" for name, value in sizes.items())
        show(f"{_machine()}, {words}, float32, medians of calls in turn")
        for found in each():
            show(f"\n{bench.op_text(found)}")
    return sorted({f"{found.op} on {name}" for found in seen for name in found.wrong()})
