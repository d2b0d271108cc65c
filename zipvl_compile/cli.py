"""The command line: `zipvl-compile COMMAND`. Commands live in zipvl_compile.commands, one module each.

Exit codes: 0 done; 1 the work failed (broken file, tampered bundle, full disk); 2 the input is wrong (recipe, option,
image, prompt); 130 interrupted. `gate` has its own: 1 is a regression, 3 undecided, 4 no baseline.
"""

from __future__ import annotations

import typer

from zipvl_compile.commands import bench, build, demo, doctor, gate, generate, inspect, package, plan, recipe, serve
from zipvl_compile.commands.guard import GuardedGroup

app = typer.Typer(
    name="zipvl-compile",
    help="Compile vision-language models with ZipVL's adaptive token selection into deployable engines.",
    epilog="Exit codes: 0 done; 1 the work failed; 2 the input is wrong; 130 interrupted. gate --help has its own.",
    cls=GuardedGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(build.build)
app.command()(generate.generate)
app.command()(inspect.inspect)
app.command()(package.package)
app.command()(plan.plan)
app.command()(serve.serve)
app.command()(doctor.doctor)
app.add_typer(recipe.app, name="recipe")
app.add_typer(demo.app, name="demo")
app.add_typer(bench.app, name="bench")
app.add_typer(gate.app, name="gate")
