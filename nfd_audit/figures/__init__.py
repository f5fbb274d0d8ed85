"""The paper's figures and some more, from fresh runs.

`figure` draws one in a notebook, `make` writes it to a directory with the numbers
behind it, and so does the command `nfd-figures` (`main`).

Each figure stands in a file of its own: its cases, the numbers that are read off their
results, its drawing and its sizes. A new one is such a file and a line of FIGURES
(`catalogue.py`). Cases are independent and have their own seeds, so where they run, and
in which order, does not change a bit. They run on the workers of
`joblib.parallel_config`, by default in this process.
"""

from nfd_audit.figures.catalogue import FIGURES, figure, make
from nfd_audit.figures.command import main

__all__ = ["FIGURES", "figure", "main", "make"]
