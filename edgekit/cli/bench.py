"""``edgekit bench``: how model files run, here or elsewhere."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgekit.cli import options, render

if TYPE_CHECKING:
    from edgekit.devices.device import Device


def run(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="A folder that build wrote, or a model file.")
    ],
    device: options.Device = None,
    serve: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="With --device browser: a page for another device's browser, on this address of "
            "this machine.",
        ),
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Compare with this bundle or file, side by side."),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Threads to run on.  [default: the target's]"),
    ] = None,
    cores: Annotated[
        str | None, typer.Option(metavar="N,N", help="Processor cores to stay on.")
    ] = None,
    nice: Annotated[int, typer.Option(metavar="N", help="Added to the niceness.")] = 0,
    seconds: Annotated[
        float, typer.Option(min=0.1, metavar="S", help="How long each file is run, at most.")
    ] = 5.0,
    profile: Annotated[
        bool, typer.Option("--profile", help="Show where the time goes, layer by layer.")
    ] = False,
    json: options.Json = False,
) -> int:
    """Measure how model files run: latency, throughput, memory."""
    from edgekit.bundle.bench import bench

    devices = options.open_devices(device) if serve is None else [_served(device, serve)]
    pinned = options.numbers("--cores", cores)
    with render.watching(json) as on_event:
        found = bench(
            path,
            devices=devices,
            against=against,
            # The page is opened once a run, so that there is only one.
            threads=threads if serve is None else threads or 1,
            seconds=seconds,
            cores=pinned,
            nice=nice,
            profile=profile,
            on_event=on_event,
        )
    if json:
        render.show_json(found.to_json())
    elif found.comparison is not None:
        render.show_comparison(found.comparison, str(path), str(against))
    else:
        render.show_measurements(found)
    inconclusive = found.comparison is not None and found.comparison.outcome == "inconclusive"
    return render.EXIT_CODES["inconclusive" if inconclusive else "pass"]


def _served(names: list[str] | None, address: str) -> "Device":
    """The browser that opens the page at ``address``. Raises UsageError for another device."""
    from edgekit.devices.browser import serve
    from edgekit.errors import DeviceError, UsageError

    if names not in (["browser"], ["browser:webgpu"]):
        raise UsageError("--serve: goes with --device browser alone")
    _, _, accelerator = names[0].partition(":")
    device = serve(address, lambda text: typer.echo(text, err=True), accelerator or "wasm")
    reason = device.missing()
    if reason is not None:
        raise DeviceError(f"{device.name}: {reason}")
    return device
