"""`python benchmarks device-check`: the plan, a run of it, and one step of it in this process."""

from __future__ import annotations

import argparse
from importlib import import_module
from pathlib import Path

from cuda_device import require_gpu

from device_check.plan import PLAN, named
from device_check.record import Record
from device_check.runner import Runner
from device_check.summary import summary
from device_check.target import Target
from device_check.work import Work
from skim_runtime.measure.options import at_least
from skim_runtime.measure.report import report_head
from skim_runtime.measure.tables import say, text_table

__all__ = ["add_arguments", "run"]

OUTPUT = Path("build/device-check")
MINUTES = 9


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    names = [step.name for step in PLAN]
    parser.add_argument("--output", type=Path, default=OUTPUT, metavar="DIR", help="of the record (%(default)s)")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="that all may take together (%(default)s)")
    parser.add_argument("--parts", type=Path, metavar="DIR", help="what `python benchmarks parcels` wrote")
    parser.add_argument("--commit", help="of these sources, where git can't tell")
    parser.add_argument("--only", nargs="+", choices=names, metavar="STEP", help="not the whole plan")
    parser.add_argument("--stand-in", action="store_true", help="rehearse on the CPU, with sizes that end soon")
    parser.add_argument("--plan", action="store_true", help="only say what each step takes")
    parser.add_argument("--step", choices=names, help=argparse.SUPPRESS)  # one, in this process
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Run the plan, or what of it an earlier run has left."""
    if args.plan:
        say(_plan())
        return
    at_least("--minutes", 1, args.minutes)
    if not args.stand_in:
        require_gpu()
    head = report_head()
    head |= {"commit": args.commit or head["commit"], "stand_in": args.stand_in}
    output: Path = args.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    record = Record(output, head)
    if args.step:
        work = Work(args.step, Target(stand_in=args.stand_in), output, args.parts, record)
        import_module(f"device_check.steps.{named(args.step).module or args.step}").run(work)
        return
    steps = [step for step in PLAN if args.only is None or step.name in args.only]
    options = ["--output", str(args.output), *(["--stand-in"] if args.stand_in else [])]
    options += [f"--{name}={value}" for name in ("parts", "commit") if (value := getattr(args, name)) is not None]
    Runner(output, record, options, 60 * args.minutes).run(steps)
    say(summary(record.content))


def _plan() -> str:
    rows, end = [], 0
    for step in PLAN:
        end += step.expected
        needs = ", ".join(step.needs)
        rows.append((step.name, step.what, str(step.expected), f"{end // 60}:{end % 60:02d}", str(step.limit), needs))
    return text_table(("step", "what it finds out", "seconds", "done at", "at most", "needs"), rows, left=2)
