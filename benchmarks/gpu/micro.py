"""Kernels timed one by one against PyTorch's own: TFLOP/s, GB/s, microseconds.

    python -m benchmarks.gpu.micro OP... [--rehearse]        # after `export PYTHONPATH=plugins:serving:.`

prints the figures of the named ops as JSON; scripts/gpu_suite.sh micro takes them all.
"""

from __future__ import annotations

import argparse
import json

import torch

from benchmarks.gpu import micro_compute, micro_memory, micro_selection
from benchmarks.gpu.entry import Entry
from benchmarks.gpu.machine import Machine, this_machine


def entries(machine: Machine) -> list[Entry]:
    """Those of most worth first: attention and selection at head dim 128."""
    attention = micro_compute.attention(machine)
    return [
        *attention[:2],
        *micro_selection.entries(machine),
        *micro_compute.gather_projection(machine),
        *micro_compute.projection_scatter(machine),
        *micro_memory.paged_attention(machine),
        *micro_memory.gather_rows(machine),
        *micro_memory.pages(machine),
        *attention[2:],
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ops", nargs="+")
    parser.add_argument("--rehearse", action="store_true", help="tiny shapes on this CPU, in Triton's interpreter")
    options = parser.parse_args()
    if not options.rehearse and not torch.cuda.is_available():
        parser.error("needs a CUDA GPU (or --rehearse with TRITON_INTERPRET=1)")
    machine = this_machine(rehearsal=options.rehearse)
    plan = entries(machine)
    known = sorted({op for entry in plan for op in entry.key.split("/")[0].split("+")})
    unknown = set(options.ops) - set(known)
    if unknown:
        parser.error(f"nothing to measure of {', '.join(sorted(unknown))}; valid: {', '.join(known)}")
    chosen = [entry for entry in plan if set(entry.key.split("/")[0].split("+")) & set(options.ops)]
    print(json.dumps({"machine": machine.name, **{entry.key: entry.run() for entry in chosen}}, indent=1))


if __name__ == "__main__":
    main()
