"""Every plugin in TensorRT's own Python code: what the engine would keep is what torch launches."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from typing import Any

import pytest
from helpers.interpreter import Nth
from helpers.operands import Decoder, operands
from helpers.tensorrt_stub import in_stub
from helpers.tensorrt_stub.plugins import Answer, ask, registered

from zipvl_plugins import ops
from zipvl_plugins.gpu import tensorrt_plugins
from zipvl_plugins.gpu.ahead_of_time import Compiled
from zipvl_plugins.gpu.launch import Launch, Operand, plan
from zipvl_plugins.gpu.occupancy import LIMITS

SM = 80
MHA = Decoder(heads=8, kv_heads=8, d=128)
GQA = Decoder(heads=28, kv_heads=4, d=64)
SYMBOLS: dict[str, dict[str, tuple[str, ...]]] = {
    "probe_scores": {"q": ("m",), "k": ("n",), "positions": ("m",)},
    "select_tokens": {"accumulated": ("n",), "normalised": ("n",), "forced": ("n",)},
    "gather_rows": {"x": ("n",), "index": ("n",)},
    "gather_projection": {"x": ("n",), "index": ("n",)},
    "projection_scatter": {"o": ("n",), "index": ("n",)},
    "sparse_attention": {"q": ("n",), "k": ("n",), "v": ("n",)},
    "paged_attention": {
        "q": ("batch",), "k": ("batch",), "v": ("batch",), "key_pages": ("pages",), "value_pages": ("pages",),
        "block_table": ("batch", "blocks"), "context": ("batch",),
    },
}  # fmt: skip
"""Dynamic dimensions, the first of each input's; all others are numbers in an engine."""
SIZES = (
    {"n": 1, "m": 1, "batch": 1, "pages": 1, "blocks": 1},
    {"n": 4099, "m": 127, "batch": 3, "pages": 1000, "blocks": 37},
    {"n": 262144, "m": 300, "batch": 32, "pages": 70000, "blocks": 8192},
)


def symbolic(op: str, decoder: Decoder, dtype: str) -> dict[str, Operand]:
    """The op's inputs as the prepared graph gives them, with names for dynamic sizes."""
    face, sizes = tensorrt_plugins.face(op), operands(op, decoder, dtype)
    for name, weight in face.zeros.items():
        sizes[name] = Operand(dtype, sizes[weight].shape[:1])
    for name in face.as_int32:
        sizes[name] = replace(sizes[name], dtype="int32")
    dynamic = {name: SYMBOLS[op].get(name, ()) for name in sizes}
    return {
        name: replace(operand, shape=(*dynamic[name], *operand.shape[len(dynamic[name]) :]))
        for name, operand in sizes.items()
    }


def launches(
    op: str, inputs: dict[str, Operand], attributes: dict[str, Any], sizes: dict[str, int], tactic: int
) -> dict[str, tuple[list[Operand], Launch]]:
    """What torch launches on tensors of these sizes, by stage."""
    known = {
        name: replace(operand, shape=tuple(sizes.get(size, size) for size in operand.shape))
        for name, operand in inputs.items()
    }
    found = {}
    for stage in ops.stages(op):
        given = [known[name] for name in stage.inputs]
        launch = plan(stage, given, attributes, SM, Nth(tactic))
        known |= dict(zip(stage.outputs, launch.outputs, strict=True))
        found[stage.name] = given, launch
    return found


def most_tunings(op: str, decoder: Decoder, dtype: str) -> int:
    most = Nth(0)
    known: dict[str, Operand | None] = dict(operands(op, decoder, dtype))
    for stage in ops.stages(op):
        launch = plan(stage, [known[name] for name in stage.inputs], {"scale": 1.0}, SM, most)
        known |= dict(zip(stage.outputs, launch.outputs, strict=True))
    return most.most


def asked(op: str, decoder: Decoder, dtype: str, sizes: dict[str, int], **how: Any) -> dict[str, Answer]:
    return in_stub(ask, op, symbolic(op, decoder, dtype), {"scale": decoder.d**-0.5}, sizes, sm=SM, **how)


def test_every_stage_of_every_op_registers_once() -> None:
    names = in_stub(registered, SM)
    assert names == [f"{stage.name}::1::zipvl" for op in ops.OPS for stage in ops.stages(op)]
    assert len(set(names)) == len(names) and in_stub(registered, SM) == names
    assert tensorrt_plugins.plugin_names() == [name.split("::")[0] for name in names]


def test_another_gpu_needs_another_process() -> None:
    in_stub(registered, SM)
    with pytest.raises(ValueError, match="registered for sm_80; engines for sm_90 need a new process"):
        in_stub(registered, 90)


@pytest.mark.parametrize("op", ops.OPS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_launches_are_torchs_own(op: str, dtype: str) -> None:
    for decoder in (MHA, GQA):
        inputs = symbolic(op, decoder, dtype)
        attributes = {"scale": decoder.d**-0.5}
        for tactic in range(most_tunings(op, decoder, dtype)):
            for sizes in SIZES:
                wanted = launches(op, inputs, attributes, sizes, tactic)
                found = asked(op, decoder, dtype, sizes, tactic=tactic, compiled=False)
                assert list(found) == list(wanted)
                for stage, (_, launch) in wanted.items():
                    answer = found[stage]
                    assert answer.grid == (*launch.grid, 1, 1)[:3], stage
                    assert answer.scalars == launch.scalars, stage
                    assert answer.outputs == launch.outputs, stage


@pytest.mark.parametrize("op", ops.OPS)
def test_the_engine_holds_the_kernels_ptx(op: str) -> None:
    inputs, sizes = symbolic(op, MHA, "float16"), SIZES[1]
    wanted = launches(op, inputs, {"scale": MHA.d**-0.5}, sizes, 0)
    for stage, answer in asked(op, MHA, "float16", sizes).items():
        given, launch = wanted[stage]
        ptx = answer.ptx.decode()
        entry = re.search(rf"\.visible \.entry {answer.kernel}\(([^)]*)\)", ptx)
        assert entry is not None and f".target sm_{SM}" in ptx
        kinds = re.findall(r"\.param \.(u64|u32|b64|b32)", entry[1])
        pointers, scalars = len(given) + len(launch.outputs), len(launch.scalars)
        order = [*["u64"] * len(given), *["u32"] * scalars, *["u64"] * len(launch.outputs)]
        assert kinds == order and len(kinds) == pointers + scalars, stage
        assert answer.block == (32 * launch.warps, 1, 1)
        assert (answer.shared > 0) == (".extern .shared" in ptx) and answer.shared <= LIMITS[SM].shared_per_block


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_types_are_the_networks_and_every_tuning_is_a_tactic(dtype: str) -> None:
    name = {"float16": "HALF", "bfloat16": "BF16", "float32": "FLOAT"}[dtype]
    (answer,) = asked("sparse_attention", GQA, dtype, SIZES[1], compiled=False).values()
    assert answer.types == (name, name, name, "INT32", name)
    (stage,) = ops.stages("sparse_attention")
    inputs = list(operands("sparse_attention", GQA, dtype).values())
    assert answer.tactics == tuple(range(1, len(stage.tunings(SM, *inputs)) + 1))


def test_layers_that_launch_the_same_kernel_share_its_compilation(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Launch] = []

    def compile_launch(launch: Launch, inputs: object, sm: int) -> Compiled:
        made.append(launch)
        return Compiled(str(len(made)), b"", b"", 0, 0, 0, 0, 0, 0, 0, 0)

    monkeypatch.setattr(tensorrt_plugins, "compile_launch", compile_launch)
    (stage,) = ops.stages("gather_projection")
    plugin = tensorrt_plugins.Plugin(stage, {}, SM)

    def kernel_of(tokens: int, decoder: Decoder, tuning: int, dtype: str = "float16") -> str:
        inputs = symbolic("gather_projection", decoder, dtype)
        given, launch = launches("gather_projection", inputs, {}, {"n": tokens}, tuning)[stage.name]
        return plugin._compile(launch, given).name

    assert kernel_of(100, MHA, 0) == kernel_of(4096, MHA, 0) == "1"
    others = {kernel_of(100, MHA, 1), kernel_of(100, GQA, 0), kernel_of(100, MHA, 0, "bfloat16")}
    assert others == {"2", "3", "4"} and len(made) == 4


def test_this_process_has_no_tensorrt_of_the_stubs() -> None:
    in_stub(registered, SM)
    assert "tensorrt" not in sys.modules and "tensorrt_bindings" not in sys.modules


def test_outputs_do_not_depend_on_the_tuning() -> None:
    """TensorRT asks for shapes once, before it has chosen."""
    for op in ops.OPS:
        inputs = symbolic(op, GQA, "float16")
        of = [launches(op, inputs, {"scale": 1.0}, SIZES[1], nth) for nth in range(most_tunings(op, GQA, "float16"))]
        for each in of:
            assert {name: launch.outputs for name, (_, launch) in each.items()} == {
                name: launch.outputs for name, (_, launch) in of[0].items()
            }
