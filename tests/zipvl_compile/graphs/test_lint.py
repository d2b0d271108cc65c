"""The lint: exported graphs pass, and every rule finds the graph that was broken for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir
import pytest
from helpers.bundles import build_recipe, refusal

from zipvl_compile.graphs import lint as graph_lint
from zipvl_compile.graphs.lint import lint
from zipvl_plugins.onnx_text import DOMAIN, OPSET, parse_function
from zipvl_serving.contract import GRAPHS
from zipvl_serving.errors import ZipvlError

LOOPING = """
select_tokens (accumulated, normalised, forced, tau, ratio_min, ratio_max) => (index, count) {
    rounds = Constant <value = int64 {3}> ()
    go = Constant <value = bool {1}> ()
    found = Loop (rounds, go, tau) <body =
        search (int64 round, bool going, float[1] held) => (bool goes_on, float[1] grown) {
            goes_on = Identity (going)
            grown = Add (held, ratio_min)
        }>
    index = Cast <to = 6> (accumulated)
    count = Cast <to = 6> (found)
}"""
"""No selection, but a graph with inputs inside a function."""


@pytest.fixture
def prefill(tiny_bundle: Path) -> ir.Model:
    """A real graph to break, with a body of select_tokens that has a loop."""
    model = ir.load(tiny_bundle / "prefill.onnx")
    looping = ir.from_proto(parse_function(LOOPING))
    model.functions[looping.identifier()] = looping
    return model


def function(model: ir.Model) -> ir.Function:
    return next(function for function in model.functions.values() if function.name == "select_tokens")


def node(model: ir.Model) -> ir.Node:
    return next(node for node in model.graph if node.domain == DOMAIN and node.op_type == "select_tokens")


def loop_body(model: ir.Model) -> ir.Graph:
    """A graph within a function."""
    nodes = ir.traversal.RecursiveGraphIterator(function(model).graph)
    return next(node.attributes["body"].as_graph() for node in nodes if node.op_type == "Loop")


@pytest.mark.parametrize("graph", GRAPHS)
def test_exported_graphs_pass(tiny_bundle: Path, graph: str) -> None:
    model = ir.load(tiny_bundle / f"{graph}.onnx")
    assert lint(model) == []
    assert lint(model, weights_open=True) == []
    zipvl_nodes = {node.op_type for node in model.graph if node.domain == DOMAIN}
    assert zipvl_nodes == {function.name for function in model.functions.values()}
    assert bool(zipvl_nodes) == (graph != "vision")


def _remove_function(model: ir.Model) -> None:
    del model.functions[function(model).identifier()]


def _name_like_an_operator(model: ir.Model) -> None:
    found = function(model)
    _remove_function(model)
    found.name = "Attention"
    model.functions[found.identifier()] = found
    for user in model.graph:
        if user.op_type == "select_tokens":
            user.op_type = "Attention"


def _rename(value: ir.Value, name: str) -> None:
    value.name = name


def _import(opsets: dict[str, int], domain: str, version: int) -> None:
    opsets[domain] = version


def _define_twice(model: ir.Model) -> None:
    first, second = list(model.graph)[:2]
    first.outputs[0].name = second.outputs[0].name = "twin"


def _initializer(model: ir.Model) -> ir.Value:
    return model.graph.initializers["model.language_model.norm.weight"]


@pytest.mark.parametrize(
    ("damage", "finding"),
    [
        (_remove_function, "node select_tokens: no function of that name in the model"),
        (
            lambda model: node(model).attributes.pop("plugin_namespace"),
            "node select_tokens: attribute plugin_namespace is not 'zipvl'",
        ),
        (
            lambda model: node(model).attributes.add(ir.AttrString("plugin_version", "2")),
            "node select_tokens: attribute plugin_version is not '1'",
        ),
        (_name_like_an_operator, "function Attention: is named like an ONNX operator"),
        (
            lambda model: _rename(function(model).graph[0].outputs[0], "total"),
            "function select_tokens: value 'total' lacks the prefix select_tokens_",
        ),
        (
            lambda model: _rename(loop_body(model)[0].outputs[0], "inner"),
            "function select_tokens: value 'inner' lacks the prefix select_tokens_",
        ),
        (
            lambda model: _rename(loop_body(model).inputs[0], "step"),
            "function select_tokens: value 'step' lacks the prefix select_tokens_",
        ),
        (
            lambda model: _rename(function(model).graph[0], "first"),
            "has a name, 'first'",
        ),
        (
            lambda model: _rename(loop_body(model)[0], "deep"),
            "has a name, 'deep'",
        ),
        (
            lambda model: _import(function(model).opset_imports, "", OPSET - 1),
            f"function select_tokens: imports ai.onnx {OPSET - 1}, the graph does not",
        ),
        (
            lambda model: _import(function(model).opset_imports, "elsewhere", 1),
            "function select_tokens: imports elsewhere 1, the graph does not",
        ),
        (
            lambda model: setattr(_initializer(model), "const_value", None),
            "initializer model.language_model.norm.weight: has no data",
        ),
        (_define_twice, "value twin: defined 2 times"),
        (
            lambda model: _rename(next(iter(model.graph)).outputs[0], "input_ids"),
            "value input_ids: defined 2 times",
        ),
    ],
)
def test_every_rule_finds_what_breaks_it(prefill: ir.Model, damage: Callable[[ir.Model], object], finding: str) -> None:
    damage(prefill)
    found = lint(prefill)
    assert any(finding in line for line in found), found
    assert all("\n" not in line for line in found)


def test_weights_may_be_open_before_they_are_placed(prefill: ir.Model) -> None:
    _initializer(prefill).const_value = None
    assert lint(prefill, weights_open=True) == []


def test_a_finding_stops_the_build(tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "zipvl_compile.graphs.export.export_graph", lambda *_: ir.Model(ir.Graph([], [], nodes=[]), ir_version=10)
    )
    monkeypatch.setattr(graph_lint, "lint", lambda model, **_: ["first", "second"])
    with refusal(ZipvlError, "the vision graph breaks a rule of the parsers: first (+1 more)"):
        build_recipe(tiny_recipe, tmp_path / "bundle", use_cache=False)
    assert list(tmp_path.iterdir()) == []
