"""What commands print: JSON for machines, aligned text for people, progress while they wait."""

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import typer

from edgekit.budget import Outcome, Verdict, format_limit
from edgekit.events import Event, Sink, silent
from edgekit.units import format_bytes, format_percent, format_seconds, format_signed_points

if TYPE_CHECKING:
    from edgekit.bundle.bench import Bench
    from edgekit.contents import Contents
    from edgekit.measure.compare import Comparison
    from edgekit.measure.measurement import LatencyEntry, Measurement
    from edgekit.pipeline import BuildResult, BundleResult
    from edgekit.project import Settings

EXIT_CODES: dict[Outcome, int] = {"pass": 0, "fail": 1, "inconclusive": 3}
_MARKS = {"pass": ("✓", "green"), "fail": ("✗", "red"), "inconclusive": ("?", "yellow")}
# Metrics that are not shares of rows, and so have no percentage.
_COEFFICIENTS = ("matthews", "spearman", "pearson")
_MOST_LENGTHS = 4
_SLOWEST = 8
_BAR = 30
# In a log, this long between two lines of one stage's progress.
_TELL_SECONDS = 30.0


# JSON


def show_json(document: Any) -> None:
    """The document on stdout; a number that JSON has no word for becomes null."""
    typer.echo(json.dumps(_finite(document), indent=2, ensure_ascii=False))


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    if isinstance(value, float) and not -float("inf") < value < float("inf"):
        return None
    return value


# Text


def bold(text: str) -> str:
    return typer.style(text, bold=True)


def dim(text: str) -> str:
    return typer.style(text, dim=True)


def mark(outcome: Outcome) -> str:
    """✓, ✗ or ? in its colour."""
    sign, colour = _MARKS[outcome]
    return typer.style(sign, fg=colour)


def show_table(
    head: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()
) -> None:
    """Columns as wide as their cells; the ones in ``right`` are aligned to the right."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]

    def line(row: Sequence[str]) -> str:
        cells = (
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        return "  ".join(cells).rstrip()

    typer.echo(bold(line(head)))
    for row in rows:
        typer.echo(line(row))


# Progress


@contextlib.contextmanager
def watching(json: bool) -> Iterator[Sink]:
    """A sink for a job's events: alive on a terminal, plain lines elsewhere, silent for JSON.

    With ``json`` nothing that a library prints reaches stdout.
    """
    if json:
        with contextlib.redirect_stdout(sys.stderr):
            yield silent
    elif sys.stdout.isatty() and not os.environ.get("CI"):
        with _live() as sink:
            yield sink
    else:
        yield _plain()


@contextlib.contextmanager
def _live() -> Iterator[Sink]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(highlight=False), transient=True) as progress:
        running: dict[str, Any] = {}
        titles: dict[str, str] = {}
        ended = _stages()

        def show(event: Event) -> None:
            line = ended(event)
            if event.kind == "stage-start":
                titles[event.name] = event.text or event.name
                running[event.name] = progress.add_task(titles[event.name], total=None)
            elif event.kind == "progress" and event.name in running:
                progress.update(
                    running[event.name],
                    total=1.0,
                    completed=event.fraction or 0.0,
                    description=_standing(titles[event.name], event),
                )
            elif event.kind == "stage-end" and event.name in running:
                progress.remove_task(running.pop(event.name))
                progress.refresh()
            for each in line:
                progress.console.out(each, highlight=False)

        yield show


def _plain() -> Sink:
    """Lines for logs; a stage that tells its progress leaves one every half minute."""
    ended = _stages()
    titles: dict[str, str] = {}
    told: dict[str, float] = {}

    def show(event: Event) -> None:
        now = time.perf_counter()
        if event.kind == "stage-start":
            titles[event.name], told[event.name] = event.text or event.name, now
        elif event.kind == "progress" and now - told.get(event.name, now) >= _TELL_SECONDS:
            told[event.name] = now
            done = format_percent(event.fraction or 0.0, 0)
            typer.echo(f"  {_standing(titles[event.name], event)} ({done})")
        for line in ended(event):
            typer.echo(line)

    return show


def _standing(title: str, event: Event) -> str:
    """A stage's title, and where it stands if the event says so."""
    return f"{title}: {event.text}" if event.text and event.text != title else title


def _stages() -> Any:
    """A function from an event to the lines that it leaves behind."""
    started: dict[str, tuple[float, str]] = {}

    def lines(event: Event) -> list[str]:
        if event.kind == "stage-start":
            started[event.name] = (time.perf_counter(), event.text or event.name)
            return []
        if event.kind == "stage-end":
            begun, title = started.pop(event.name, (time.perf_counter(), event.name))
            if event.text and event.text != title:
                title = f"{title}: {event.text}"
            seconds = event.seconds if event.seconds is not None else time.perf_counter() - begun
            took = "from the cache" if event.reused else format_seconds(seconds)
            return [f"✓ {title}  ({took})"]
        if event.kind in ("note", "plan"):
            return [f"  {line}" for line in event.text.splitlines()]
        return []

    return lines


# Settings


def show_settings(settings: "Settings") -> None:
    """Everything that is set, and what set it."""
    columns = {
        "text": settings.columns.text,
        "text_pair": settings.columns.text_pair,
        "label": settings.columns.label,
    }
    limits = {
        name.replace("_", "-"): value
        for name, value in settings.budget.to_json().items()
        if value is not None
    }
    shown = {
        "model": settings.model,
        "task": settings.task,
        "data": settings.data,
        "eval": settings.eval,
        "unlabeled": ", ".join(settings.unlabeled),
        **columns,
        "targets": ", ".join(settings.targets),
        "formats": ", ".join(settings.formats),
        "scheme": settings.scheme,
        "budget": ", ".join(f"{name} {format_limit(name, v)}" for name, v in limits.items()),
        "lengths": ", ".join(str(length) for length in settings.lengths),
        "steps": " → ".join(str(step) for step in settings.steps),
        "seed": str(settings.seed),
        "devices": ", ".join(settings.devices),
        "output": str(settings.output),
    }
    for name, value in shown.items():
        if value:
            origin = settings.origins.get(name, "default")
            typer.echo(f"{name.replace('_', ' ').rjust(9)}  {value}  {dim(f'({origin})')}")


# Bundles


def show_bundles(result: "BuildResult") -> None:
    """What was built: each bundle beside the original, its verdict, and what to do next."""
    for note in result.plan.notes:
        typer.echo(f"  note: {note}")
    if not result.bundles:
        typer.echo("\nnothing was built (--dry-run)")
    for bundle in result.bundles:
        typer.echo()
        _show_bundle(bundle, result.plan.original_bytes)
    if result.report is not None:
        typer.echo(f"\n{result.report}  what was built, and why: open it in a browser")


def _show_bundle(bundle: "BundleResult", original_bytes: int) -> None:
    share = original_bytes / bundle.shipped_bytes
    shipped = f"{format_bytes(bundle.shipped_bytes)} to ship, {share:.1f}x smaller"
    typer.echo(f"{bold(bundle.target)}  {shipped}")
    records = list(bundle.figures.values())
    scores = records[0]["metrics"]["original"]
    sizes = [(bundle.path / name).stat().st_size for name in bundle.figures]
    rows = [("bytes", [format_bytes(size) for size in (original_bytes, *sizes)])]
    for metric, score in scores.items():
        cells = [_score(metric, r["metrics"]["file"][metric], score) for r in records]
        rows.append((metric, [_score(metric, score), *cells]))
    rows.append(("agreement", ["", *(format_percent(r["agreement"]) for r in records)]))
    rows.extend((name, ["", *cells]) for name, cells in _running(records))
    show_table(
        ("", "original", *bundle.figures),
        [(name, *cells) for name, cells in rows],
        right=range(1, len(records) + 2),
    )
    typer.echo(dim(f"measured on {_device(records[0])}, {records[0]['rows']} rows"))
    for name, record in bundle.figures.items():
        _show_quantization(name, record)
    show_verdict(bundle.verdict)
    typer.echo(f"{bundle.path}  next: edgekit verify {bundle.path}")


def show_verdict(verdict: Verdict) -> None:
    """One line for each limit."""
    for check in verdict.checks:
        typer.echo(f"{mark(check.outcome)} {check.reason}")


def show_measurements(bench: "Bench") -> None:
    """What ``edgekit bench`` measured: a column for each file on each device."""
    found = bench.measurements
    timed = [each.latency for each in found]
    rows = [
        ("bytes", [format_bytes(each.bytes) for each in found]),
        ("p50", [_cell(each, lambda latency: format_seconds(latency.p50)) for each in timed]),
        ("±", [_cell(each, _reach) for each in timed]),
        ("p90", [_cell(each, lambda latency: _seconds(latency.p90)) for each in timed]),
        ("p99", [_cell(each, lambda latency: _seconds(latency.p99)) for each in timed]),
        (
            "p50, 1 thread",
            [_cell(each.one_thread, lambda one: _seconds(one.p50)) for each in found],
        ),
        *_by_length(timed),
        ("load", [_seconds(each.load_seconds) for each in found]),
        ("first run", [_seconds(each.first_run_seconds) for each in found]),
        ("rows a second", [_throughput(each) for each in found]),
        ("peak memory", [_bytes(each.memory.above_empty) for each in found]),
        ("of it mapped", [_bytes(each.memory.mapped) for each in found]),
        ("instructions", [_count(each.instructions) for each in found]),
        ("MACs", [_count(each.static.macs) for each in found]),
        ("weights read", [_known_bytes(each.static.weight_bytes) for each in found]),
        ("activations", [_known_bytes(each.static.activation_bytes) for each in found]),
        ("operators", [str(sum(each.static.ops.values())) for each in found]),
    ]
    several = len({each.device for each in found}) > 1
    show_table(
        ("", *(f"{each.file} {each.device}" if several else each.file for each in found)),
        [(name, *cells) for name, cells in rows if any(cells)],
        right=range(1, len(found) + 1),
    )
    if bench.tokenization_seconds is not None:
        typer.echo(f"tokenization takes {format_seconds(bench.tokenization_seconds)} more, here")
    for device in dict.fromkeys(each.device for each in found):
        first = next(each for each in found if each.device == device)
        what = _device({"device": first.fingerprint})
        told = "" if first.timed else "; its times mean nothing and are not shown"
        typer.echo(dim(f"{device}: {what}, {bench.rows} rows of {bench.inputs}{told}"))
    for each in found:
        if each.latency is not None and each.latency.wide and each.latency.low is not None:
            typer.echo(f"? {each.file}: time ran out with a wide interval; give more --seconds")

    for profile in bench.profiles:
        _show_profile(profile)


def _show_profile(profile: Mapping[str, Any]) -> None:
    """A bar for each layer, the slowest operators, and how near the peak the file comes."""
    from edgekit.measure.profile import top

    typer.echo()
    typer.echo(f"{bold(profile['file'])} on {profile['device']}, where the time goes")
    if not profile["ops"]:
        typer.echo(f"? no profile: {profile['reason']}")
        return
    widest = max(each["share"] for each in profile["layers"])
    show_table(
        ("layer", "time", "", ""),
        [
            (
                each["layer"],
                format_seconds(each["seconds"]),
                format_percent(each["share"], 1),
                "█" * round(_BAR * each["share"] / widest),
            )
            for each in profile["layers"]
        ],
        right=(1, 2),
    )
    typer.echo()
    show_table(
        ("slowest operators", "layer", "time"),
        [
            (each["name"], each["layer"] or "", format_seconds(each["seconds"]))
            for each in top(profile, _SLOWEST)
        ],
        right=(2,),
    )
    roof = profile["roofline"]
    if roof is not None and roof["share"] is not None:
        typer.echo(
            f"{roof['macs_per_second'] / 1e9:.1f} GMAC/s, {format_percent(roof['share'], 0)} of "
            "what one large product of matrices reaches in this runtime"
        )


def show_comparison(comparison: "Comparison", first: str, second: str) -> None:
    """One line with the verdict, one with what it rests on."""
    outcome: Outcome = "inconclusive" if comparison.outcome == "inconclusive" else "pass"
    said = {
        "faster": f"{first} is faster than {second}",
        "slower": f"{first} is slower than {second}",
        "same": f"{first} is as fast as {second}",
        "inconclusive": f"too noisy to tell whether {first} is faster or slower than {second}",
    }
    typer.echo(f"{mark(outcome)} {said[comparison.outcome]}")
    noise = max(abs(each - 1) for each in comparison.noise)
    typer.echo(
        f"  ratio {comparison.ratio:.3f}, 95 % interval {comparison.low:.3f} to "
        f"{comparison.high:.3f}; against itself up to {format_percent(noise, 1)} apart; "
        f"margin {format_percent(comparison.margin, 1)}, {comparison.pairs} pairs"
    )
    typer.echo(dim(f"measured on {_device({'device': comparison.fingerprint})}"))


def _cell(latency: "LatencyEntry | None", show: Callable[["LatencyEntry"], str]) -> str:
    return "" if latency is None else show(latency)


def _reach(latency: "LatencyEntry") -> str:
    if latency.low is None or latency.high is None:
        return ""
    return format_percent((latency.high - latency.low) / 2 / latency.p50, 1)


def _by_length(timed: "Sequence[LatencyEntry | None]") -> list[tuple[str, list[str]]]:
    """The median at each length that was run: at most four, evenly picked."""
    lengths = sorted({length for each in timed if each is not None for length in each.lengths})
    if len(lengths) > _MOST_LENGTHS:
        step = (len(lengths) - 1) / (_MOST_LENGTHS - 1)
        lengths = [lengths[round(place * step)] for place in range(_MOST_LENGTHS)]
    return [
        (
            f"p50 at {length}",
            [_seconds(None if each is None else each.lengths.get(length)) for each in timed],
        )
        for length in lengths
    ]


def _seconds(seconds: float | None) -> str:
    return "" if seconds is None else format_seconds(seconds)


def _count(number: float | None) -> str:
    return "" if number is None else f"{number / 1e6:.1f} M"


def _known_bytes(count: int | None) -> str:
    return "" if count is None else format_bytes(count)


def _throughput(measured: "Measurement") -> str:
    if measured.throughput is None:
        return ""
    return f"{measured.throughput.rows_per_second:.0f} (by {measured.throughput.batch})"


def _running(records: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """Rows for what running a file showed, one cell per record."""
    return [
        ("p50", [format_seconds(r["latency"]["p50"]) for r in records]),
        ("p90", [format_seconds(r["latency"]["p90"]) for r in records]),
        ("load", [format_seconds(r["load_seconds"]) for r in records]),
        ("first run", [format_seconds(r["first_run_seconds"]) for r in records]),
        ("peak memory", [_bytes(r["peak_memory"]) for r in records]),
        *(
            [("beside float32", [_beside_float(r) for r in records])]
            if any("against_float" in r for r in records)
            else []
        ),
        *(
            [("integers", [_integers(r) for r in records])]
            if any("integers" in r for r in records)
            else []
        ),
    ]


def _beside_float(record: Mapping[str, Any]) -> str:
    found = record.get("against_float")
    return "" if found is None else f"{found['ratio']:.2f}x its time"


def _integers(record: Mapping[str, Any]) -> str:
    found = record.get("integers")
    return "" if found is None else f"{found['tensors']} tensors as trained"


def _show_quantization(name: str, record: Mapping[str, Any]) -> None:
    """What else there is to know of a quantized file: what stays float, and what holds it up."""
    islands = record.get("float_islands", ())
    if islands:
        kinds = ", ".join(f"{each['count']} {each['op']}" for each in islands)
        typer.echo(dim(f"{name}: in float, {kinds} (the manifest says why)"))
    for reason in record.get("against_float", {}).get("reasons", ()):
        typer.echo(dim(f"{name} is no faster than its float32 form: {reason}"))


def _bytes(count: int | None) -> str:
    return "not known" if count is None else format_bytes(count)


def _score(metric: str, score: float, original: float | None = None) -> str:
    if metric in _COEFFICIENTS:
        return f"{score:.4f}" if original is None else f"{score:.4f} ({score - original:+.4f})"
    shown = format_percent(score)
    return shown if original is None else f"{shown} ({format_signed_points(score - original)})"


def _device(record: Mapping[str, Any]) -> str:
    device = record["device"]
    threads = f"{device['threads']} thread" + ("s" if device["threads"] > 1 else "")
    return f"{device['cpu'] or device['machine']}, {threads}, {device['runtime']}"


# Files


def contents_json(contents: "Contents") -> dict[str, Any]:
    """Everything in a model file."""
    return {
        "format": contents.format,
        "bytes": contents.bytes,
        "inputs": [vars(tensor) for tensor in contents.inputs],
        "outputs": [vars(tensor) for tensor in contents.outputs],
        "signatures": list(contents.signatures),
        "ops": dict(contents.ops),
        "bytes_per_dtype": contents.bytes_per_dtype(),
        "tensors": [vars(tensor) for tensor in contents.tensors],
    }


def show_contents(name: str, contents: "Contents", *, largest: int) -> None:
    """A model file for people, with its ``largest`` tensors."""
    typer.echo(f"{bold(name)}  {contents.format}, {format_bytes(contents.bytes)}")
    for kind, tensors in (("input", contents.inputs), ("output", contents.outputs)):
        for tensor in tensors:
            shape = " x ".join(str(size) for size in tensor.shape) or "scalar"
            typer.echo(f"{kind.rjust(8)}  {tensor.name}: {tensor.dtype} [{shape}]")
    if contents.signatures:
        typer.echo(f"{'signature'.rjust(8)}  {', '.join(contents.signatures)}")
    ops = sorted(contents.ops.items(), key=lambda item: (-item[1], item[0]))
    typer.echo(
        f"{'ops'.rjust(8)}  {sum(contents.ops.values())}: "
        + ", ".join(f"{count} {op}" for op, count in ops)
    )
    per_dtype = contents.bytes_per_dtype().items()
    stored = ", ".join(f"{dtype} {format_bytes(count)}" for dtype, count in per_dtype)
    typer.echo(f"{'stored'.rjust(8)}  {stored or 'nothing'}")
    tensors_by_size = sorted(contents.tensors, key=lambda tensor: -tensor.bytes)[:largest]
    if tensors_by_size:
        typer.echo()
        show_table(
            ("bytes", "dtype", "shape", "largest tensors"),
            [
                (format_bytes(t.bytes), t.dtype, " x ".join(map(str, t.shape)) or "scalar", t.name)
                for t in tensors_by_size
            ],
            right=(0,),
        )
    typer.echo()
