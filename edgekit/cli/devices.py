"""``edgekit devices``: where files can be run, and making a device ready."""

from typing import Annotated, Any

import typer

from edgekit.cli import options, render

# What is looked at when nothing is named; boards and phones are named by those who have them.
_USUAL = ("host", "emulated:arm64", "browser", "adb", "gpu", "gpu-delegate")
_OTHERS = (
    ("runtime:<package>==<version>", "this machine with another version of a runtime"),
    ("ssh:<user@host>", "a board that ssh reaches"),
)

app = typer.Typer(rich_markup_mode=None)
Name = Annotated[str, typer.Argument(metavar="DEVICE", help="For example emulated:arm64.")]


@app.callback(invoke_without_command=True)
def show(context: typer.Context, json: options.Json = False) -> None:
    """List devices, set them up and check them."""
    if context.invoked_subcommand is not None:
        return
    from edgekit.devices.device import open_device

    found: list[dict[str, Any]] = []
    for device in map(open_device, _USUAL):
        reason = device.missing()
        fields = {"name": device.name, "formats": list(device.formats), "timed": device.timed}
        found.append({**fields, "ready": reason is None, "reason": reason})
    if json:
        render.show_json({"devices": found})
        return
    rows = [
        (
            f"{render.mark('pass' if each['ready'] else 'inconclusive')} {each['name']}",
            ", ".join(each["formats"]),
            "times count" if each["timed"] else "answers only",
            each["reason"] or "",
        )
        for each in found
    ]
    render.show_table(("device", "runs", "", "missing"), rows)
    typer.echo()
    for name, text in _OTHERS:
        typer.echo(f"{name}  {text}")


@app.command("setup")
def set_up(name: Name) -> None:
    """Fetch what a device needs into the cache folder; nothing else is changed."""
    from edgekit.devices.device import Prepared, open_device
    from edgekit.events import Event

    device = open_device(name)
    if isinstance(device, Prepared) and device.missing() is not None:
        with render.watching(False) as on_event:
            on_event(Event("stage-start", "device", f"setting up {device.name}"))
            device.set_up()
            on_event(Event("stage-end", "device", f"setting up {device.name}"))
    _say(device.name, device.missing())


@app.command("check")
def check(name: Name) -> None:
    """Run a small model on a device, and hold its answers against what they must be."""
    from edgekit.devices.check import check_device
    from edgekit.devices.device import ready

    device = ready(name)
    check_device(device)
    _say(device.name, None)


def _say(name: str, reason: str | None) -> None:
    from edgekit.errors import DeviceError

    if reason is not None:
        raise DeviceError(f"{name}: {reason}")
    typer.echo(f"{render.mark('pass')} {name} is ready")
