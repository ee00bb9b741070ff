"""Find the range of each activation on training rows; no weight learns.

Rules:

1. ``rows`` training rows, drawn by the seed, run through the model in float32, in batches that
   are padded by a token; each point sees its values (see ``points``).
2. ``min-max`` takes all that was seen. ``percentile`` leaves out the share ``1 - percentile`` at
   each end. ``mse`` and ``entropy`` shrink both ends by the same factor, of 1.00, 0.98 … 0.30, to
   the least mean squared error of rounding (Banner et al. 2019, arXiv 1810.05723), or to the
   least Kullback-Leibler divergence of the values' histogram (Migacz 2017, 8-bit inference with
   TensorRT).
3. The grid of scores and the fixed grids are the points' own (rules 5 and 6 there).
4. Weights are put on their grids.
5. With ``bias_correction`` the biases take back what rounding has shifted the mean by (see
   ``bias_correction``), on at most 256 of the same rows.
6. With ``accuracy_drop`` those layers stay float that lose too much (see ``sensitivity``), judged
   on training rows that were not calibrated on: at most 512, a quarter at the most. They are judged
   by their labels; by whether they get the float model's answers, where there are none.
7. ``random`` rows are random tokens, pixels or numbers (``random_rows`` in ``workbench``): the
   ranges are those of nothing real, and how good the file is nobody knows.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from edgekit.errors import ModelError, RecipeError
from edgekit.steps.needs import need_float

if TYPE_CHECKING:
    import torch

    from edgekit.model import Model
    from edgekit.preprocess import Array, Encoded
    from edgekit.step import Context
    from edgekit.steps.quantize.fake import Point
    from edgekit.steps.quantize.points import Traced
    from edgekit.steps.quantize.sensitivity import Scan

Method = Literal["min-max", "percentile", "mse", "entropy"]
Scheme = Literal["int8-static", "int16x8"]

_BINS = 2048
_CORRECTED = 256
_HELD_OUT = 512
_BATCH = 8
_RANDOM = 64  # more noise says no more
# What a row of scores holds below its largest: exp(-10) is 5e-5 (rule 6 of ``points``).
_SCORES = 10.0


@dataclass(frozen=True)
class Calibrate:
    """Finds the range of each activation on training rows, for integers that are static.

    method: how a range follows from what was seen. rows: how many training rows are looked at.
    percentile: of the values that stay inside, for that method. bias_correction: shift biases by
    what rounding has shifted. accuracy_drop: what of the metric may be lost, as a share, before
    layers are kept in float. scheme: what the ranges are for. random: look at random rows instead,
    for want of others.
    """

    method: Method = "min-max"
    rows: int = 512
    percentile: float = 0.9999
    bias_correction: bool = False
    accuracy_drop: float | None = None
    scheme: Scheme = "int8-static"
    random: bool = False

    def requires(self, model: Model, context: Context) -> None:
        from edgekit.steps.quantize.static import require_rows

        if self.random:
            need_float("calibrate", model)
        elif context.rows is None:
            need_float("calibrate", model)
            raise RecipeError(
                "calibrate: needs training rows to see its activations; give --data (or "
                "--allow-random-calibration, for a file whose accuracy nobody knows)"
            )
        else:
            require_rows("calibrate", model, context)
        if self.rows < 32:
            raise RecipeError(f"calibrate: rows must be at least 32, is {self.rows}")
        if not 0.5 < self.percentile <= 1:
            raise RecipeError(
                f"calibrate: percentile is a share from 0.5 to 1, is {self.percentile:g}"
            )
        if self.random and (self.bias_correction or self.accuracy_drop is not None):
            raise RecipeError(
                "calibrate: random rows say nothing about biases or layers; leave bias-correction "
                "and accuracy-drop out"
            )
        if self.accuracy_drop is not None:
            _require_scan(self.accuracy_drop, model, context)

    def apply(self, model: Model, context: Context) -> Model:
        from edgekit.model import Quantized

        if context.folder is None:
            return replace(model, quantized=Quantized(self.scheme, {}))
        from edgekit.steps.quantize.static import snap, traced

        made = replace(model, module=copy.deepcopy(model.module))
        found = traced(made, self.scheme)
        encoded = self._rows(model, context)
        found.set_ranges(observed_ranges(made, found, encoded, self.method, self.percentile))
        notes = [self._told(len(encoded))]
        float_layers: tuple[str, ...] = ()
        if self.accuracy_drop is not None:
            scan = _scan(found, made, self.accuracy_drop, context)
            notes.append(scan.text())
            float_layers = scan.float_layers
            quantized = Quantized(self.scheme, found.ranges(), float_layers)
            found = traced(replace(made, quantized=quantized))
        if self.bias_correction:
            notes.append(_corrected(made, found, encoded))
        snap(found)
        return replace(
            made,
            quantized=Quantized(self.scheme, found.ranges(), float_layers),
            lineage=(*model.lineage, *notes),
        )

    def _rows(self, model: Model, context: Context) -> Encoded:
        from edgekit.workbench import encode, random_rows

        if self.random:
            return encode(model, random_rows(model, min(self.rows, _RANDOM), context.seed))
        return draw(model, context, self._calibrated_on(context))

    def _told(self, count: int) -> str:
        if self.random:
            return (
                f"WARNING: calibrated for {self.scheme} on {count} random rows; nobody knows how "
                "good it is"
            )
        return f"calibrated for {self.scheme} on {count} training rows ({self.method})"

    def _calibrated_on(self, context: Context) -> int:
        assert context.rows is not None
        if self.accuracy_drop is None:
            return self.rows
        return min(self.rows, len(context.rows) - _held_out(context))

    def ensures(self, before: Model, after: Model) -> None:
        if after.quantized is None:
            raise RecipeError("calibrate: left no ranges behind; this is a bug of edgekit")


def _require_scan(drop: float, model: Model, context: Context) -> None:
    from edgekit.steps.quantize.static import require_layers

    require_layers("calibrate: accuracy-drop", model)
    if not 0 < drop < 1:
        raise RecipeError(
            f"calibrate: accuracy-drop is a share between 0 and 1, such as 0.01, is {drop:g}"
        )
    assert context.rows is not None
    if len(context.rows) < 4 * 32:
        raise RecipeError(
            f"calibrate: accuracy-drop is judged on a quarter of the training rows, and that of "
            f"{len(context.rows)} says too little; give at least 128, or leave it out"
        )


def _scan(found: Traced, model: Model, drop: float, context: Context) -> Scan:
    """Rule 6. model: still in float; found: traced from it, with ranges."""
    from edgekit.data import label_ids
    from edgekit.steps.quantize.sensitivity import drop_in, scan_layers
    from edgekit.workbench import encode

    assert context.rows is not None
    rows = context.rows.take(_shuffled(context)[-_held_out(context) :])
    encoded = encode(model, rows)
    labels: Any = None
    if rows.labels is not None:
        labels = label_ids(
            rows,
            model.labels,
            task=model.task,
            problem=model.problem,
            source="the training rows",
        )
    judge = drop_in(model, encoded, labels)
    return scan_layers(found, model, encoded, judge, drop, context.on_progress)


def draw(model: Model, context: Context, count: int) -> Encoded:
    """That many training rows, drawn by the seed."""
    from edgekit.workbench import encode

    assert context.rows is not None
    return encode(model, context.rows.take(np.sort(_shuffled(context)[:count])))


def _shuffled(context: Context) -> Array:
    """The places of the training rows, in the order in which they are drawn."""
    assert context.rows is not None
    return np.random.default_rng(context.seed).permutation(len(context.rows))


def _held_out(context: Context) -> int:
    """How many of the last that would be drawn are kept to judge by (rule 6)."""
    assert context.rows is not None
    return min(_HELD_OUT, len(context.rows) // 4)


def _corrected(model: Model, found: Traced, encoded: Encoded) -> str:
    """Rule 5; a sentence for the lineage."""
    from edgekit.steps.quantize.bias_correction import correct_biases
    from edgekit.steps.quantize.static import pieces

    # Rows lie in the order of their file, which may be sorted: some from everywhere.
    spread = encoded.rows(slice(None, None, -(-len(encoded) // _CORRECTED)))
    count = correct_biases(found, list(pieces(model, spread, _BATCH, padding=0)))
    return f"corrected the biases of {count} products on {len(spread)} training rows"


def observed_ranges(
    model: Model, found: Traced, encoded: Encoded, method: Method, percentile: float = 0.9999
) -> dict[str, tuple[float, float]]:
    """The range of each point by rules 1 to 3.

    Raises ModelError, naming the point, when its values are NaN, infinite or all zero.
    """
    ends = _Ends()
    _watch(model, found, encoded, ends.see)
    ranges = {}
    for name, point in found.points.items():
        low, high = ends.of(point) if point.fixed is None else point.fixed
        if not np.isfinite([low, high]).all():
            raise ModelError(
                f"{name} gives values that are infinite or NaN on the training rows; it has no "
                "range, and a static scheme needs one: choose --scheme int8-dynamic"
            )
        if low == high == 0:
            raise ModelError(
                f"{name} gives nothing but zeros on the training rows, so that its range is "
                "unknown; calibrate on more rows, or take the layer out"
            )
        ranges[name] = (low, high)
    if method == "min-max":
        return ranges
    counts = _Counts(found, ranges)
    _watch(model, found, encoded, counts.see)
    shrunk = {
        name: _shrink(counts.of(point), *ranges[name], point.bits, method, percentile)
        for name, point in found.points.items()
        if point.fixed is None and not point.scores
    }
    return ranges | shrunk


class _Ends:
    """The smallest and largest value of each point."""

    def __init__(self) -> None:
        self.seen: dict[int, list[float]] = {}

    def see(self, point: Point, values: torch.Tensor) -> None:
        low = values.amax(-1).min() - _SCORES if point.scores else values.min()
        ends = self.seen.setdefault(point.number, [float("inf"), float("-inf")])
        new = float(low), float(values.max())
        # A NaN must stay: min and max would drop it.
        ends[0] = new[0] if not new[0] >= ends[0] else ends[0]
        ends[1] = new[1] if not new[1] <= ends[1] else ends[1]

    def of(self, point: Point) -> tuple[float, float]:
        low, high = self.seen[point.number]
        return min(low, 0.0) if low == low else low, max(high, 0.0) if high == high else high


class _Counts:
    """A histogram of each point's values over its range."""

    def __init__(self, found: Traced, ranges: dict[str, tuple[float, float]]) -> None:
        self.ranges = {point.number: ranges[name] for name, point in found.points.items()}
        self.counts: dict[int, Array] = {}

    def see(self, point: Point, values: torch.Tensor) -> None:
        import torch

        low, high = self.ranges[point.number]
        counts = torch.histc(values.float(), _BINS, low, high).numpy().astype(np.float64)
        self.counts[point.number] = self.counts.get(point.number, 0) + counts

    def of(self, point: Point) -> Array:
        return self.counts[point.number]


def _watch(model: Model, found: Traced, encoded: Encoded, see: Any) -> None:
    import torch

    from edgekit.steps.quantize.static import pieces

    for point in found.points.values():
        point.watch = see
    found.set_mode("watch")
    try:
        with torch.no_grad():
            for inputs in pieces(model, encoded, _BATCH):
                found.module(*inputs)
    finally:
        found.set_mode("off")
        for point in found.points.values():
            point.watch = None


def _shrink(
    counts: Array, low: float, high: float, bits: int, method: Method, percentile: float
) -> tuple[float, float]:
    """A range inside ``low`` to ``high`` by rule 2; ``counts`` are its histogram."""
    edges = np.linspace(low, high, _BINS + 1)
    if method == "percentile":
        share = np.cumsum(counts) / counts.sum()
        least = edges[int(np.searchsorted(share, 1 - percentile))]
        most = edges[1 + min(_BINS - 1, int(np.searchsorted(share, percentile)))]
        kept = min(float(least), 0.0), max(float(most), 0.0)
        return kept if kept[1] > kept[0] else (low, high)
    centres = (edges[:-1] + edges[1:]) / 2
    loss = _squared_error if method == "mse" else _divergence
    factors = np.arange(100, 28, -2) / 100
    losses = [loss(counts, centres, low * factor, high * factor, bits) for factor in factors]
    best = float(factors[int(np.argmin(losses))])
    return low * best, high * best


def _squared_error(counts: Array, centres: Array, low: float, high: float, bits: int) -> float:
    return float(np.sum(counts * (centres - _rounded(centres, low, high, bits)) ** 2))


def _rounded(values: Array, low: float, high: float, bits: int) -> Array:
    from edgekit.steps.quantize.grid import activation_grid, quantize_activation

    grid = activation_grid(low, high, bits)
    integers = quantize_activation(values.astype(np.float32), grid)
    made: Array = (integers - grid.zero) * grid.scale
    return made


def _divergence(counts: Array, centres: Array, low: float, high: float, bits: int) -> float:
    """KL(seen ‖ rounded): each step's count is shared by the bins that round to it."""
    clipped = np.clip(centres, low, high)
    steps = np.unique(_rounded(clipped, low, high, bits), return_inverse=True)[1]
    inside = (centres >= low) & (centres <= high)
    kept = np.where(inside, counts, 0)
    first, last = np.flatnonzero(inside)[[0, -1]]
    kept[first] += counts[:first].sum()
    kept[last] += counts[last + 1 :].sum()
    filled = inside & (counts > 0)
    total = np.bincount(steps, np.where(inside, counts, 0))
    number = np.maximum(np.bincount(steps, filled), 1)
    shared = np.where(filled, (total / number)[steps], 0)
    p, q = kept / kept.sum(), shared / max(shared.sum(), 1e-12)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(p > 0, p * np.log(p / np.maximum(q, 1e-12)), 0)
    return float(terms.sum())
