"""ONNX functions from their textual form.

A function is written in ONNX's own text syntax and parsed here. Every value inside is prefixed with the function's
name and node names are cleared: TensorRT-RTX's parser leaks names from inside functions into the graph.
"""

from __future__ import annotations

import onnx
import onnx.parser

DOMAIN = "zipvl"
OPSET = 23
"""The opset of ONNX operators that functions and graphs are written in."""


PLUGIN_ATTRIBUTES = {"plugin_namespace": DOMAIN, "plugin_version": "1"}
"""On every zipvl node: without them TensorRT's parser prefers the local function over the plugin."""


def parse_function(text: str, *, domains: dict[str, int] | None = None) -> onnx.FunctionProto:
    """Parse one function; `domains` names further operator domains that its body uses."""
    imports = ", ".join(f'"{name}" : {version}' for name, version in {"": OPSET, **(domains or {})}.items())
    function = onnx.parser.parse_function(f'<domain: "{DOMAIN}", opset_import: [{imports}]>\n{text}')
    function.attribute.extend(PLUGIN_ATTRIBUTES)
    public = {*function.input, *function.output}
    _prefix(function.node, f"{function.name}_", public)
    return function


def _prefix(nodes: object, prefix: str, public: set[str]) -> None:
    def renamed(name: str) -> str:
        return name if not name or name in public else prefix + name

    for node in nodes:  # type: ignore[attr-defined]
        node.name = ""
        node.input[:] = [renamed(name) for name in node.input]
        node.output[:] = [renamed(name) for name in node.output]
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                graph = attribute.g
                for value in (*graph.input, *graph.output):
                    value.name = renamed(value.name)
                _prefix(graph.node, prefix, public)


_WAYS = 256
_GEOMETRIC, _ARITHMETIC = 2, 2
"""Rounds of a search: 140 octaves / 256^2 leave a bracket 0.15 % wide, its 2^14.6 floats / 256^2 leave neighbours."""


def search_constants() -> str:
    """Text of the constants that `largest_threshold` needs in its body."""
    steps = ", ".join(str(i / _WAYS) for i in range(1, _WAYS))
    return f"""
                nothing = Constant <value = float[1, 1] {{0.0}}> ()
                smallest = Constant <value = float[1, 1] {{1.1754944e-38}}> ()
                twice = Constant <value = float[1, 1] {{2.0}}> ()
                endless = Constant <value = float[1, 1] {{3.0e38}}> ()
                steps = Constant <value = float[{_WAYS - 1}, 1] {{{steps}}}> ()
                outer = Constant <value = int64[1] {{0}}> ()
                inner = Constant <value = int64[1] {{1}}> ()"""


def largest_threshold(values: str, weights: str, target: str, low: str, high: str) -> str:
    """Text that searches the threshold t at which the weight of {values >= t} falls below a target.

    All names are values of the surrounding body: `values` and `weights` float32 [n], `target`, `low` and `high`
    float32 [1]. Afterwards weight(values >= low) >= target > weight(values >= high), and low and high are neighbouring
    floats; values below the smallest normal float count as zero. Each round weighs 255 thresholds at once and keeps the
    gap between two of them, spaced geometrically while the bracket spans octaves, arithmetically from there. No sort:
    TensorRT's TopK stops at 3840. No Loop: TensorRT-RTX takes none inside an If, and does a round in three kernels.
    Ranks are equal throughout: its parser spends several layers on every broadcast between ranks.
    """
    rounds = _GEOMETRIC + _ARITHMETIC
    text = f"""
                {low}_values = Unsqueeze ({values}, outer)
                {low}_masses = Unsqueeze ({weights}, outer)
                {low}_target = Unsqueeze ({target}, outer)
                {low}_0 = Identity (nothing)
                {high}_top = ReduceMax ({low}_values, inner)
                {high}_above = Mul ({high}_top, twice)
                {high}_0 = Max ({high}_above, twice)"""
    for done in range(rounds):
        text += _search_round(low, high, done, geometric=done < _GEOMETRIC)
    return f"""{text}
                {low} = Squeeze ({low}_{rounds}, outer)
                {high} = Squeeze ({high}_{rounds}, outer)"""


def _search_round(low: str, high: str, done: int, *, geometric: bool) -> str:
    """From the bracket `<low>_<done>`, `<high>_<done>`, float32 [1, 1], to the next."""
    a, b = f"{low}_{done}", f"{high}_{done}"
    if geometric:
        marks = f"""
                {a}_from = Log ({a}_floor)
                {b}_to = Log ({b})
                {b}_gap = Sub ({b}_to, {a}_from)
                {b}_strides = Mul (steps, {b}_gap)
                {b}_powers = Add ({b}_strides, {a}_from)
                {b}_marks = Exp ({b}_powers)"""
    else:
        marks = f"""
                {b}_gap = Sub ({b}, {a}_floor)
                {b}_strides = Mul (steps, {b}_gap)
                {b}_marks = Add ({b}_strides, {a}_floor)"""
    return f"""
                {a}_floor = Max ({a}, smallest){marks}
                {b}_reached = GreaterOrEqual ({low}_values, {b}_marks)
                {b}_counted = Where ({b}_reached, {low}_masses, nothing)
                {b}_weights = ReduceSum ({b}_counted, inner)
                {b}_enough = GreaterOrEqual ({b}_weights, {low}_target)
                {a}_candidates = Where ({b}_enough, {b}_marks, nothing)
                {a}_best = ReduceMax ({a}_candidates, outer)
                {low}_{done + 1} = Max ({a}, {a}_best)
                {b}_candidates = Where ({b}_enough, endless, {b}_marks)
                {b}_best = ReduceMin ({b}_candidates, outer)
                {high}_{done + 1} = Min ({b}, {b}_best)"""
