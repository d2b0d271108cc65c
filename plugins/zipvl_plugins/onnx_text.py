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


def largest_threshold(values: str, weights: str, target: str, low: str, high: str) -> str:
    """Text that searches the threshold t at which the weight of {values >= t} falls below a target.

    All names are values of the surrounding body: `values` and `weights` float32 [n], `target` float32 [1].
    Afterwards weight(values >= low) >= target > weight(values >= high), and low and high are neighbouring floats:
    the middle is geometric until high <= 2 low, arithmetic from there, and 34 rounds cover every normal float; values
    below the smallest of those count as zero. No sort: TensorRT's TopK stops at 3840.
    Needs `zero`, `tiny`, `two`, `half`, `rounds` and `go` in the body.
    """
    return f"""
        {high}_top = ReduceMax ({values})
        {high}_first = Mul ({high}_top, two)
        {high}_start = Max ({high}_first, two)
        {low}, {high} = Loop (rounds, go, zero, {high}_start) <body =
            {low}_search (int64 {low}_step, bool {low}_go, float[1] {low}_in, float[1] {high}_in)
                => (bool {low}_on, float[1] {low}_out, float[1] {high}_out) {{
                {low}_on = Identity ({low}_go)
                {low}_floor = Max ({low}_in, tiny)
                {low}_root = Sqrt ({low}_floor)
                {high}_root = Sqrt ({high}_in)
                {low}_far = Mul ({low}_root, {high}_root)
                {low}_gap = Sub ({high}_in, {low}_floor)
                {low}_step_up = Mul ({low}_gap, half)
                {low}_near = Add ({low}_floor, {low}_step_up)
                {low}_double = Mul ({low}_floor, two)
                {low}_is_near = LessOrEqual ({high}_in, {low}_double)
                {low}_mid = Where ({low}_is_near, {low}_near, {low}_far)
                {low}_in_reach = GreaterOrEqual ({values}, {low}_mid)
                {low}_counted = Where ({low}_in_reach, {weights}, zero)
                {low}_weight = ReduceSum ({low}_counted)
                {low}_enough = GreaterOrEqual ({low}_weight, {target})
                {low}_out = Where ({low}_enough, {low}_mid, {low}_in)
                {high}_out = Where ({low}_enough, {high}_in, {low}_mid)
            }}>"""
