"""Running an audit, and the command `nfd-audit`."""

import argparse
import json
import sys
import tempfile
import time
from concurrent.futures import BrokenExecutor
from contextlib import suppress
from dataclasses import dataclass
from importlib import util
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit

from nfd_audit import experiments as ex
from nfd_audit import reference
from nfd_audit import report
from nfd_audit.networks import assert_equations, compare
from nfd_audit import measure as measuring
from nfd_audit.claim import Case, Claim
from nfd_audit.claims import CLAIMS
from nfd_audit.experiments import sweep
from nfd_audit.verdict import LEVEL, MORE, Bound, Rate
from nfd_io import (
    Data,
    HelpFormatter,
    choose,
    count,
    data_of,
    data_options,
    exit_status,
    meant,
    output_path,
    picture_path,
    prepared,
    replace_file,
    seed,
    worker_options,
)
from nfd_kernels import numba
from nfd_min import ACTIVATIONS, LOSSES, Activation, __version__
from nfd_audit.report import HEADER, last_line, lines, screen, surprises

__all__ = ["CLAIMS", "Audit", "assert_claim", "assert_equations", "audit", "compare"]

# ------------------------------------------------------------------------------------------------------------
# Running and reporting

FIRST = "gia-width", "depth-rate"
"""One case of the first, of explicit networks, and then those of the second, of particles, begin an audit:
two workers with nothing compiled yet compile different kernels."""


@dataclass(frozen=True)
class Audit:
    """The results of an audit: a list of the dicts that --json writes, one for each claim.

    audit[id] is the dict of that claim; of an audit of one claim audit[key] is a field of its dict.
    """

    results: list
    about: dict

    @property
    def verdicts(self):
        """{claim: verdict}"""
        return {r["id"]: r["verdict"] for r in self.results}

    @property
    def ok(self):
        """Whether every verdict is the expected one, or the claim is not applicable."""
        return not surprises(self.results)

    def __getitem__(self, key):
        if key not in self.verdicts and len(self.results) == 1:
            return self.results[0][key]
        return next(r for r in self.results if r["id"] == key)

    def to_json(self, file=None):
        """The text of --json, also written to a file if one is given."""
        text = json.dumps(ex.plain(self.about | dict(claims=self.results)), indent=1)
        if file is not None:
            replace_file(Path(file), lambda out: out.write(text.encode()))
        return text

    def to_html(self, file=None):
        """The text of --html, also written to a file if one is given; it needs Matplotlib."""
        ids = None if [*self.verdicts] == [*CLAIMS] else [*self.verdicts]
        text = report.page(self.results, self.about, report.command_line(self.about, ids))
        if file is not None:
            replace_file(Path(file), lambda out: out.write(text.encode()))
        return text

    def __repr__(self):
        return "\n".join(
            [HEADER, *(line for r in self.results for line in lines(r)), "", last_line(self.results)]
        )

    def _repr_html_(self):
        return report.notebook(self.results)


def audit(claims=None, data=None, *, full=False, seed=0, executor=None, network=None, phi="tanh", loss=None):
    """The Audit of claims on `data`, the path of a file or a nfd_io.Data, or on the digits. Results depend on
    data, full, seed, network, phi and loss alone.

    claims : ids of CLAIMS or Claims, one or a list; by default all, or with a network all that it can be in
    executor : of experiments.sweep; other processes have to find network and phi in their modules
    network : an implementation (nfd_compare), or its name "module:function", in place of finite_net; claims
        that do not train a network, or need a setting that it does not have, are "not applicable"
    phi : a name, also "module:NAME", or an Activation, in place of tanh; claims about another one are "not
        applicable"
    loss : in place of that of data, one of nfd_min.LOSSES
    ValueError for an unknown claim, network, phi or loss, and data that cannot be used.
    """
    claims = [claims] if isinstance(claims, (str, Claim)) else CLAIMS if claims is None else claims
    claims = known(claims)
    what = What(data_of(data, **({} if loss is None else dict(loss=loss))), full, seed, *_named(network, phi))
    what.check()
    return Audit(audit_all(claims, what, lambda result: None, executor=executor), what.about())


def known(claims):
    """Claims, from them or their names. ValueError for an unknown one."""
    unknown = [c for c in claims if not isinstance(c, Claim) and c not in CLAIMS]
    if unknown:
        names = f"unknown claim {', '.join(map(repr, unknown))}; the claims are {', '.join(CLAIMS)}"
        raise ValueError(names + "".join(meant(c, CLAIMS) for c in unknown))
    return [c if isinstance(c, Claim) else CLAIMS[c] for c in claims]


class What(NamedTuple):
    """What is audited: the arguments of `audit`, network and phi by their names."""

    data: Data = Data()
    full: bool = False
    seed: int = 0
    network: str | None = None
    phi: str = "tanh"

    def check(self):
        """ValueError if there is no such network, phi or loss, or the data are no good; returns what was
        read."""
        choose("loss", self.data.loss, LOSSES)
        if ":" not in str(self.phi):
            choose("phi", self.phi, dict.fromkeys([*ACTIVATIONS, "module:NAME"]))
        if self.network is not None:
            measuring.implementation(self.network)
        measuring.activation(self.phi)
        X, y, read = prepared(self.data)
        if len(X) < 16:
            raise ValueError(f"{self.data.path} has {len(X)} samples; the audit draws 16 different ones")
        if self.data.loss == "logistic" and self.data.target == "real":
            raise ValueError('loss="logistic" and target="real" are not for use together')
        return read

    def about(self):
        """What --json says beside the results."""
        mine = {key: getattr(self, key) for key in self._fields[1:]}
        return dict(versions=ex.versions()) | mine | self.data.about()


def _named(network, phi):
    """The names of an implementation and an Activation, which from now on are found under them."""
    if callable(network):
        network, known = f"{network.__module__}:{network.__qualname__}", network
        measuring.IMPLEMENTATIONS[network] = known
    if isinstance(phi, Activation):
        known, module = phi, getattr(phi.phi, "of", phi.phi).__module__ or "__main__"
        names = [name for name, value in vars(sys.modules.get(module, sys)).items() if value is known]
        phi = phi.name if ACTIVATIONS.get(phi.name) is phi else f"{module}:{(names or [phi.name])[0]}"
        if ":" in phi:
            measuring.IMPLEMENTATIONS[phi] = known
            measuring.activation.cache_clear()
    return network, phi


def assert_claim(claim, network=None, **how):
    """AssertionError, with the lines of `nfd-audit`, unless the claim has the expected verdict; how : as in
    `audit`. It is a failure too if the claim is not applicable to the network."""
    result = audit(claim, network=network, **how)
    assert result.ok and "not applicable" not in result.verdicts.values(), f"\n{result!r}"


def claim_cases(claim, what, plans):
    """The Cases of a claim, of What. None if an implementation stands in place of our networks and it trains
    no network, or another activation in place of tanh and it is about one."""
    cases = sum(claim.cases(what.data, plans, what.seed), [])
    names = {case.run.__name__ for case in cases}
    if what.network and not names & measuring.OF_NETWORKS.keys() or what.phi != "tanh" and names - measuring.OF_PHI.keys():
        return []
    how = [
        dict(network=what.network) if what.network and case.run.__name__ in measuring.OF_NETWORKS else {}
        for case in cases
    ]
    how = [each | (dict(phi=what.phi) if what.phi != "tanh" else {}) for each in how]
    return [
        Case(measuring.with_other, dict(each, measure=case.run.__name__, **case.given), case.seed) if each else case
        for each, case in zip(how, cases)
    ]


def judge(claim, results, plans):
    """The dict that --json writes, from the results of the claim's cases."""
    if trouble := _trouble(results):
        verdict, note = trouble
        return _verdict(claim, [], verdict, f"{verdict}: {note}")
    rates = []
    for experiment, of_it, plan in zip(claim.experiments, claim.split(results, plans), plans):
        for part, points in experiment.read(of_it, plan):
            rates.append(rate_of(part, points, plan.repeat))
    verdicts = {rate["verdict"] for rate in rates}
    verdict = next(v for v in ("fails", "inconclusive", "holds") if v in verdicts)
    return _verdict(claim, rates, verdict, claim.note)


def rate_of(part, points, repetitions):
    """What --json says of a Part."""
    about = dict(label=part.label, against=part.against, predicted=part.predicted)
    about |= dict(tolerance=None if isinstance(part, Bound) else part.tolerance)
    about |= dict(prediction=part.prediction, repetitions=repetitions, confidence=LEVEL)
    shown = [
        {part.against: size, "mean": float(np.mean(errors)), "errors": errors}
        for size, errors in part.shown(points).items()
    ]
    return about | part.judge(points, LEVEL) | dict(points=shown)


def _trouble(results):
    """(verdict, why) where there is nothing to judge."""
    if not results:
        return "not applicable", "it trains no explicit network, or is about one activation"
    return next((item for r in results for item in r.items() if item[0] in ("not applicable", "error")), None)


def _verdict(claim, rates, verdict, note):
    first = rates[0] if rates else {}
    return dict(
        id=claim.id,
        equation=claim.equation,
        statement=claim.statement,
        predicted=first.get("predicted"),
        slope=first.get("slope"),
        low=first.get("low"),
        high=first.get("high"),
        verdict=verdict,
        expected=claim.expected,
        note=note,
        points=first.get("points", []),
        rates=rates,
    )


def read_baseline(path):
    """The claims of an earlier audit's --json. ValueError if the file is none."""
    try:
        claims = json.loads(Path(path).read_text())["claims"]
        rates = {(claim["id"], rate["label"]): rate for claim in claims for rate in claim["rates"]}
        moved(rates, claims)  # or it fails now and not after the audit
        return rates
    except (OSError, ValueError, KeyError, TypeError, ArithmeticError, IndexError) as error:
        why = f"{type(error).__name__}: {error}"
        raise ValueError(f"cannot use {str(path)!r} as an audit to compare with: {why}") from None


def moved(old, results):
    """The sentences of what moved since a baseline, and of how many numbers both have.

    old : {(claim, quantity): rate} of read_baseline. A slope or mean moved if Welch's t test tells the two
    apart at a level of 1% for all of them together, each interval being that of Student's t over its
    repetitions; where both are formulas, if they differ by more than 1e-6; a bound, if its verdict changed.
    """
    rates = {(r["id"], rate["label"]): rate for r in results for rate in r["rates"]}
    both, sentences = [key for key in rates if key in old], []
    for claim, label in both:
        a, b = old[claim, label], rates[claim, label]
        (m, e, R), (n, f, Q) = map(_estimate, (a, b))
        size = np.hypot(e, f)
        if np.isnan([m, n]).any():
            apart = a["verdict"] != b["verdict"]
        elif size < 1e-9:
            apart = abs(m - n) > 1e-6
        else:
            freedom = size**4 / (e**4 / (R - 1) + f**4 / (Q - 1))
            apart = abs(m - n) / size > -stdtrit(freedom, 0.005 / len(both))
        if apart:
            was, is_ = (
                f"{x:.3f} [{rate['low']:.3f}, {rate['high']:.3f}]" if np.isfinite(x) else rate["verdict"]
                for x, rate in ((m, a), (n, b))
            )
            sentences.append(f"{claim}, {label}: {was} before, {is_} now")
    return sentences, len(both)


def _estimate(rate):
    """A slope or mean, its standard error and the number of repetitions; NaN if the rate has none."""
    value = rate.get("slope") if rate.get("mean") is None else rate["mean"]
    if value is None or rate["low"] is None or not rate["points"]:
        return np.nan, np.nan, 2
    R = len(rate["points"][0]["errors"])
    quantile = stdtrit(R - 1, (1 + rate["confidence"]) / 2)
    return float(value), (rate["high"] - rate["low"]) / 2 / float(quantile), R


def audit_all(claims, what, tell, **how):
    """The results of the claims, in their order; tell : called with each, as soon as it and those before are
    decided.

    All cases of a look are one sweep; how : executor and store of the sweeps
    """
    plans, results, known, told = [claim.plans(what.full) for claim in claims], [None] * len(claims), {}, []
    first = {FIRST[0]: 1, FIRST[1]: np.inf}
    while None in results:
        cases = {c: claim_cases(claims[c], what, plans[c]) for c, r in enumerate(results) if r is None}
        places = [(c, i) for c, each in cases.items() for i in range(len(each))]
        places.sort(key=lambda place: place[1] >= first.get(claims[place[0]].id, 0))
        found = {c: {} for c in cases}

        def decide(c):
            """Whether the claim is decided by its cases; if not, its plans are those of the next look."""
            of_it = [found[c][i] for i in range(len(cases[c]))]
            more = plans[c] if _trouble(of_it) else claims[c].next(of_it, plans[c], what.full)
            if more == plans[c]:
                results[c] = judge(claims[c], of_it, more)
            plans[c] = more
            while len(told) < len(claims) and results[len(told)] is not None:
                told.append(results[len(told)])
                tell(told[-1])

        def hear(j, result):
            c, i = places[j]
            found[c][i] = result
            if len(found[c]) == len(cases[c]):
                decide(c)

        for c in [c for c, each in cases.items() if not each]:
            decide(c)
        sweep([cases[c][i] for c, i in places], label="audit", hear=hear, known=known, **how)
    return results


def show(result, decided, on):
    """Print the lines of a claim on a Screen, and add it to those decided."""
    decided.append(result)
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr, flush=True)  # the progress bar
    put(*lines(result, on))


def many_seeds(claims, what, number, on, store, **how):
    """Audit so many seeds, print the surprises of each, and a table: of each quantity the verdicts, mean and
    spread. Returns whether there was no surprise. Each seed has a store of its own, until the end."""
    audits, fine, stores = [], 0, []
    for s in range(what.seed, what.seed + number):
        stores.append(store.with_name(f"{store.stem}-{s}.partial"))
        results = audit_all(claims, what._replace(seed=s), lambda result: None, store=stores[-1], **how)
        audits.append(results)
        fine += not surprises(results)
        if surprises(results):
            put(*on.wrap(f"seed {s}: {last_line(results)}"))
    names, row = (
        ("claim", "quantity", "mean", "spread", "reps", "verdicts"),
        "{:18} {:33} {:>9} {:>8} {:>5}  {}",
    )
    head = row.format(*names)
    put(*() if on.narrow else (head, "-" * len(head)))
    for results in zip(*audits):
        for i, rates in enumerate(zip(*(r["rates"] for r in results if r["rates"]))):
            values = [v for r in rates if (v := _value(r)) is not None and np.isfinite(v)]
            mean, spread = (f"{f(values):.3g}" if values else "" for f in (np.mean, np.std))
            if "worst" not in rates[0] and len(values) > 1:
                mean, spread = f"{np.mean(values):.3f}", f"{np.std(values, ddof=1):.3f}"
            verdicts = [r["verdict"] for r in rates]
            counts = ", ".join(f"{verdicts.count(v)} {v}" for v in dict.fromkeys(sorted(verdicts)[::-1]))
            reps = f"{np.mean([r['repetitions'] for r in rates]):.0f}"
            cells = "" if i else results[0]["id"], rates[0]["label"], mean, spread, reps, counts
            each = (f"{name} {cell}" for name, cell in zip(names, cells) if cell)
            put(*on.wrap(", ".join(each), hang="    ") if on.narrow else (row.format(*cells),))
    seeds = f"seeds {what.seed} to {what.seed + number - 1}. Exit status {int(fine != number)}."
    put("", *on.wrap(f"{fine} of {number} audits as expected, {seeds}"))
    for path in stores:
        path.unlink(missing_ok=True)
    return fine == number


def _value(rate):
    """The slope, mean or worst value of a rate."""
    return rate["worst"] if "worst" in rate else rate["mean"] if rate["slope"] is None else rate["slope"]


def claim_list(text):
    try:
        return known(dict.fromkeys(name.strip() for name in text.split(",")))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def parser():
    parser = argparse.ArgumentParser(
        "nfd-audit",
        usage="%(prog)s [options]",
        epilog="claims: " + ", ".join(CLAIMS),
        formatter_class=HelpFormatter,
        description="Measure the claims of arXiv 2512.21075 and give a verdict on each.",
    )
    add = parser.add_argument
    everything = list(CLAIMS.values())
    add("--version", action="version", version=f"nfd-min {__version__}")
    add("--list", action="store_true", help="only say what each claim is")
    add(
        "--explain", type=claim_list, metavar="CLAIM", help="only say how it is measured, and what refutes it"
    )
    add("--claims", type=claim_list, default=everything, metavar="A,B", help="only these (default: all)")
    level = parser.add_mutually_exclusive_group()
    level.add_argument("--quick", action="store_true", help="small sizes, under a minute (default)")
    level.add_argument("--full", action="store_true", help="larger sizes and more repetitions, some minutes")
    add("--seed", type=seed, default=0, metavar="N", help="seed of all randomness (default: 0)")
    many = "audit so many seeds, from --seed on: verdicts, mean and spread of each quantity"
    add("--seeds", type=count, metavar="R", help=many)
    data_options(parser)
    add("--loss", default="squared", metavar="NAME", help=f"{' or '.join(LOSSES)} (default: squared)")
    phi = f"in place of tanh: {', '.join(ACTIVATIONS)}, or an Activation of a module in this directory"
    add("--phi", default="tanh", metavar="NAME or MODULE:NAME", help=phi)
    network = "an implementation in place of ours, of the module in this directory (nfd_compare)"
    add("--network", metavar="MODULE:FUNCTION", help=network)
    add("--json", type=output_path, metavar="FILE", help="write the results with every point")
    add("--html", type=output_path, metavar="FILE", help="write a page with formulas, plots and points")
    add("--plot", type=picture_path, metavar="FILE.png", help="draw one panel for each rate")
    add("--baseline", metavar="FILE", help="an earlier --json: what moved by more than its interval allows?")
    add("--reference", type=output_path, metavar="FILE.npz", help="only write small runs of everything")
    add("--against", metavar="FILE.npz", help="only compare such a file's results with the equations")
    worker_options(parser, numba.config.NUMBA_NUM_THREADS)
    return parser


def check(parser, options):
    """Leave with exit status 2 if the options do not fit together or the data are no good."""
    files = {name: getattr(options, name) for name in ("json", "html", "plot") if getattr(options, name)}
    for name, what in (("html", "page"), ("plot", "plot")):
        if name in files and (sentence := report.missing(what)):
            parser.error(f"--{name}: {sentence}")
    parts = [part for claim in options.claims for e in claim.experiments for part in e.parts]
    if options.plot and not any(isinstance(part, Rate) for part in parts):
        parser.error("--plot draws rates; none of these claims has one")
    if options.seeds and (files or options.baseline):
        parser.error("--seeds prints a table; it has no --plot, --html, --json or --baseline")
    for one, other in combinations(files, 2):
        if files[one] == files[other]:
            parser.error(f"--{one} and --{other} name the same file")
    data = data_of(
        options.data, **{key: getattr(options, key) for key in ("label", "classes", "target", "loss")}
    )
    what = What(data, options.full, options.seed, options.network, options.phi)
    try:
        old = read_baseline(options.baseline) if options.baseline else None
        return what, what.check(), old
    except ValueError as error:
        parser.error(str(error))


def main(arguments=None):
    """The command `nfd-audit`. Returns 0 if every verdict is the expected one and nothing moved, 1 if not or
    if the workers are gone, 3 if it cannot write, 130 after Ctrl-C, 2 if a file for --against lacks runs;
    exits with 2 for other bad arguments."""
    command = parser()
    options = command.parse_args(arguments)
    return exit_status("nfd-audit", lambda: carry_out(command, options))


def carry_out(command, options):
    """What the options ask for; the exit status."""
    try:
        if options.list or options.explain:
            put(*report.listing(options.claims, screen()) if options.list else ())
            for i, claim in enumerate(options.explain or ()):
                put(*[""] * (i > 0), *report.explain(claim, MORE, screen()))
            return 0
        if options.reference:
            print(f"{reference.write(options.reference)} runs are in {options.reference}.")
            return 0
        if options.against:
            comparison = reference.against(options.against)
            missing = [row.setting for row in comparison.rows if row.verdict == "missing"]
            number, all_of_them = len(comparison.rows) - len(missing), len(comparison.rows)
            named = f"; missing: {', '.join(missing)}" if missing else ""
            put(str(comparison), "", *screen().wrap(f"{number} of {all_of_them} runs were compared{named}."))
            return 2 if missing and (comparison.ok or not number) else int(not comparison.ok)
        return measure(options, *check(command, options))
    except ValueError as error:
        command.error(str(error))


def measure(options, what, read, old):
    """Measure and report; the exit status."""
    begin, decided, on = time.perf_counter(), [], screen()
    if options.json:
        directory, name = options.json.parent, options.json.name
    else:
        directory, name = tempfile.gettempdir(), "nfd-audit"
    names = [claim.id for claim in options.claims]
    modules = [text.partition(":")[0] for text in (what.network, what.phi) if text]
    store = ex.store_path(directory, name, what.data, names, what, str(Path.home()), modules=modules)
    if options.data:
        put(*on.wrap(f"{read}."), "")
    if not options.seeds and not on.narrow:
        print(HEADER, flush=True)
    kept = f"{store.with_suffix('')}-*.partial" if options.seeds else store
    again = f"what was measured is kept in {kept}, and the same command goes on from there"
    try:
        with ex.workers_of(options.workers, options.dask) as executor:
            how = dict(executor=executor, store=store)
            if options.seeds:
                return int(not many_seeds(options.claims, what, options.seeds, on, **how))
            audit_all(options.claims, what, lambda result: show(result, decided, on), **how)
        report_on(options, what, decided, on, time.perf_counter() - begin)
    except KeyboardInterrupt:
        print(f"nfd-audit: interrupted; {again}", file=sys.stderr)
        with suppress(KeyboardInterrupt):
            if 0 < len(decided) < len(options.claims):
                write(options, Audit(decided, what.about() | dict(interrupted=True)))
        return 130
    except BrokenExecutor:
        print(f"nfd-audit: the workers are gone; {again}", file=sys.stderr)
        return 1
    store.unlink(missing_ok=True)
    sentences = []
    if old is not None:
        sentences, number = moved(old, decided)
        put(*on.wrap(f"Of {number} numbers that {options.baseline} has too, {len(sentences)} moved."))
        put(*sentences)
    put(*on.wrap(report.status_line(decided, len(sentences))))
    return int(bool(surprises(decided) or sentences))


def report_on(options, what, results, on, seconds):
    """Print how many verdicts are the expected ones, and write the files."""
    how = f"Data: {options.data or 'UCI digits'}, seed {options.seed}, {seconds:.0f} s."
    put("", *on.wrap(f"{last_line(results)} {how}"), *on.wrap(report.expectations(results)))
    write(options, Audit(results, what.about()))
    if options.plot:
        picture = report.encoded(report.rates(results))
        replace_file(options.plot, lambda file: file.write(picture))


def put(*texts):
    """Print lines."""
    print("".join(f"{text}\n" for text in texts), end="", flush=True)


def write(options, result):
    """Write the files of an Audit that are asked for, but the plot."""
    if options.json:
        result.to_json(options.json)
    if options.html:
        result.to_html(options.html)


if __name__ == "__main__":
    sys.exit(main())
