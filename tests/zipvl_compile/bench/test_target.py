"""What a mode is made of."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.bench import opened
from helpers.fake_session import FakeSession

from zipvl_compile.bench.target import Opened
from zipvl_compile.bench.workload import Mode
from zipvl_serving.bundle import Bundle


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        (Mode(kind="dense"), (True, 0.5, 0.5)),
        (Mode(kind="tau", value=0.9), (False, 0.0, 1.0)),
        (Mode(kind="fixed_ratio", value=0.25), (False, 0.25, 0.25)),
        (Mode(kind="forced_ratio", value=0.75), (False, 0.75, 0.75)),
    ],
)
def test_a_mode_is_the_same_whatever_bounds_the_bundle_sets(
    mode: Mode, expected: tuple[bool, float, float], tiny_bundle: Path
) -> None:
    bundle = Bundle.open(tiny_bundle)
    bounded = bundle.manifest.method.model_copy(update={"ratio_min": 0.5, "ratio_max": 0.5})
    manifest = bundle.manifest.model_copy(update={"method": bounded})
    target = opened(tiny_bundle, FakeSession(bundle))
    params = Opened(Bundle(bundle.path, manifest), target.session, 1, "").params(mode)
    assert (params.dense, params.ratio_min, params.ratio_max) == expected
    assert mode.kind != "tau" or params.tau == mode.value
