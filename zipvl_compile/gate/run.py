"""What each command of the gate does, from its settings to a report."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from zipvl_compile.bench.fingerprint import fingerprint
from zipvl_compile.gate import baseline_file, deterministic, deterministic_baseline, paired, pinned, revision, self_test
from zipvl_compile.gate.deterministic_baseline import DeterministicBaseline
from zipvl_compile.gate.errors import BaselineMissingError, as_gate_error
from zipvl_compile.gate.figures import SECTION as DETERMINISTIC
from zipvl_compile.gate.machine_class import MachineClass
from zipvl_compile.gate.paired import OnRound, Plan
from zipvl_compile.gate.pinned import PinnedBaseline, Product, Workload
from zipvl_compile.gate.process import Clock, Sampler, WorkerProcess
from zipvl_compile.gate.report import Case, Outcome, Report
from zipvl_compile.recipe.load import load_recipe
from zipvl_serving.bundle import read_manifest

RECIPE = "digits"
MAKE_PINNED = "zipvl-compile gate update baseline --reason TEXT"


@dataclass(frozen=True)
class Timed:
    """How workers run: threads of the engine, 0 for all cores; tokens of each answer."""

    threads: int = 0
    new_tokens: int = 16

    def worker(self, label: str, root: Path, bundle: Path, figures: Sequence[str]) -> WorkerProcess:
        return WorkerProcess(
            label, root, bundle, threads=self.threads, new_tokens=self.new_tokens, dense="dense" in figures
        )


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
        deterministic_baseline.check_fresh(manifest)
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

        @contextmanager
        def sides() -> Iterator[tuple[Sampler, Sampler]]:
            base_side = timed.worker("base", old, bundles["base"], plan.figures)
            with base_side as one, timed.worker("head", root, bundles["head"], plan.figures) as other:
                yield one, other

        report = paired.compare(sides, plan, on_round)
        report.notes += revision.environment_notes(old, root) + revision.bundle_notes(bundles["base"], bundles["head"])
        commit = revision.git(old, "rev-parse", "--short=12", "HEAD") if base else "an exported tree"
    report.context |= {
        "base": f"{base or base_dir} ({commit})",
        "head": _revision(),
        "times": f"{plan.clock} clock, {timed.threads or 'all'} threads",
    }
    report.environment |= fingerprint()
    return report


def run_pinned(bundle: Path | None, file: Path | None, tolerance: float, on_round: OnRound) -> Report:
    """Times against this machine class's baseline, measured alike. Raises BaselineMissingError where there is none."""
    root = revision.head()
    baseline = baseline_file.read(file or default_pinned(_machine(bundle)), PinnedBaseline, MAKE_PINNED)
    workload = baseline.workload
    with bundle_of(bundle, workload.recipe) as path:
        manifest, machine = read_manifest(path), _machine(path)
        pinned.check(baseline, manifest.name)
        timed = Timed(workload.threads, workload.new_tokens)
        with timed.worker("head", root, path, workload.figures) as worker:
            work, found = pinned.measure(worker, workload, on_round)
    report = Report(notes=pinned.work_notes(work, baseline), environment=fingerprint())
    report.cases += pinned.verdicts(found, baseline, tolerance)
    report.notes += deterministic_baseline.stale_notes(manifest)
    report.notes += deterministic_baseline.tool_notes(baseline.tools, deterministic_baseline.tools_of(manifest))
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
        manifest, machine = read_manifest(path), _machine(path)
        deterministic_baseline.check_fresh(manifest)
        place = file or default_pinned(machine)
        previous = baseline_file.read_if_there(place, PinnedBaseline)
        workload = Workload(
            recipe=manifest.name,
            figures=plan.figures,
            lengths=plan.lengths,
            rounds=plan.rounds,
            threads=timed.threads,
            new_tokens=timed.new_tokens,
            clock=plan.clock,
            product=Product(),
        )
        with timed.worker("head", root, path, plan.figures) as worker:
            work, samples = pinned.measure(worker, workload, on_round)
    found = PinnedBaseline(
        tools=deterministic_baseline.tools_of(manifest),
        machine=machine,
        workload=workload,
        work=work,
        samples=samples,
        history=[],
    ).succeeding(previous, reason, _revision())
    baseline_file.write(place, found)
    return place, found


def run_all(
    plan: Plan, timed: Timed, base: str | None, base_dir: Path | None, on_round: OnRound, *, with_pinned: bool = True
) -> Report:
    """The deterministic gate, the paired one where a base is named, and the pinned one unless it is left out.

    A baseline that is missing and a gate that breaks become cases, so that what the others find is told.
    """
    report = Report()
    _join(report, DETERMINISTIC, lambda: run_deterministic(None, None))
    if base is None and base_dir is None:
        report.notes.append("the paired gate did not run: no --base, no --base-dir")
    else:
        _join(report, paired.SECTION, lambda: run_paired(plan, timed, base, base_dir, RECIPE, (), on_round))
    if with_pinned:
        _join(report, pinned.SECTION, lambda: run_pinned(None, None, pinned.TOLERANCE, on_round))
    else:
        report.notes.append("the pinned gate did not run: --no-pinned")
    return report


def _join(report: Report, section: str, run: Callable[[], Report]) -> None:
    """Add what a gate finds, or why it finds nothing."""
    try:
        report.merge(run())
    except BaselineMissingError as error:
        report.cases.append(Case(section, "baseline", Outcome.MISSING, str(error)))
    except Exception as error:
        report.cases.append(Case(section, "gate", Outcome.BROKEN, str(as_gate_error(error))))


def run_self_test(bundle: Path | None, threads: int, clock: Clock, on_round: OnRound) -> Report:
    """The gate's two verdicts on the same sources."""
    root = revision.head()
    with bundle_of(bundle, RECIPE) as path:
        report = self_test.run_on(root, path, threads, replace(self_test.PLAN, clock=clock), on_round)
    report.environment |= fingerprint()
    return report


def default_deterministic() -> Path:
    return revision.head() / baseline_file.FOLDER / deterministic_baseline.FILE_NAME


def default_pinned(machine: MachineClass) -> Path:
    return revision.head() / baseline_file.FOLDER / f"{machine.key}.json"


def _machine(bundle: Path | None) -> MachineClass:
    """The class of this machine with a bundle, or with what RECIPE builds."""
    backend = read_manifest(bundle).engine.backend if bundle else load_recipe(RECIPE).recipe.target.backend
    return MachineClass.here(backend)


def _revision() -> str:
    """The revision of these sources, ` + changes` where files differ from it; `unknown` outside a checkout."""
    found = fingerprint()["revision"]
    return f"{found['commit'][:12]}{' + changes' if found['changed'] else ''}" if found else "unknown"
