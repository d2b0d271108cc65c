"""One launch of a GPU kernel, described once for all who make it: torch, the ahead-of-time compiler, TensorRT.

A kernel takes its arguments in the order in which TensorRT passes them: input pointers, int32 scalars, output pointers;
everything static is a tl.constexpr. Sizes may be Python integers or TensorRT's symbolic expressions, so the grid that a
plugin declares and the grid that torch launches come from the same line.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

Size = Any
"""An int, or an expression of TensorRT with +, -, * and //."""


@dataclass(frozen=True)
class Operand:
    """What a launch may know of a tensor: never its data."""

    dtype: str
    """As torch and numpy spell it, such as "float16"."""
    shape: tuple[Size, ...]


@dataclass(frozen=True)
class Tuning:
    """How a kernel is cut: block sizes (its constexprs), warps per block, stages of the software pipeline."""

    blocks: Mapping[str, int]
    warps: int
    stages: int


@dataclass(frozen=True)
class Launch:
    """A kernel with everything but its tensors."""

    kernel: Any
    """The @triton.jit function."""
    grid: tuple[Size, ...]
    """One to three sizes; the worst case, where the work depends on a count that only the device knows."""
    scalars: tuple[Size, ...]
    """int32 arguments between inputs and outputs."""
    outputs: tuple[Operand, ...]
    """Scratch included: a TensorRT plugin has no workspace."""
    constants: Mapping[str, Any]
    """Values of the kernel's constexprs."""
    warps: int
    stages: int


@dataclass(frozen=True)
class Stage:
    """One kernel of an op, a TensorRT plugin of its own. An op's stages run in order and pass values by name."""

    name: str
    inputs: tuple[str, ...]
    """Names of op inputs, or of outputs of earlier stages, in the kernel's order."""
    outputs: tuple[str, ...]
    launch: Callable[..., Launch]
    """launch(*operands, tuning=Tuning, **attributes); an absent optional input is None."""
    tunings: Callable[..., Sequence[Tuning]]
    """tunings(sm, *operands): the ways to cut it worth trying on compute capability sm (80, 89, 90), best first."""
    attributes: tuple[str, ...] = field(default=())
    """Attributes of the op that its launch takes."""


Choose = Callable[[Stage, Sequence[Tuning]], Tuning]
"""Which of a stage's tunings to launch."""


def best(stage: Stage, tunings: Sequence[Tuning]) -> Tuning:
    """The stage's own first choice."""
    return tunings[0]


def cdiv(size: Size, block: int) -> Size:
    """Blocks that cover a size, rounded up."""
    return (size + (block - 1)) // block


def operand(tensor: torch.Tensor | None) -> Operand | None:
    """What a launch may know of a tensor."""
    return None if tensor is None else Operand(str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))


def launch_on(launch: Launch, inputs: Sequence[torch.Tensor | None], outputs: Sequence[torch.Tensor]) -> None:
    """Launch on tensors that are all there; an absent input is passed as a pointer that the kernel never reads."""
    placeholder = next(tensor for tensor in inputs if tensor is not None)
    launch.kernel[launch.grid](
        *(placeholder if tensor is None else tensor for tensor in inputs),
        *launch.scalars,
        *outputs,
        **launch.constants,
        num_warps=launch.warps,
        num_stages=launch.stages,
    )


def plan(
    stage: Stage, inputs: Sequence[Operand | None], attributes: Mapping[str, Any], sm: int, choose: Choose = best
) -> Launch:
    """A stage's launch on compute capability sm; `attributes` may hold more than the stage takes."""
    taken = {name: attributes[name] for name in stage.attributes}
    return stage.launch(*inputs, tuning=choose(stage, stage.tunings(sm, *inputs)), **taken)


def run_stage(
    stage: Stage, inputs: Sequence[torch.Tensor | None], attributes: Mapping[str, Any], choose: Choose = best
) -> tuple[torch.Tensor, ...]:
    """Allocate a stage's outputs and launch it; inputs must be contiguous. Never waits for the device."""
    import torch

    device = next(tensor.device for tensor in inputs if tensor is not None)
    launch = plan(stage, [operand(tensor) for tensor in inputs], attributes, compute_capability(device), choose)
    outputs = [torch.empty(out.shape, dtype=getattr(torch, out.dtype), device=device) for out in launch.outputs]
    launch_on(launch, inputs, outputs)
    return tuple(outputs)


def compute_capability(device: torch.device) -> int:
    """80 for an A100; the interpreter, which runs on CPU tensors, takes an A100's choices."""
    import torch

    if device.type != "cuda":
        return 80
    major, minor = torch.cuda.get_device_capability(device)
    return major * 10 + minor
