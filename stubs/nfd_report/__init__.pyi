"""What a user meets of nfd_report."""

from typing import Any

from matplotlib.figure import Figure

from nfd_audit import Audit

def rates(results: Audit | list[dict[str, Any]], columns: int = 4) -> Figure: ...
def coupling(results: Audit | list[dict[str, Any]]) -> Figure: ...
def __getattr__(name: str) -> Any: ...  # what is inside
