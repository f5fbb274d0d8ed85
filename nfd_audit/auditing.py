"""Audits: claims are measured, look by look, and judged."""

import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.special import stdtrit

from nfd_audit import measure, report
from nfd_audit.claim import Case, Claim, Plan
from nfd_audit.claims import CLAIMS
from nfd_audit.data import AnyData, Data, data_of, prepared
from nfd_audit.run import kept, plain, sweep, versions
from nfd_audit.verdict import LEVEL, Bound, Points
from nfd_min import (
    ACTIVATIONS,
    LOSSES,
    Activation,
    choose,
    meant,
    replace_file,
)

__all__ = [
    "Audit",
    "What",
    "assert_claim",
    "audit",
    "audit_all",
    "judge",
    "known_claims",
    "moved",
    "rate_of",
    "read_baseline",
]

# --------------------------------------------------------------------------------------
# An audit and what it is of


@dataclass(frozen=True)
class Audit:
    """The results of an audit.

    results : for each claim the dict that --json writes
    about : what they depend on

    audit[id] is the dict of that claim; of an audit of one claim audit[key] is a field
    of its dict.
    """

    results: list[dict]
    about: dict

    @property
    def verdicts(self) -> dict[str, str]:
        """{claim: verdict}"""
        return {result["id"]: result["verdict"] for result in self.results}

    @property
    def ok(self) -> bool:
        """Whether every verdict is the expected one, or the claim is not
        applicable."""
        return not report.surprises(self.results)

    def __getitem__(self, key: str) -> Any:
        for result in self.results:
            if result["id"] == key:
                return result
        if len(self.results) == 1:
            return self.results[0][key]
        raise KeyError(key)

    def to_json(self, file: str | os.PathLike | None = None) -> str:
        """The text of --json, also written to a file if one is given."""
        about = json.dumps(plain(self.about), indent=1).rstrip("}\n")
        claims = ",\n".join(json.dumps(plain(result)) for result in self.results)
        return _written(f'{about},\n "claims": [\n{claims}\n]}}\n', file)

    def to_html(self, file: str | os.PathLike | None = None) -> str:
        """The text of --html, also written to a file if one is given.

        It needs the extra `audit`.
        """
        all_claims = list(self.verdicts) == list(CLAIMS)
        ids = None if all_claims else list(self.verdicts)
        command = report.command_line(self.about, ids)
        return _written(report.page(self.results, self.about, command), file)

    def __repr__(self) -> str:
        table = [line for result in self.results for line in report.lines(result)]
        last = report.last_line(self.results)
        return "\n".join([report.HEADER, *table, "", last])

    def _repr_html_(self) -> str | None:
        return report.notebook(self.results)


def _written(text: str, file: str | os.PathLike | None) -> str:
    """The text, which is written to the file if there is one."""
    if file is not None:
        replace_file(Path(file), lambda out: out.write(text.encode()))
    return text


class What(NamedTuple):
    """What is audited: arguments of `audit`, network and phi by their names."""

    data: Data = Data()
    full: bool = False
    seed: int = 0
    network: str | None = None
    phi: str = "tanh"

    def check(self) -> str:
        """A sentence that says which data were read.

        ValueError if there is no such network, phi or loss, or the data are no good.
        """
        choose("loss", self.data.loss, LOSSES)
        if self.network is not None:
            measure.implementation(self.network)
        measure.activation(self.phi)
        X, _, read = prepared(self.data)
        if len(X) < 16:
            few = f"{self.data.path} has {len(X)} samples"
            raise ValueError(f"{few}; the audit draws 16 different ones")
        if self.data.loss == "logistic" and self.data.target == "real":
            both = 'loss="logistic" and target="real"'
            raise ValueError(f"{both} are not for use together")
        return read

    def about(self) -> dict:
        """What --json says beside the results."""
        mine = self._asdict()
        data = mine.pop("data")
        return dict(versions=versions()) | mine | data.about()

    def kept(self, directory: str | os.PathLike | None) -> dict:
        """Where the results of cases are kept (`nfd_audit.run.kept`)."""
        return kept(directory, self.data, [self.network or "", self.phi])


def audit(
    claims: str | Claim | Iterable[str | Claim] | None = None,
    data: AnyData = None,
    *,
    full: bool = False,
    seed: int = 0,
    network: Callable | str | None = None,
    phi: str | Activation = "tanh",
    loss: str | None = None,
    resume: str | os.PathLike | None = None,
) -> Audit:
    """The Audit of claims on data. It depends on data, full, seed, network, phi and
    loss alone.

    claims : one or several, by their names in CLAIMS or as Claims; by default all
    data : the path of a file or a Data; by default the digits
    full : larger sizes and more repetitions
    network : an implementation (`nfd_audit.networks`), or its name "module:function",
        in place of finite_net; claims that do not train a network, or need a setting
        that it does not have, are "not applicable"
    phi : a name, also "module:NAME", or an Activation, in place of tanh; claims about
        another one are "not applicable"
    loss : in place of that of data, one of nfd_min.LOSSES
    resume : a directory that keeps the result of each case; what it has already is not
        measured again

    Its cases run here, one after the other, or on the workers of a surrounding
    `joblib.parallel_config`, which have to find network and phi in their modules.

    ValueError for an unknown claim, network, phi or loss, and for data that cannot be
    used.
    """
    if claims is None:
        claims = CLAIMS
    elif isinstance(claims, (str, Claim)):
        claims = [claims]
    chosen = known_claims(claims)
    data = data_of(data) if loss is None else data_of(data, loss=loss)
    what = What(data, full, seed, network_name(network), phi_name(phi))
    what.check()
    results = audit_all(chosen, what, known=what.kept(resume))
    return Audit(results, what.about())


def assert_claim(
    claim: str | Claim, network: Callable | str | None = None, **how: Any
) -> None:
    """AssertionError, with the lines of `nfd-audit`, unless the claim has the expected
    verdict. It is a failure, too, if the claim is not applicable to the network.

    how : as in `audit`
    """
    result = audit(claim, network=network, **how)
    if not result.ok or "not applicable" in result.verdicts.values():
        raise AssertionError(f"\n{result!r}")


def known_claims(claims: Iterable[str | Claim]) -> list[Claim]:
    """Claims, from them or their names. ValueError for an unknown one."""
    chosen, unknown = [], []
    for claim in claims:
        if isinstance(claim, Claim):
            chosen.append(claim)
        elif claim in CLAIMS:
            chosen.append(CLAIMS[claim])
        else:
            unknown.append(claim)
    if unknown:
        names = ", ".join(map(repr, unknown))
        suggestion = "".join(meant(name, list(CLAIMS)) for name in unknown)
        allowed = f"the claims are {', '.join(CLAIMS)}{suggestion}"
        raise ValueError(f"unknown claim {names}; {allowed}")
    return chosen


def network_name(network: Callable | str | None) -> str | None:
    """The name of an implementation, under which it is found from now on."""
    if not callable(network):
        return network
    named = network if hasattr(network, "__qualname__") else type(network)
    name = f"{named.__module__}:{named.__qualname__}"
    measure.IMPLEMENTATIONS[name] = network
    return name


def phi_name(phi: str | Activation) -> str:
    """The name of an Activation, under which it is found from now on."""
    if not isinstance(phi, Activation):
        return phi
    if any(phi is known for known in ACTIVATIONS.values()):
        return phi.name
    module = getattr(phi.phi, "of", phi.phi).__module__ or "__main__"
    names = vars(sys.modules[module]) if module in sys.modules else {}
    found = (name for name, value in names.items() if value is phi)
    name = f"{module}:{next(found, phi.name)}"
    measure.IMPLEMENTATIONS[name] = phi
    measure.activation.cache_clear()
    return name


# --------------------------------------------------------------------------------------
# Measuring

FIRST = {"gia-width": 1, "depth-rate": None}
"""So many cases of the first claim, of explicit networks, begin an audit, and then all
those of the second, of particles: two workers with nothing compiled yet compile
different kernels."""


def audit_all(
    claims: Sequence[Claim],
    what: What,
    tell: Callable[[dict], None] | None = None,
    known: dict | None = None,
) -> list[dict]:
    """The results of the claims, in their order.

    tell : called with each result as soon as it and all before it are there
    known : as in `sweep`
    """
    looks = _Looks(claims, what, tell)
    known = {} if known is None else known
    while cases := looks.next():
        sweep(cases, label="audit", hear=looks.hear, known=known)
    return looks.told


class _Looks:
    """The looks at some claims. All cases of a look, of all claims that are not decided
    yet, are one sweep."""

    def __init__(
        self,
        claims: Sequence[Claim],
        what: What,
        tell: Callable[[dict], None] | None = None,
    ):
        self.claims = claims
        self.what = what
        self.tell = tell
        self.plans: list[list[Plan]] = [claim.plans(what.full) for claim in claims]
        self.decided: dict[int, dict] = {}
        self.told: list[dict] = []
        self.places: list[tuple[int, int]] = []
        self.found: list[list] = []
        self.missing: list[int] = []

    def next(self) -> list[Case]:
        """The cases of the next look; none if every claim is decided."""
        cases: list[list[Case]] = []
        for c, claim in enumerate(self.claims):
            open_ = c not in self.decided
            cases.append(claim_cases(claim, self.what, self.plans[c]) if open_ else [])
        self.found = [[None] * len(each) for each in cases]
        self.missing = [len(each) for each in cases]
        self.places = [(c, i) for c, each in enumerate(cases) for i in range(len(each))]
        self.places.sort(key=self._comes_later)
        for c, each in enumerate(cases):
            if c not in self.decided and not each:
                self._decide(c)
        return [cases[c][i] for c, i in self.places]

    def _comes_later(self, place: tuple[int, int]) -> bool:
        c, i = place
        first = FIRST.get(self.claims[c].id, 0)
        return first is not None and i >= first

    def hear(self, j: int, result: dict) -> None:
        """Takes the result of the j-th case of the look."""
        c, i = self.places[j]
        self.found[c][i] = result
        self.missing[c] -= 1
        if self.missing[c] == 0:
            self._decide(c)

    def _decide(self, c: int) -> None:
        """Judges a claim by its results; or its plans are those of the next look."""
        claim, results, plans = self.claims[c], self.found[c], self.plans[c]
        if not _trouble(results):
            self.plans[c] = claim.next(results, plans, self.what.full)
            if self.plans[c] != plans:
                return
        self.decided[c] = judge(claim, results, plans)
        while len(self.told) in self.decided:
            self.told.append(self.decided[len(self.told)])
            if self.tell is not None:
                self.tell(self.told[-1])


def claim_cases(claim: Claim, what: What, plans: list[Plan]) -> list[Case]:
    """The cases of a claim.

    None if an implementation stands in place of our networks and the claim trains no
    network, or another activation in place of tanh and it is about one.
    """
    cases = [case for each in claim.cases(what.data, plans, what.seed) for case in each]
    names = {case.run.__name__ for case in cases}
    if what.network and names.isdisjoint(measure.OF_NETWORKS):
        return []
    if what.phi != "tanh" and names - measure.OF_PHI.keys():
        return []
    return [_with_other(case, what) for case in cases]


def _with_other(case: Case, what: What) -> Case:
    """The case with the network and the activation under audit."""
    name, others = case.run.__name__, {}
    if what.network and name in measure.OF_NETWORKS:
        others["network"] = what.network
    if what.phi != "tanh":
        others["phi"] = what.phi
    if not others:
        return case
    given = dict(others, measure=name, **case.given)
    return Case(measure.with_other, given, case.seed)


# --------------------------------------------------------------------------------------
# Judging


def judge(claim: Claim, results: list[dict], plans: list[Plan]) -> dict:
    """What --json says of a claim, from the results of its cases."""
    if trouble := _trouble(results):
        verdict, why = trouble
        return _verdict(claim, [], verdict, f"{verdict}: {why}")
    rates = [
        rate_of(part, points, plan.repeat)
        for experiment, of_it, plan in zip(
            claim.experiments, claim.split(results, plans), plans
        )
        for part, points in experiment.read(of_it, plan)
    ]
    verdicts = {rate["verdict"] for rate in rates}
    worst_first = "fails", "inconclusive", "holds"
    verdict = next(verdict for verdict in worst_first if verdict in verdicts)
    return _verdict(claim, rates, verdict, claim.note)


def rate_of(part: Any, points: Points, repetitions: int) -> dict:
    """What --json says of a Part."""
    about = dict(
        label=part.label,
        against=part.against,
        predicted=part.predicted,
        tolerance=None if isinstance(part, Bound) else part.tolerance,
        prediction=part.prediction,
        repetitions=repetitions,
        confidence=LEVEL,
    )
    shown = [
        {part.against: size, "mean": float(np.mean(errors)), "errors": errors}
        for size, errors in part.shown(points).items()
    ]
    return about | part.judge(points, LEVEL) | dict(points=shown)


def _trouble(results: list[dict]) -> tuple[str, str] | None:
    """(verdict, why) where there is nothing to judge."""
    if not results:
        why = "it trains no explicit network, or is about one activation"
        return "not applicable", why
    for result in results:
        for verdict in "not applicable", "error":
            if verdict in result:
                return verdict, result[verdict]
    return None


def _verdict(claim: Claim, rates: list[dict], verdict: str, note: str) -> dict:
    """The dict of a claim. Its slope and points are those of its first rate."""
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


# --------------------------------------------------------------------------------------
# Comparing with an earlier audit


def read_baseline(path: str | os.PathLike) -> dict[tuple[str, str], dict]:
    """{(claim, quantity): rate} of an earlier audit's --json. ValueError if the file is
    none."""
    try:
        claims = json.loads(Path(path).read_text())["claims"]
        rates = _rates(claims)
        moved(rates, claims)  # so that it fails now and not after the audit
        return rates
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        ArithmeticError,
        IndexError,
    ) as error:
        why = f"{type(error).__name__}: {error}"
        message = f"cannot use {str(path)!r} as an audit to compare with: {why}"
        raise ValueError(message) from None


def _rates(results: Iterable[dict]) -> dict[tuple[str, str], dict]:
    """{(claim, quantity): rate}"""
    return {(r["id"], rate["label"]): rate for r in results for rate in r["rates"]}


def moved(
    old: dict[tuple[str, str], dict], results: Iterable[dict]
) -> tuple[list[str], int]:
    """The sentences of what moved since a baseline, and of how many numbers both have.

    A slope or mean moved if Welch's t test tells the two apart at a level of 1% for all
    of them together, each interval being that of Student's t over its repetitions;
    where both are formulas, if they differ by more than 1e-6; a bound, if its verdict
    changed.
    """
    new = _rates(results)
    both = [key for key in new if key in old]
    sentences = []
    for claim, label in both:
        before, now = old[claim, label], new[claim, label]
        if _apart(before, now, level=0.01 / len(both)):
            texts = f"{_text(before)} before, {_text(now)} now"
            sentences.append(f"{claim}, {label}: {texts}")
    return sentences, len(both)


def _apart(before: dict, now: dict, level: float) -> bool:
    """Whether two measurements of a number differ."""
    (m, e, R), (n, f, Q) = _estimate(before), _estimate(now)
    if np.isnan(m) or np.isnan(n):
        return before["verdict"] != now["verdict"]
    size = np.hypot(e, f)
    if size < 1e-9:
        return abs(m - n) > 1e-6
    freedom = size**4 / (e**4 / (R - 1) + f**4 / (Q - 1))
    return bool(abs(m - n) / size > -stdtrit(freedom, level / 2))


def _estimate(rate: dict) -> tuple[float, float, int]:
    """A slope or mean, its standard error and the number of repetitions; NaN if the
    rate has none."""
    value = rate.get("slope") if rate.get("mean") is None else rate["mean"]
    if value is None or rate["low"] is None or not rate["points"]:
        return np.nan, np.nan, 2
    R = len(rate["points"][0]["errors"])
    quantile = float(stdtrit(R - 1, (1 + rate["confidence"]) / 2))
    return float(value), (rate["high"] - rate["low"]) / 2 / quantile, R


def _text(rate: dict) -> str:
    """A slope or mean with its interval, or the verdict on what has none."""
    value, _, _ = _estimate(rate)
    if not np.isfinite(value):
        return rate["verdict"]
    return f"{value:.3f} [{rate['low']:.3f}, {rate['high']:.3f}]"
