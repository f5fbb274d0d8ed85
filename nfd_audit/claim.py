"""A claim, its experiments and their cases.

A Claim is stated once, in its chapter of `nfd_audit.claims`. An Experiment repeats
cases of one measurement with fresh random numbers. Each of its parts
(`nfd_audit.verdict`) reads numbers off the results and has a verdict of its own.
"""

from collections.abc import Callable
from itertools import product
from typing import Any, NamedTuple, SupportsIndex

from nfd_audit.verdict import LEVEL, LOOKS, Bound, Part, Points

__all__ = ["Case", "Claim", "Experiment", "Plan", "sizes"]


class Case(NamedTuple):
    """run(**given, seed=seed), which depends on nothing else.

    seed : for numpy.random.default_rng: an int >= 0 or a tuple of them
    """

    run: Callable
    given: dict
    seed: int | tuple


class Plan(NamedTuple):
    """How often an experiment is repeated, and its arguments."""

    repeat: int
    given: dict


class Experiment(NamedTuple):
    """Repetitions of a measurement.

    measure : a function (*, data, seed, ..) of a module, which returns a dict
    repeat : how often at the first look: (quick, full)
    parts : of Part: what is read off the results
    given : more arguments of `measure`: (quick, full), see `sizes`
    over : names of those arguments that are tuples of values, all of which each
        repetition goes through on the same seed
    """

    measure: Callable
    repeat: tuple[int, int]
    parts: tuple[Part, ...]
    given: tuple[dict, dict] = ({}, {})
    over: tuple[str, ...] = ()

    def plan(self, full: bool) -> Plan:
        """That of the first look."""
        return Plan(self.repeat[full], self.given[full])

    def values(self, plan: Plan) -> list[tuple]:
        """The values of the arguments in `over` that a repetition goes through."""
        return list(product(*(plan.given[name] for name in self.over)))

    def cases(self, data: Any, plan: Plan, seed: tuple) -> list[Case]:
        """All cases of a look; each repetition has its own number behind `seed`."""
        return [
            Case(
                self.measure,
                plan.given | dict(zip(self.over, values), data=data),
                (*seed, r),
            )
            for r in range(plan.repeat)
            for values in self.values(plan)
        ]

    def read(self, results: list, plan: Plan) -> list[tuple[Part, Points]]:
        """Each part and its points, from the results of the cases."""
        if self.over:
            values = self.values(plan)
            starts = range(0, len(results), len(values))
            results = [dict(zip(values, results[i : i + len(values)])) for i in starts]
        return [(part, part.points(results, plan.given)) for part in self.parts]

    def next(self, results: list, plan: Plan, full: bool) -> Plan:
        """The plan of the next look; the same if every part is decided, or if there
        have been LOOKS of them.

        What is not decided is measured with wider arguments, or twice as often. A
        slope or mean is not decided while its interval is across an edge, nor, at the
        first look, while it is outside.
        """
        first = plan.repeat == self.repeat[full]
        for part, points in self.read(results, plan):
            if isinstance(part, Bound):
                continue
            verdict = part.judge(points, LEVEL)["verdict"]
            if verdict == "holds" or (verdict == "fails" and not first):
                continue
            if wider := part.wider(points, plan.given, self.given[full]):
                return plan._replace(given=wider)
            if plan.repeat < self.repeat[full] * 2 ** (LOOKS - 1):
                return plan._replace(repeat=2 * plan.repeat)
        return plan


def sizes(quick: dict, full: dict, **both: Any) -> tuple[dict, dict]:
    """The arguments of an Experiment: those of quick, and those of full, which has all
    of quick that it does not replace."""
    return both | quick, both | quick | full


class Claim(NamedTuple):
    """A statement of the paper, or of this project, and how it is measured.

    id, equation, statement : its name, its numbers in the paper, and what it says
    experiments : of Experiment; the claim holds if all of their parts do
    expected : "holds" or "fails"
    note : lines that are printed under the claim's verdict
    why : why one believes it, or why it fails
    formulas : in TeX
    """

    id: str
    equation: str
    statement: str
    experiments: tuple[Experiment, ...]
    expected: str = "holds"
    note: str = ""
    why: str = ""
    formulas: tuple[str, ...] = ()

    def __reduce_ex__(self, protocol: SupportsIndex) -> str | tuple[Any, ...]:
        """A claim of CLAIMS is pickled by its name: its readings have none."""
        from nfd_audit.claims import CLAIMS

        if CLAIMS.get(self.id) is self:
            return _claim, (self.id,)
        return tuple.__reduce_ex__(self, protocol)

    def plans(self, full: bool) -> list[Plan]:
        """Those of the first look, one for each experiment."""
        return [experiment.plan(full) for experiment in self.experiments]

    def cases(self, data: Any, plans: list[Plan], seed: int) -> list[list[Case]]:
        """One list of cases for each experiment, whose random numbers are its own."""
        each = enumerate(zip(self.experiments, plans))
        return [
            experiment.cases(data, plan, (seed, e, *self.id.encode()))
            for e, (experiment, plan) in each
        ]

    def split(self, results: list, plans: list[Plan]) -> list[list]:
        """The results of all cases, a list for each experiment."""
        lists, start = [], 0
        for experiment, plan in zip(self.experiments, plans):
            end = start + plan.repeat * len(experiment.values(plan))
            lists.append(results[start:end])
            start = end
        return lists

    def next(self, results: list, plans: list[Plan], full: bool) -> list[Plan]:
        """The plans of the next look; the same ones if there is none."""
        each = zip(self.experiments, self.split(results, plans), plans)
        return [experiment.next(of_it, plan, full) for experiment, of_it, plan in each]


def _claim(id: str) -> Claim:
    from nfd_audit.claims import CLAIMS

    return CLAIMS[id]
