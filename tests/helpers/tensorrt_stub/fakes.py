"""What stands in for TensorRT's C++ side where its Python code calls it: symbolic sizes and the plugin registry."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

Sizes = Mapping[str, int]


class Expression:
    """A size that is a number, or is computed from named ones."""

    def __init__(self, evaluate: Callable[[Sizes], int], constant: int | None = None) -> None:
        self.evaluate = evaluate
        self.constant = constant

    @classmethod
    def of(cls, size: int | str) -> Expression:
        return cls(lambda sizes: sizes[size]) if isinstance(size, str) else cls(lambda sizes: size, size)

    def is_constant(self) -> bool:
        return self.constant is not None

    def get_constant_value(self) -> int:
        assert self.constant is not None
        return self.constant


class ExpressionBuilder:
    """TensorRT's IExprBuilder."""

    OPERATIONS: ClassVar = {
        "SUM": operator.add,
        "SUB": operator.sub,
        "PROD": operator.mul,
        "FLOOR_DIV": operator.floordiv,
    }

    def constant(self, value: int) -> Expression:
        return Expression.of(value)

    def operation(self, kind: Any, first: Expression, second: Expression) -> Expression:
        compute = self.OPERATIONS[kind.name]
        constant = None
        if first.constant is not None and second.constant is not None:
            constant = compute(first.constant, second.constant)
        return Expression(lambda sizes: compute(first.evaluate(sizes), second.evaluate(sizes)), constant)


class DimsExprs(list[Any]):
    def __init__(self, length: int) -> None:
        super().__init__([None] * length)


class SymExpr:
    """TensorRT's ISymExpr: a launch parameter or a kernel's scalar."""

    type: Any
    dtype: Any
    expr: Expression


class Registry:
    """TensorRT's plugin registry."""

    def __init__(self) -> None:
        self.creators: dict[tuple[str, str, str], Any] = {}

    def register_creator(self, creator: Any, namespace: str) -> None:
        self.creators[creator.name, creator.plugin_version, namespace] = creator

    def get_creator(self, name: str, version: str, namespace: str) -> Any:
        return self.creators[name, version, namespace]
