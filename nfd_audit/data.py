"""The samples of an audit: the digits that come with the package, or those of a file.

A file is an archive, `.npz` with arrays X (N, d) and y (N,), which needs NumPy alone,
or a table with a sample in each row, `.csv`, `.tsv`, `.xlsx` or `.parquet`, which needs
pandas. Where a table can be read in two ways (is the first row a header, which column
has the target, does a column only number the rows?) nothing is guessed: a ValueError
names the field of `Data`, and the option of the command line, that settles it.
"""

from __future__ import annotations

import os
import re
import shlex
import warnings
import zipfile
from collections.abc import Callable, Iterable
from functools import lru_cache, partial
from importlib import resources
from math import prod
from numbers import Real
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import numpy as np

from nfd_min import (
    Floats,
    LossName,
    Rng,
    Stream,
    check_memory,
    choose,
    epochs,
    finite_array,
    normalised,
    positive_int,
)

if TYPE_CHECKING:
    import pandas

__all__ = [
    "CURVATURE", "TARGETS", "Data", "data_of", "images", "load_data", "load_samples",
    "pool", "prepared", "sequence", "stream", "stream_of",
]  # fmt: skip

TARGETS = {"classes": None, "real": None}
TABLES = ".csv", ".tsv", ".xlsx", ".parquet"


class Data(NamedTuple):
    """Which samples there are, and what their targets are.

    path : of a file; None, the shipped digits
    label : the column of a table that has y: "first", "last", or its name in the
        header; None, the last one, if nothing speaks for another one
    classes : (a, b), only those two labels, with target +1 for a and -1 for b; None,
        all: of two labels the larger is +1, of more the smallest is +1, the next -1,
        the next +1, and so on
    target : "classes", or "real": y less its mean, divided by its standard deviation
    loss : one of nfd_min.LOSSES
    drop : names of columns that are left out
    keep : names of columns that are inputs although they look like row numbers or like
        a part of the label
    header : whether the first row of a table has the names of the columns; None, it
        does if they are no numbers

    Columns without a name are called by their number, "1", "2", ..

    ValueError, where they are used, for a file that cannot be read or whose reading has
    to be guessed, labels that are not integers, a class without samples, an input that
    equals the mean.
    """

    path: str | None = None
    label: str | None = None
    classes: tuple[float, float] | None = None
    target: str = "classes"
    loss: LossName = "squared"
    drop: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    header: bool | None = None

    def about(self) -> dict[str, Any]:
        """The fields, for a JSON file."""
        fields = self._asdict()
        return {"data": fields.pop("path") or "digits"} | fields


AnyData = Data | str | os.PathLike[str] | None


def data_of(data: AnyData = None, **how: Any) -> Data:
    """Data, with the fields `how` replaced, from Data, a path, or None.

    ValueError for an unknown field, and for values that no file could make right.
    """
    unknown = how.keys() - set(Data._fields[1:])
    if unknown:
        allowed = ", ".join(Data._fields[1:])
        raise ValueError(f"unknown {', '.join(sorted(unknown))}; allowed: {allowed}")
    path: Any = data.path if isinstance(data, Data) else data
    if path is not None and not isinstance(path, (str, os.PathLike)):
        raise ValueError(f"data={path!r} must be the path of a file, or a Data")
    data = (data if isinstance(data, Data) else Data())._replace(**how)
    choose("target", data.target, TARGETS)
    if data.header not in (None, True, False):
        raise ValueError(f"header={data.header!r} must be True, False or None")
    return data._replace(
        path=None if path is None else os.fspath(path),
        classes=_pair(data.classes),
        drop=_names("drop", data.drop),
        keep=_names("keep", data.keep),
    )


def _pair(classes: Any) -> tuple[float, float] | None:
    """The two labels as a tuple."""
    if classes is None:
        return None
    pair = tuple(classes) if np.iterable(classes) else ()
    if len(pair) != 2 or not all(isinstance(label, Real) for label in pair):
        raise ValueError(f"classes={classes!r} must be two different labels")
    return pair


def _names(field: str, names: Any) -> tuple[str, ...]:
    """A name, or several, as a tuple."""
    each = (names,) if isinstance(names, str) else names
    if not isinstance(each, Iterable) or not all(isinstance(n, str) for n in each):
        raise ValueError(f"{field}={names!r} must be names of columns")
    return tuple(each)


# --------------------------------------------------------------------------------------
# Samples


def prepared(data: AnyData = None) -> tuple[Floats, Floats, str]:
    """Inputs, targets, and a sentence that says what was read.

    Returns X (N, d), less its mean and then scaled to |x|^2 = d, and y (N,).
    """
    data = data_of(data)
    X, y, where = load_data(data)
    if data.target == "real":
        keep, target, about = _real(y, data.classes)
    else:
        keep, target, about = _signs(y, data.classes)
    X = normalised(X[keep])
    N, d = X.shape
    name = data.path or "the shipped digits"
    return X, target, f"{name}: N = {N} samples, d = {d}{where}; {about}"


def _real(y: Floats, classes: Any) -> tuple[Any, Floats, str]:
    """Which samples, their targets, and what is said of them, for target="real"."""
    if classes is not None:
        raise ValueError(
            f'classes={classes!r} and target="real" are not for use together'
        )
    mean, spread = y.mean(), y.std()
    if not 0 < spread < np.inf:
        raise ValueError("the targets are all the same")
    about = f"targets (y - {mean:.4g}) / {spread:.4g}"
    return slice(None), (y - mean) / spread, about


def _signs(y: Floats, classes: Any) -> tuple[Any, Floats, str]:
    """The same for target="classes"."""
    if (y != np.rint(y)).any() or (np.abs(y) > 2**53).any():
        raise ValueError(
            "y must hold integer labels, at most 2^53; "
            'target="real" (--target real) is for others'
        )
    found = np.unique(y.astype(int))
    if len(found) < 2:
        raise ValueError(
            f"the data have one label only, {found[0]}; two or more are needed"
        )
    if classes is None:
        plus = found[1:] if len(found) == 2 else found[::2]
        keep = np.full(len(y), True)
    else:
        if classes[0] == classes[1] or not np.isin(classes, found).all():
            allowed = _some(found)
            raise ValueError(
                f"classes={classes!r} must be two different labels out of {allowed}"
            )
        plus = found[found == classes[0]]
        keep = np.isin(y, classes)
        found = np.array(sorted(classes))
    minus = found[~np.isin(found, plus)]
    about = f"target +1 for {_some(plus)}, -1 for {_some(minus)}"
    return keep, np.where(np.isin(y[keep], plus), 1.0, -1.0), about


def _some(values: Floats) -> str:
    """Numbers with commas between them, many of them abbreviated."""
    each = [f"{value:g}" for value in values]
    return ", ".join(each if len(each) <= 10 else [*each[:3], "..", each[-1]])


def load_samples(
    samples: int, data: AnyData = None, rng: Rng = None
) -> tuple[Floats, Floats]:
    """X (S, d) and targets y (S,) of S samples, in random order, epoch after epoch."""
    S = positive_int("samples", samples)
    X, y, _ = prepared(data)
    check_memory(8 * S * X.shape[1], f"samples={S}")
    order = epochs(S, len(X), rng)
    return X[order], y[order]


def stream(
    samples: int,
    eta: float,
    *,
    data: AnyData = None,
    batch: int = 1,
    rng: Rng = None,
    **how: Any,
) -> Stream:
    """A Stream of the samples of a file, in random order, epoch after epoch.

    Their mean is subtracted and each is then scaled to |x|^2 = d.

    samples : number S of samples drawn;  rng : seed or Generator, of their order
    data : path of a file, or Data;  eta, batch : as in nfd_min.Stream
    how : fields of Data, which says what is refused as a ValueError
    """
    data = data_of(data, **how)
    return Stream(*load_samples(samples, data, rng), eta, batch, data.loss)


def pool(data: AnyData) -> tuple[Floats, Floats]:
    """All samples, X (N, d) and targets y (N,), in a fixed random order."""
    data = data_of(data)
    return _pool(data, _version(data))


@lru_cache(maxsize=4)
def _pool(data: Data, version: Any) -> tuple[Floats, Floats]:
    X, y, _ = prepared(data)
    order = np.random.default_rng(0).permutation(len(X))
    return X[order], y[order]


def images(data: AnyData) -> tuple[Floats, Floats, Floats, Floats]:
    """X, y to train on, and X, y to test with: a fifth of all, at most 500."""
    X, y = pool(data)
    held_out = max(1, min(500, len(X) // 5))
    return X[held_out:], y[held_out:], X[:held_out], y[:held_out]


CURVATURE = {"squared": 1.0, "logistic": 0.25}
"""Of each loss, d^2 l / df^2 at f = 0: the eta of a case is a Stream's times this."""


def stream_of(data: AnyData, X: Any, y: Any, eta: float, batch: int = 1) -> Stream:
    """The Stream of these samples, with the loss of the data."""
    loss = data_of(data).loss
    return Stream(X, y, eta / CURVATURE[loss], batch, loss)


def sequence(
    data: AnyData, order: Iterable[int], eta: float, batch: int = 1, *, rng: Rng
) -> Stream:
    """The Stream of different samples in that order: (0, 1, 0) is of two in turn."""
    X, y = pool(data)
    rng = np.random.default_rng(rng)
    order = list(order)
    d = X.shape[1]
    for _ in range(100):  # until no input is there twice, or with the other sign
        rows = rng.choice(len(X), max(order) + 1, replace=False)
        cosines = X[rows] @ X[rows].T - d * np.eye(len(rows))
        if (np.abs(cosines) < (1 - 1e-6) * d).all():
            break
    rows = rows[order]
    return stream_of(data, X[rows], y[rows], eta, batch)


# --------------------------------------------------------------------------------------
# Files


class Table(NamedTuple):
    """What is in a file.

    columns : {name: values (N,)};  y : array (N,) of an archive, None of a table
    header : whether the names come from the file
    """

    columns: dict[str, Any]
    y: Floats | None = None
    header: bool = False


def load_data(data: AnyData = None) -> tuple[Floats, Floats, str]:
    """X (N, d), y (N,), as they are in the file, and where in it y is.

    A file that did not change is read once. ValueError as in Data.
    """
    data = data_of(data)
    try:
        table = _read(_version(data), data.header)
        names = [*table.columns]
        _check_names("drop", data.drop, names, table.header)
        _check_names("keep", data.keep, names, table.header)
        left = {name: a for name, a in table.columns.items() if name not in data.drop}
        if not left:
            raise ValueError("every column is dropped")
        chosen = table._replace(columns=left)
        if table.y is None:
            X, y, name = _from_table(chosen, data)
            where = f", label in column {names.index(name) + 1}"
            return X, y, where + (f" ({name})" if table.header else "")
        for field in ("label", "header"):
            if getattr(data, field) is not None:
                raise ValueError(f"{field} is for tables; this file has arrays X and y")
        X = np.column_stack([*left.values()])
        _refuse_row_numbers(X, chosen, data.keep)
        return X, table.y, ""
    except Exception as error:  # a malformed file may raise anything
        name = "the shipped digits" if data.path is None else repr(data.path)
        raise ValueError(f"cannot use {name} as data: {error}") from error


def _version(data: Data) -> tuple[str, int, int] | None:
    """Path, time and size of the file; None for the digits."""
    if data.path is None:
        return None
    try:
        about = os.stat(data.path)
    except OSError:
        return data.path, 0, 0
    return os.path.abspath(data.path), about.st_mtime_ns, about.st_size


@lru_cache(maxsize=4)
def _read(version: tuple[str, int, int] | None, header: bool | None) -> Table:
    """What is in a file, before anything is chosen from it."""
    if version is None:
        with resources.files("nfd_audit").joinpath("digits.npz").open("rb") as file:
            return _read_archive(file)
    path = Path(version[0])
    if not path.is_file():
        raise ValueError(
            "it is not a file" if path.exists() else "there is no such file"
        )
    if path.suffix.lower() == ".npz":
        with open(path, "rb") as file:
            return _read_archive(file)
    if path.suffix.lower() not in TABLES:
        raise ValueError(f"its name must end in .npz, {', '.join(TABLES)}")
    return _read_table(path, header)


def _read_archive(file: IO[bytes]) -> Table:
    """The arrays X and y of an .npz archive."""
    check_memory(_announced(file), "what it holds")
    with np.load(file, allow_pickle=False) as archive:
        if not {"X", "y"} <= set(archive.files):
            has = ", ".join(archive.files)
            raise ValueError(f"the archive has {has}; expected X (N, d) and y (N,)")
        X = finite_array("X", archive["X"], ("N", "d"))
        y = finite_array("y", archive["y"], (len(X),))
    X.flags.writeable = y.flags.writeable = False
    return Table({str(i): column for i, column in enumerate(X.T, 1)}, y)


def _announced(file: IO[bytes]) -> int:
    """Bytes that the headers of X and y announce, read before any array is."""
    total = 0
    formats = np.lib.format
    with zipfile.ZipFile(file) as archive:
        for name in {"X.npy", "y.npy"} & set(archive.namelist()):
            with archive.open(name) as array:
                if formats.read_magic(array) == (1, 0):
                    shape, _, dtype = formats.read_array_header_1_0(array)
                else:
                    shape, _, dtype = formats.read_array_header_2_0(array)
            total += prod(shape) * dtype.itemsize
    file.seek(0)
    return total


def _read_table(path: Path, header: bool | None) -> Table:
    """The columns of a table, numbers and text alike."""
    try:
        import pandas
    except ImportError:
        raise ValueError("a table needs pandas: pip install 'nfd-min[audit]'") from None
    if path.suffix.lower() == ".parquet":
        if header is not None:
            raise ValueError("a .parquet file always has names; header is for others")
        return _columns(pandas.read_parquet(path), True)
    read = _excel if path.suffix.lower() == ".xlsx" else _delimited(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what openpyxl thinks of styles
        warnings.simplefilter("error", pandas.errors.ParserWarning)
        if header is not False:
            top = read(path, header=None, nrows=1, dtype=str, keep_default_na=False)
            cells = [str(cell).strip() for cell in top.to_numpy().ravel()]
            header = header or _is_header(cells)
            twice = [name for name in cells if name and cells.count(name) > 1]
            if header and twice:
                raise ValueError(f"the header has the name {twice[0]!r} twice")
        return _columns(read(path, header=0 if header else None), header)


def _excel(path: Path, **how: Any) -> pandas.DataFrame:
    """The one sheet of a workbook that is not empty."""
    import pandas

    sheets = pandas.read_excel(path, sheet_name=None, **how)
    full = {name: sheet for name, sheet in sheets.items() if sheet.size}
    if len(full) > 1:
        raise ValueError(f"it has the sheets {', '.join(full)}; one is expected")
    return next(iter((full or sheets).values()))


def _delimited(path: Path) -> Callable[..., pandas.DataFrame]:
    """pandas.read_csv for that file, which Excel may have written in any country."""
    import pandas

    with open(path, encoding="utf-8-sig") as file:
        first, body = file.readline(), file.read(2**16)
    how: dict[str, Any] = {}
    sep = "\t" if path.suffix.lower() == ".tsv" else ","
    if first.startswith("sep="):  # Excel's own first line
        sep = first[4]
        how["skiprows"] = 1
    elif sep == "," and ";" in first:
        sep = ";"
    if sep == ";" and "," in body:
        how["decimal"] = ","
    return partial(
        pandas.read_csv,
        sep=sep,
        encoding="utf-8-sig",
        float_precision="round_trip",
        low_memory=False,
        index_col=False,
        skipinitialspace=True,
        **how,
    )


def _is_header(cells: list[str]) -> bool:
    """Whether the first row has names: no numbers, or numbers that count 0, 1, 2, .."""
    numbers = [float(cell) for cell in cells if _is_number(cell)]
    if not numbers:
        return True
    if len(numbers) == len(cells):
        return False  # or see _refuse_header_of_numbers
    if len(numbers) > 1 and numbers[0] in (0, 1) and (np.diff(numbers) == 1).all():
        return True
    raise ValueError(
        f"the first row has numbers and text ({', '.join(cells[:4])}, ..); "
        "header (--header, --no-header) says whether it has the names of the columns"
    )


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return "_" not in cell


def _columns(frame: pandas.DataFrame, header: bool) -> Table:
    """The Table of a DataFrame."""
    if header:
        names = [str(name).strip() for name in frame.columns]
    else:
        names = [str(i + 1) for i in range(frame.shape[1])]
    if len(frame) == 0:
        raise ValueError("there are no rows of numbers")
    if len(set(names)) < len(names):
        raise ValueError(f"two columns have the same name: {', '.join(names)}")
    return Table(
        {name: frame.iloc[:, i] for i, name in enumerate(names)}, header=header
    )


# --------------------------------------------------------------------------------------
# From a table to inputs and label


def _from_table(table: Table, data: Data) -> tuple[Floats, Floats, str]:
    """X (N, d), y (N,) and the name of y's column, of columns that are not dropped."""
    names = list(table.columns)
    if len(names) < 2:
        raise ValueError("there is one column only; inputs and a label are needed")
    values = np.column_stack([_numbers(*item) for item in table.columns.items()])
    if not table.header and data.header is None:
        _refuse_header_of_numbers(values)
    label = names[-1]
    if data.label is None:
        _refuse_row_numbers(values, table, data.keep)
        _refuse_to_guess_the_label(values, names, data.target)
    else:
        ends = {"first": names[0], "last": names[-1]}
        label = data.label if data.label in names else ends.get(data.label, data.label)
        _check_names("label", (label,), names, table.header)
        _refuse_row_numbers(values, table, (*data.keep, label))
    at = names.index(label)
    _refuse_one_hot(values, names, at, data.keep)
    X = np.ascontiguousarray(np.delete(values, at, axis=1))
    return X, values[:, at], label


def _numbers(name: str, column: pandas.Series) -> Floats:
    """The column as finite float64 numbers."""
    import pandas

    if column.dtype.kind in "mM":  # dates and times, which are numbers for pandas
        values = np.full(len(column), np.nan)
    else:
        numbers = pandas.to_numeric(column, errors="coerce")
        values = numbers.to_numpy(float, na_value=np.nan)
    bad = ~np.isfinite(values)
    if bad.any():
        row = int(np.argmax(bad))
        raise ValueError(
            f"column {name}: {str(column.iloc[row])!r} in row {row + 1} is not a "
            f"finite number; --drop {shlex.quote(name)} leaves the column out"
        )
    return values


def _check_names(
    field: str, names: Iterable[Any], columns: list[str], header: bool
) -> None:
    """ValueError if one of the names is not that of a column."""
    for name in names:
        if name not in columns:
            called = "the header has" if header else "it has no header; allowed are"
            some = columns if len(columns) <= 20 else [*columns[:20], ".."]
            raise ValueError(
                f"{field}={name!r} is no column; {called} {', '.join(some)}"
            )


# --------------------------------------------------------------------------------------
# What is refused, as it would have to be guessed

ROW_NUMBERS = re.compile(
    r"unnamed: 0(\.\d+)*|\.\.\.1|#|idx|index|no\.?|nr\.?|(.*[ _.-])?id"
    r"|row([ _.-]?(names?|numbers?|nr|no|index))?",
    re.IGNORECASE,
)
"""Names that R, pandas, readr and people give to a column of row numbers."""

LABELS = {"label", "labels", "class", "classes", "target", "targets", "y", "species",
          "category", "diagnosis"}  # fmt: skip
"""Names of a column that has the labels, in lower case."""


def _refuse_row_numbers(X: Floats, table: Table, keep: tuple[str, ...]) -> None:
    """ValueError if a column, by its values or its name, only numbers the rows."""
    for name, column in zip(table.columns, X.T):
        if name in keep:
            continue
        in_order = column if len(column) < 10 else np.sort(column)
        counts = len(column) > 3 and (np.diff(in_order) == 1).all()
        named = ROW_NUMBERS.fullmatch(name) or re.search(r"[a-z]I[dD]$", name)
        if counts or (table.header and named):
            option = shlex.quote(name)
            raise ValueError(
                f"column {name} only numbers the rows, it seems: drop (--drop "
                f"{option}) leaves it out, keep (--keep {option}) makes it an input"
            )


def _refuse_header_of_numbers(values: Floats) -> None:
    """ValueError if the first of the rows is unlike the others, as a header is."""
    first, rest = values[0], values[1:]
    if len(rest) < 2:
        return
    low, high = rest.min(axis=0), rest.max(axis=0)
    distance = np.maximum(low - first, first - high)
    far = (distance > high - low) & (distance > 0)
    whole = (rest == np.rint(rest)).all(axis=0)
    even = _evenly_spaced(values[:1001])
    if (
        far.mean() > 0.5  # 2016, 2020, 2024 above 1, 7, 3
        or (
            whole & (first != np.rint(first))
        ).any()  # 3, 3.1, 5, as pandas mangles 3, 3
        or (even[0] and even[1:].mean() < 0.01)  # 10, 20, 30
    ):
        raise ValueError(
            f"the first row, {_some(first)}, may be a header of numbers; "
            "header (--header, --no-header) says whether it is"
        )


def _evenly_spaced(rows: Floats) -> Floats:
    """Which rows are like 10, 20, 30."""
    steps = np.diff(rows)
    if steps.shape[1] < 2:
        return np.full(len(rows), False)
    same = np.isclose(steps, steps[:, :1], rtol=1e-9, atol=0) & (steps != 0)
    return np.all(same, axis=1)


def _refuse_to_guess_the_label(values: Floats, names: list[str], target: str) -> None:
    """ValueError unless it is plain that the last column has the label."""
    last = len(names) - 1
    named = [i for i, name in enumerate(names) if name.lower() in LABELS]
    if named == [last]:
        return
    if target == "real":
        raise ValueError(
            'target="real" has to be told where y is: label (--label) "last", "first" '
            "or the name of a column"
        )
    others = [i for i in named if i != last]
    if not others:
        in_first = 1 < _labels(values[:, 0]) <= len(values) / 3
        in_last = _labels(values[:, -1]) <= max(20, len(values) / 2)
        fraction = not _whole(values[:, -1])  # which is refused later
        if (in_last or fraction) and not in_first:
            return
        others = [0]
    where = [
        f"column {names[i]}, which holds {_some(np.unique(values[:, i]))}"
        for i in [last, *others]
    ]
    raise ValueError(
        f"y may be in {', or in '.join(where)}; label (--label) "
        '"last", "first" or the name of a column says where it is, '
        'and target (--target) "real" that it is not a class'
    )


def _whole(values: Floats) -> bool:
    return bool((values == np.rint(values)).all())


def _labels(column: Floats) -> float:
    """How many labels it holds, if it holds labels, which are integers."""
    return len(np.unique(column)) if _whole(column) else np.inf


def _refuse_one_hot(
    values: Floats, names: list[str], at: int, keep: tuple[str, ...]
) -> None:
    """ValueError if the label and columns beside it are the digits of one label."""
    total = values[:, at]
    siblings: list[str] = []
    for side in (range(at - 1, -1, -1), range(at + 1, len(names))):
        for i in side:
            both = total + values[:, i]
            if total.min() == 1 or not np.isin([values[:, i], both], (0, 1)).all():
                break
            total = both
            siblings.append(names[i])
    siblings = [name for name in siblings if name not in keep]
    if total.min() == 1 and siblings:
        drop = " ".join(f"--drop {shlex.quote(name)}" for name in siblings[:3])
        raise ValueError(
            f"columns {', '.join([names[at], *siblings])} are one label, one-hot: the "
            f"others tell {names[at]}; drop ({drop} ..) leaves them out, keep (--keep) "
            "makes them inputs"
        )
