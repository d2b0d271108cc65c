"""What a request may say of the method."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from zipvl_serving.errors import InputError
from zipvl_serving.manifest import Method


@dataclass(frozen=True)
class MethodParams:
    """tau, the bounds on the ratio and the seed of the probes for one request.

    Raises InputError for a value outside its range.
    """

    tau: float
    ratio_min: float
    ratio_max: float
    seed: int
    dense: bool = False

    def __post_init__(self) -> None:
        for name, value, valid, holds in (
            ("tau", self.tau, "> 0 and <= 1", 0 < self.tau <= 1),
            ("ratio_min", self.ratio_min, ">= 0 and <= 1", 0 <= self.ratio_min <= 1),
            ("ratio_max", self.ratio_max, ">= 0 and <= 1", 0 <= self.ratio_max <= 1),
            ("probe seed", self.seed, ">= 0", self.seed >= 0),
        ):
            if not holds:
                raise InputError(f"{name}: {value} is out of range; must be {valid}")
        if self.ratio_min > self.ratio_max:
            raise InputError(f"ratio_min: {self.ratio_min} is above ratio_max, {self.ratio_max}")

    @classmethod
    def defaults(cls, method: Method) -> MethodParams:
        return cls(method.tau, method.ratio_min, method.ratio_max, method.seed)

    def override(
        self,
        tau: float | None = None,
        ratio_min: float | None = None,
        ratio_max: float | None = None,
        probe_seed: int | None = None,
        *,
        dense: bool = False,
    ) -> MethodParams:
        """This with what a request says; a ceiling below the default floor lowers that floor too, and the reverse.

        Raises InputError where `dense`, which keeps every token, stands beside a setting that it makes void.
        """
        asked: dict[str, Any] = {"tau": tau, "ratio_min": ratio_min, "ratio_max": ratio_max, "probe_seed": probe_seed}
        given = {name: value for name, value in asked.items() if value is not None}
        if dense and given:
            raise InputError(f"dense keeps every token: {next(iter(given))} has no effect beside it")
        if "ratio_max" in given and "ratio_min" not in given:
            given["ratio_min"] = min(self.ratio_min, max(given["ratio_max"], 0.0))
        if "ratio_min" in given and "ratio_max" not in given:
            given["ratio_max"] = max(self.ratio_max, min(given["ratio_min"], 1.0))
        if "probe_seed" in given:
            given["seed"] = given.pop("probe_seed")
        return replace(self, dense=dense, **given)
