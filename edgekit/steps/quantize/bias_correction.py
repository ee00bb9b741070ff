"""Shift each product's bias by what rounding has shifted its mean.

Nagel, van Baalen, Blankevoort, Welling. Data-free quantization through weight equalization and bias
correction. arXiv 1906.04721, section 4.2; the shift is seen on rows, not derived.

Rules:

1. A product's shift is the mean of its output in float less that of its output with all before it
   rounded, for each channel, over all tokens of the rows.
2. Products are corrected in the order in which they run: what one is shifted by, the next ones see.
3. A product without a bias is left, and so is a bias that several products add.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from edgekit.steps.quantize.graph import PRODUCTS, tensor_of
from edgekit.steps.quantize.points import Traced

Batches = Sequence[tuple[Tensor, ...]]

_LINEAR = torch.ops.aten.linear.default


def correct_biases(found: Traced, batches: Batches) -> int:
    """Correct the biases in place, on rows as a traced forward takes them; how many there were.

    The points must have their ranges, and the weights must be as they were in float.
    """
    products = _with_own_bias(found)
    means: dict[Any, Tensor] = {}

    def note(product: Any, outputs: list[Tensor]) -> None:
        means[product] = _mean(product, outputs)

    def correct(product: Any, outputs: list[Tensor]) -> None:
        shift = means[product] - _mean(product, outputs)
        tensor_of(found.module, product.args[2].target).add_(shift)
        channel = _channel(product)
        for output in outputs:
            output.add_(shift.reshape(-1, *(1,) * (output.ndim - 1 - channel % output.ndim)))

    with torch.no_grad():
        found.set_mode("off")
        _walk(found.module.graph, found.module, batches, products, note)
        found.set_mode("fake")
        try:
            _walk(found.module.graph, found.module, batches, products, correct)
        finally:
            found.set_mode("off")
    return len(products)


def _with_own_bias(found: Traced) -> set[Any]:
    """Rule 3."""
    products = [
        node
        for node in found.module.graph.nodes
        if node.target in PRODUCTS and len(node.args) > 2 and node.args[2] is not None
    ]
    uses = Counter(node.args[2].target for node in products)
    return {node for node in products if uses[node.args[2].target] == 1}


def _walk(
    graph: Any,
    module: Any,
    batches: Batches,
    products: set[Any],
    see: Callable[[Any, list[Tensor]], None],
) -> None:
    """Run a graph operator by operator, each on all batches before the next one runs.

    So one run is enough to correct every product behind the ones before it.
    """
    values: dict[Any, list[Any]] = {}
    inputs = iter(zip(*batches, strict=True))
    last_user = {each: node for node in graph.nodes for each in node.all_input_nodes}
    for node in graph.nodes:
        if node.op == "output":
            return
        if node.op == "placeholder":
            values[node] = list(next(inputs))
        elif node.op == "get_attr":
            values[node] = [tensor_of(module, node.target)] * len(batches)
        else:
            run = module.get_submodule(node.target) if node.op == "call_module" else node.target
            values[node] = [_run(run, node, values, number) for number in range(len(batches))]
        if node in products:
            see(node, values[node])
        for each in node.all_input_nodes:
            if last_user[each] is node:
                del values[each]


def _run(run: Callable[..., Any], node: Any, values: dict[Any, list[Any]], number: int) -> Any:
    args, kwargs = torch.fx.node.map_arg(
        (node.args, node.kwargs), lambda each: values[each][number]
    )
    return run(*args, **kwargs)


def _mean(product: Any, outputs: list[Tensor]) -> Tensor:
    """Of each channel."""
    channels = [output.movedim(_channel(product), -1).flatten(0, -2) for output in outputs]
    total = torch.stack([each.double().sum(0) for each in channels]).sum(0)
    return (total / sum(len(each) for each in channels)).float()


def _channel(product: Any) -> int:
    """Which axis of a product's output the channels are."""
    return -1 if product.target is _LINEAR else 1
