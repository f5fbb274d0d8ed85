"""What the paper claims, measured: claims and verdicts, figures, pages, data, and other
people's networks.

digits.npz holds X (1797, 64) of pixels 0..16 and y (1797,) of labels: the 1,797 test
images (8 x 8) of E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten
Digits", UCI Machine Learning Repository (1998), https://doi.org/10.24432/C50P49, under
the Creative Commons Attribution 4.0 International licence (CC BY 4.0,
https://creativecommons.org/licenses/by/4.0/legalcode). The numbers are unchanged; only
the file format is ours.
"""

from nfd_audit.auditing import Audit, assert_claim, audit
from nfd_audit.claims import CLAIMS
from nfd_audit.command import main
from nfd_audit.networks import assert_equations, compare

__all__ = [
    "CLAIMS",
    "Audit",
    "assert_claim",
    "assert_equations",
    "audit",
    "compare",
    "main",
]
