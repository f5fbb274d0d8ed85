"""How the cost of training without matrices grows: `python bench.py`. Times are whole runs, coupling="full", noise included."""

from statistics import median
from time import perf_counter

import nfd_min
import sde

REPEAT = 5


def seconds(particles, steps, passes):
    stream = nfd_min.Stream.digits(passes, 0.01, rng=0)
    start = perf_counter()
    sde.solve(stream, particles, steps, coupling="full", dtype="float32", rng=0, keep="outputs")
    return perf_counter() - start


GROWTH = (  # what is varied, its sizes, the time at one size, expected exponent
    ("width", (20_000, 40_000, 80_000, 160_000), lambda n: seconds(n, 16, 3), 1),
    ("depth", (16, 32, 64, 128), lambda L: seconds(40_000, L, 3), 1),
    ("passes, time per pass", (32, 64, 128, 256), lambda S: seconds(4_000, 4, S) / S, 1),
)


def main():
    seconds(5000, 2, 2)  # compile
    row = "{:24} {:28} {:34} {:>9} {:>9} {:>18}"
    print(row.format("varied", "sizes", "median seconds", "expected", "measured", "95% interval"))
    for name, sizes, run, expected in GROWTH:
        times = [[run(size) for size in sizes] for _ in range(REPEAT)]
        fit = nfd_min.fit_slope(sizes, times)
        medians = ", ".join(f"{median(column):.3g}" for column in zip(*times))
        measured = f"{fit.slope:.2f}", f"[{fit.low:.2f}, {fit.high:.2f}]"
        print(row.format(name, ", ".join(map(str, sizes)), medians, expected, *measured), flush=True)


if __name__ == "__main__":
    main()
