"""The command `nfd-audit`."""

import argparse
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import BrokenExecutor
from contextlib import suppress
from itertools import combinations
from typing import NamedTuple

import numpy as np

from nfd_audit import reference, report
from nfd_audit.arguments import (
    HelpFormatter,
    chosen_data,
    count,
    data_options,
    directory_path,
    exit_status,
    output_path,
    picture_path,
    seed,
    worker_options,
)
from nfd_audit.auditing import (
    Audit,
    What,
    audit_all,
    known_claims,
    moved,
    read_baseline,
)
from nfd_audit.claim import Claim
from nfd_audit.claims import CLAIMS
from nfd_audit.run import workers_of
from nfd_audit.verdict import MORE, Rate
from nfd_min import ACTIVATIONS, LOSSES, __version__, replace_file

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command `nfd-audit`.

    Returns 0 if every verdict is the expected one and nothing moved; 1 if not, or if
    the workers are gone; 2 if a file for --against lacks runs; 3 if it cannot write;
    130 after Ctrl-C. Exits with 2 for other bad arguments.
    """
    command = parser()
    options = command.parse_args(arguments)
    return exit_status("nfd-audit", lambda: carry_out(command, options))


# --------------------------------------------------------------------------------------
# Options


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    parser = argparse.ArgumentParser(
        "nfd-audit",
        usage="%(prog)s [options]",
        epilog="claims: " + ", ".join(CLAIMS),
        formatter_class=HelpFormatter,
        description="Measure the claims of arXiv 2512.21075 and judge each of them.",
    )
    add = parser.add_argument
    add("--version", action="version", version=f"nfd-min {__version__}")
    add("--list", action="store_true", help="only say what each claim is")
    explain = "only say how it is measured, and what refutes it"
    add("--explain", type=claim_list, metavar="CLAIM", help=explain)
    everything = list(CLAIMS.values())
    only = "only these (default: all)"
    add("--claims", type=claim_list, default=everything, metavar="A,B", help=only)
    level = parser.add_mutually_exclusive_group()
    quick = "small sizes, under a minute (default)"
    level.add_argument("--quick", action="store_true", help=quick)
    full = "larger sizes and more repetitions, some minutes"
    level.add_argument("--full", action="store_true", help=full)
    root = "seed of all randomness (default: 0)"
    add("--seed", type=seed, default=0, metavar="N", help=root)
    seeds = "audit so many seeds, from --seed on: mean and spread of each quantity"
    add("--seeds", type=count, metavar="R", help=seeds)
    data_options(parser)
    add("--loss", choices=list(LOSSES), default="squared", help="(default: squared)")
    own = "or an Activation of a module in this directory"
    phi = f"in place of tanh: {', '.join(ACTIVATIONS)}, {own}"
    add("--phi", default="tanh", metavar="NAME or MODULE:NAME", help=phi)
    network = "an implementation in place of ours, of a module in this directory"
    add("--network", metavar="MODULE:FUNCTION", help=network)
    output_options(parser)
    worker_options(parser)
    return parser


def output_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that name files."""
    add = parser.add_argument
    page = "write a page with formulas, plots and points"
    panels = "draw one panel for each rate"
    earlier = "an earlier --json: what moved by more than its interval allows?"
    against = "only compare such a file's results with the equations"
    keep = "keep each result in DIR; measure only what is not there yet"
    points = "write the results with every point"
    runs = "only write small runs of everything"
    add("--json", type=output_path, metavar="FILE", help=points)
    add("--html", type=output_path, metavar="FILE", help=page)
    add("--plot", type=picture_path, metavar="FILE.png", help=panels)
    add("--baseline", metavar="FILE", help=earlier)
    add("--resume", type=directory_path, metavar="DIR", help=keep)
    add("--reference", type=output_path, metavar="FILE.npz", help=runs)
    add("--against", metavar="FILE.npz", help=against)


def claim_list(text: str) -> list[Claim]:
    """The claims of a text like gradients,depth-rate."""
    try:
        return known_claims(dict.fromkeys(name.strip() for name in text.split(",")))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


class Task(NamedTuple):
    """What is to be measured.

    read : a sentence about the data
    known : where results are kept (`nfd_audit.run.kept`)
    baseline : what they are compared with, if anything (`read_baseline`)
    """

    claims: list[Claim]
    what: What
    read: str
    known: dict
    baseline: dict | None


def check(options: argparse.Namespace) -> Task:
    """What the options ask for. ValueError if they do not fit together, or if the data
    are no good."""
    files = {
        name: path
        for name in ("json", "html", "plot")
        if (path := getattr(options, name)) is not None
    }
    for name, product in ("html", "page"), ("plot", "plot"):
        if name in files and (sentence := report.missing(product)):
            raise ValueError(f"--{name}: {sentence}")
    experiments = [e for claim in options.claims for e in claim.experiments]
    parts = [part for experiment in experiments for part in experiment.parts]
    if options.plot and not any(isinstance(part, Rate) for part in parts):
        raise ValueError("--plot draws rates; none of these claims has one")
    if options.seeds and (files or options.baseline):
        others = "--plot, --html, --json or --baseline"
        raise ValueError(f"--seeds prints a table; it has no {others}")
    for one, other in combinations(files, 2):
        if files[one] == files[other]:
            raise ValueError(f"--{one} and --{other} name the same file")
    data = chosen_data(options)
    what = What(data, options.full, options.seed, options.network, options.phi)
    baseline = read_baseline(options.baseline) if options.baseline else None
    return Task(options.claims, what, what.check(), what.kept(options.resume), baseline)


# --------------------------------------------------------------------------------------
# Carrying it out


def carry_out(command: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    """Do what the options ask for; the exit status."""
    try:
        if options.list or options.explain:
            return describe(options)
        if options.reference:
            number = reference.write(options.reference)
            print(f"{number} runs are in {options.reference}.")
            return 0
        if options.against:
            return compare_with_equations(options.against)
        task = check(options)
        if options.data:
            put(*report.screen().wrap(f"{task.read}."), "")
        with_seeds = measure_seeds if options.seeds else measure
        return with_seeds(options, task)
    except ValueError as error:
        command.error(str(error))


def describe(options: argparse.Namespace) -> int:
    """Print what claims are, or how they are measured; the exit status."""
    if options.list:
        put(*report.listing(options.claims, report.screen()))
    for i, claim in enumerate(options.explain or ()):
        if i > 0:
            put("")
        put(*report.explain(claim, MORE, report.screen()))
    return 0


def compare_with_equations(path: str) -> int:
    """Print how the runs of a reference file differ from ours; the exit status."""
    comparison = reference.against(path)
    rows = comparison.rows
    missing = [row.setting for row in rows if row.verdict == "missing"]
    compared = len(rows) - len(missing)
    named = f"; missing: {', '.join(missing)}" if missing else ""
    last = f"{compared} of {len(rows)} runs were compared{named}."
    put(str(comparison), "", *report.screen().wrap(last))
    if missing and (comparison.ok or not compared):
        return 2
    return 0 if comparison.ok else 1


def measure(options: argparse.Namespace, task: Task) -> int:
    """Measure and report; the exit status."""
    begin = time.perf_counter()
    screen = report.screen()
    decided: list[dict] = []
    if not screen.narrow:
        put(report.HEADER)

    def tell(result: dict) -> None:
        decided.append(result)
        clear_progress_bar()
        put(*report.lines(result, screen))

    try:
        with workers_of(options.workers, options.dask):
            audit_all(task.claims, task.what, tell, task.known)
        seconds = time.perf_counter() - begin
        return report_on(options, task, decided, seconds)
    except KeyboardInterrupt:
        complain(f"interrupted{going_on(options)}")
        if 0 < len(decided) < len(task.claims):
            with suppress(KeyboardInterrupt):
                about = task.what.about() | dict(interrupted=True)
                write(options, Audit(decided, about))
        return 130
    except BrokenExecutor as error:
        complain(f"the workers are gone: {error}{going_on(options)}")
        return 1


def report_on(
    options: argparse.Namespace, task: Task, results: list[dict], seconds: float
) -> int:
    """Print how many verdicts are the expected ones and what moved, and write the
    files; the exit status."""
    screen = report.screen()
    name = options.data or "UCI digits"
    how = f"Data: {name}, seed {options.seed}, {seconds:.0f} s."
    put("", *screen.wrap(f"{report.last_line(results)} {how}"))
    put(*screen.wrap(report.expectations(results)))
    write(options, Audit(results, task.what.about()))
    if options.plot:
        picture = report.encoded(report.rates(results))
        replace_file(options.plot, lambda file: file.write(picture))
    sentences: list[str] = []
    if task.baseline is not None:
        sentences, number = moved(task.baseline, results)
        have = f"Of {number} numbers that {options.baseline} has too"
        put(*screen.wrap(f"{have}, {len(sentences)} moved."), *sentences)
    put(*screen.wrap(report.status_line(results, len(sentences))))
    return 1 if report.surprises(results) or sentences else 0


def write(options: argparse.Namespace, result: Audit) -> None:
    """Write the files of an Audit that are asked for, but the plot."""
    if options.json:
        result.to_json(options.json)
    if options.html:
        result.to_html(options.html)


def put(*lines: str) -> None:
    """Print lines."""
    print("".join(f"{line}\n" for line in lines), end="", flush=True)


def complain(sentence: str) -> None:
    """Print a line about what went wrong."""
    print(f"nfd-audit: {sentence}", file=sys.stderr)


def going_on(options: argparse.Namespace) -> str:
    """What becomes of the results that were there already."""
    if not options.resume:
        return "; --resume DIR would keep what is measured"
    kept = f"what was measured is kept in {options.resume}"
    return f"; {kept}, and the same command goes on from there"


def clear_progress_bar() -> None:
    """Where there may be one."""
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr, flush=True)


# --------------------------------------------------------------------------------------
# Many seeds

COLUMNS = "claim", "quantity", "mean", "spread", "reps", "verdicts"
ROW = "{:18} {:33} {:>9} {:>8} {:>5}  {}"


def measure_seeds(options: argparse.Namespace, task: Task) -> int:
    """The same for several seeds; the exit status."""
    try:
        with workers_of(options.workers, options.dask):
            return 0 if many_seeds(task, options.seeds) else 1
    except KeyboardInterrupt:
        complain(f"interrupted{going_on(options)}")
        return 130
    except BrokenExecutor as error:
        complain(f"the workers are gone: {error}{going_on(options)}")
        return 1


def many_seeds(task: Task, number: int) -> bool:
    """Audit so many seeds, print the surprises of each, and a table: of each quantity
    the verdicts, mean and spread. Returns whether there was no surprise."""
    screen = report.screen()
    seeds = range(task.what.seed, task.what.seed + number)
    audits, fine = [], 0
    for s in seeds:
        results = audit_all(task.claims, task.what._replace(seed=s), known=task.known)
        audits.append(results)
        if report.surprises(results):
            clear_progress_bar()
            put(*screen.wrap(f"seed {s}: {report.last_line(results)}"))
        else:
            fine += 1
    if not screen.narrow:
        head = ROW.format(*COLUMNS)
        put(head, "-" * len(head))
    for cells in rows_of_seeds(audits):
        if screen.narrow:
            each = (f"{name} {cell}" for name, cell in zip(COLUMNS, cells) if cell)
            put(*screen.wrap(", ".join(each), hang="    "))
        else:
            put(ROW.format(*cells))
    status = f"Exit status {0 if fine == number else 1}."
    about = f"seeds {seeds[0]} to {seeds[-1]}. {status}"
    put("", *screen.wrap(f"{fine} of {number} audits as expected, {about}"))
    return fine == number


def rows_of_seeds(audits: list[list[dict]]) -> Iterable[tuple[str, ...]]:
    """The cells of the table, from the results of each seed."""
    for results in zip(*audits):
        measured = [result["rates"] for result in results if result["rates"]]
        for i, rates in enumerate(zip(*measured)):
            repetitions = np.mean([rate["repetitions"] for rate in rates])
            yield (
                "" if i else results[0]["id"],
                rates[0]["label"],
                *mean_and_spread(rates),
                f"{repetitions:.0f}",
                verdict_counts([rate["verdict"] for rate in rates]),
            )


def mean_and_spread(rates: Sequence[dict]) -> tuple[str, str]:
    """Of the slopes, means or worst values of several seeds."""
    values = [value for rate in rates if np.isfinite(value := value_of(rate))]
    if not values:
        return "", ""
    if "worst" in rates[0] or len(values) == 1:
        return f"{np.mean(values):.3g}", f"{np.std(values):.3g}"
    return f"{np.mean(values):.3f}", f"{np.std(values, ddof=1):.3f}"


def value_of(rate: dict) -> float:
    """The slope, mean or worst value of a rate."""
    if "worst" in rate:
        return rate["worst"]
    return rate["mean"] if rate["slope"] is None else rate["slope"]


def verdict_counts(verdicts: list[str]) -> str:
    """As "3 holds, 1 fails"."""
    kinds = sorted(set(verdicts), reverse=True)
    return ", ".join(f"{verdicts.count(kind)} {kind}" for kind in kinds)


if __name__ == "__main__":
    sys.exit(main())
