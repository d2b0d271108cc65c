"""What each command of the gate does, from its settings to a report."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from zipvl_compile.bench.fingerprint import fingerprint
from zipvl_compile.gate import baseline_file, deterministic, deterministic_baseline, paired, pinned, revision, self_test
from zipvl_compile.gate.deterministic_baseline import DeterministicBaseline
from zipvl_compile.gate.errors import BaselineMissingError
from zipvl_compile.gate.machine_class import MachineClass
from zipvl_compile.gate.paired import OnRound, Plan
from zipvl_compile.gate.pinned import PinnedBaseline, Workload
from zipvl_compile.gate.process import Clock, WorkerProcess
from zipvl_compile.gate.report import Case, Outcome, Report
from zipvl_serving.bundle import read_manifest

RECIPE = "digits"
MAKE_PINNED = "zipvl-compile gate update baseline --reason TEXT"


@dataclass(frozen=True)
class Timed:
    """How workers take their times.

    threads: of the engine, 0 for all cores. new_tokens: of each answer. clock: `wall`, or `cpu` for the processor time
    of the worker alone, which other programs disturb far less, and which waiting does not lengthen.
    """

    threads: int = 0
    new_tokens: int = 16
    clock: Clock = "wall"

    def worker(self, label: str, root: Path, bundle: Path) -> WorkerProcess:
        return WorkerProcess(label, root, bundle, threads=self.threads, new_tokens=self.new_tokens, clock=self.clock)


@contextmanager
def bundle_of(given: Path | None, recipe: str, overrides: Sequence[str] = ()) -> Iterator[Path]:
    """The bundle that was given, or else one that the checkout builds of a recipe for as long as the block runs."""
    if given is not None:
        read_manifest(given)  # what is no bundle is said before anything starts
        yield given
        return
    with tempfile.TemporaryDirectory(prefix="zipvl-gate-") as folder:
        yield revision.build("head", revision.head(), recipe, Path(folder) / "bundle", overrides)


def run_deterministic(bundle: Path | None, file: Path | None) -> Report:
    """Figures that repeat, against the committed ones. Raises BaselineMissingError where there are none."""
    place = file or default_deterministic()
    baseline = baseline_file.read(place, DeterministicBaseline, deterministic_baseline.MAKE)
    with bundle_of(bundle, RECIPE) as path:
        return deterministic_baseline.judge(deterministic.measure(path), read_manifest(path), baseline)


def update_deterministic(bundle: Path | None, file: Path | None, reason: str) -> tuple[Path, DeterministicBaseline]:
    """Write the figures of a bundle as the new baseline, the old ones into its history."""
    place = file or default_deterministic()
    previous = baseline_file.read_if_there(place, DeterministicBaseline)
    baseline_file.check_reason(reason)
    with bundle_of(bundle, RECIPE) as path:
        manifest = read_manifest(path)
        figures = {name: figure.value for name, figure in sorted(deterministic.measure(path).items())}
    found = DeterministicBaseline(
        bundle=manifest.name, tools=deterministic_baseline.tools_of(manifest), figures=figures, history=[]
    ).succeeding(previous, reason, _revision())
    baseline_file.write(place, found)
    return place, found


def run_paired(
    plan: Plan,
    timed: Timed,
    base: str | None,
    base_dir: Path | None,
    recipe: str,
    overrides: Sequence[str],
    on_round: OnRound,
) -> Report:
    """Times of this checkout against those of a base: each builds and runs the recipe with its own sources."""
    root = revision.head()
    with revision.base_tree(root, base, base_dir) as old, tempfile.TemporaryDirectory(prefix="zipvl-gate-") as folder:
        bundles = {
            label: revision.build(label, tree, recipe, Path(folder) / label, overrides)
            for label, tree in (("base", old), ("head", root))
        }
        with timed.worker("base", old, bundles["base"]) as one, timed.worker("head", root, bundles["head"]) as other:
            cases = paired.compare(one, other, plan, on_round)
        notes = revision.environment_notes(old, root)
        commit = revision.git(old, "rev-parse", "--short=12", "HEAD") if base else "an exported tree"
    context = {
        "base": f"{base or base_dir} ({commit})",
        "head": _revision(),
        "times": f"{timed.clock} clock, {timed.threads or 'all'} threads",
    }
    return Report(cases, notes, context, fingerprint())


def run_pinned(bundle: Path | None, file: Path | None, tolerance: float, on_round: OnRound) -> Report:
    """Times against this machine class's baseline, measured alike. Raises BaselineMissingError where there is none."""
    root = revision.head()
    with bundle_of(bundle, RECIPE) as path:
        machine = MachineClass.here(read_manifest(path))
        baseline = baseline_file.read(file or default_pinned(machine), PinnedBaseline, MAKE_PINNED)
        workload = baseline.workload
        timed = Timed(workload.threads, workload.new_tokens, workload.clock)
        with timed.worker("head", root, path) as worker:
            found = pinned.measure(worker, workload, on_round)
        report = Report(pinned.verdicts(found, baseline, tolerance), environment=fingerprint())
        report.notes += deterministic_baseline.tool_notes(
            baseline.tools, deterministic_baseline.tools_of(read_manifest(path))
        )
    if machine != baseline.machine:
        report.notes.append(f"the baseline is of {baseline.machine.key}, this machine is {machine.key}")
    last = baseline.history[-1]
    report.context |= {"machine": machine.key, "baseline": f"{last.date}, revision {last.revision}: {last.reason}"}
    return report


def update_pinned(
    bundle: Path | None, file: Path | None, plan: Plan, timed: Timed, reason: str, on_round: OnRound
) -> tuple[Path, PinnedBaseline]:
    """Measure this machine and write its class's baseline, the old medians into its history."""
    baseline_file.check_reason(reason)
    root = revision.head()
    with bundle_of(bundle, RECIPE) as path:
        manifest = read_manifest(path)
        machine = MachineClass.here(manifest)
        place = file or default_pinned(machine)
        previous = baseline_file.read_if_there(place, PinnedBaseline)
        workload = Workload(
            recipe=manifest.name,
            figures=plan.figures,
            lengths=plan.lengths,
            rounds=plan.rounds,
            threads=timed.threads,
            new_tokens=timed.new_tokens,
            clock=timed.clock,
        )
        with timed.worker("head", root, path) as worker:
            samples = pinned.measure(worker, workload, on_round)
    found = PinnedBaseline(
        tools=deterministic_baseline.tools_of(manifest), machine=machine, workload=workload, samples=samples, history=[]
    ).succeeding(previous, reason, _revision())
    baseline_file.write(place, found)
    return place, found


def run_all(
    plan: Plan, timed: Timed, base: str | None, base_dir: Path | None, recipe: str, on_round: OnRound
) -> Report:
    """Every gate that has something to compare with; the committed figures must be there, the others may not."""
    report = Report()
    with bundle_of(None, recipe) as bundle:
        try:
            report.merge(run_deterministic(bundle, None))
        except BaselineMissingError as error:
            report.cases.append(Case("deterministic", "baseline", Outcome.MISSING, str(error)))
        if base is not None or base_dir is not None:
            report.merge(run_paired(plan, timed, base, base_dir, recipe, (), on_round))
        else:
            report.notes.append("the paired gate did not run: no --base, no --base-dir")
        try:
            report.merge(run_pinned(bundle, None, pinned.TOLERANCE, on_round))
        except BaselineMissingError as error:
            report.notes.append(f"the pinned gate did not run: {error}")
    return report


def run_self_test(bundle: Path | None, timed: Timed, on_round: OnRound) -> Report:
    """The gate's two verdicts on the same sources."""
    root = revision.head()
    with bundle_of(bundle, RECIPE) as path:
        return self_test.run_on(root, path, timed.threads, timed.clock, on_round)


def default_deterministic() -> Path:
    return revision.head() / baseline_file.FOLDER / deterministic_baseline.FILE_NAME


def default_pinned(machine: MachineClass) -> Path:
    return revision.head() / baseline_file.FOLDER / f"{machine.key}.json"


def _revision() -> str:
    """The revision of these sources, ` + changes` where files differ from it; `unknown` outside a checkout."""
    found = fingerprint()["revision"]
    return f"{found['commit'][:12]}{' + changes' if found['changed'] else ''}" if found else "unknown"
