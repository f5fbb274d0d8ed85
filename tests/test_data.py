"""Data files: what is read from them, and what is refused as it would be a guess."""

import math
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from nfd_audit import data as data_module
from nfd_audit.claims.coupling import coupling_case
from nfd_audit.command import main
from nfd_audit.data import (
    CURVATURE,
    Data,
    data_of,
    images,
    load_data,
    load_samples,
    pool,
    prepared,
    sequence,
    stream,
    stream_of,
)
from nfd_min import LOSSES, Stream

pandas = pytest.importorskip("pandas")
RNG = np.random.default_rng(0)
INPUTS = RNG.standard_normal((60, 4)).round(3)
COUNTS = RNG.integers(0, 100, (60, 4))
LABELS = RNG.integers(0, 2, 60)
SUMS = INPUTS.sum(axis=1)
FRAME = pandas.DataFrame(INPUTS, columns=list("abcd")).assign(y=LABELS)


def written(tmp_path, columns, header=None, name="a.csv"):
    """The path of a table with these columns."""
    lines = [] if header is None else [header]
    lines += [
        ",".join(f"{cell:.17g}" for cell in row) for row in np.column_stack(columns)
    ]
    path = tmp_path / name
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def refused(path, *words, **how):
    """The file is refused, in a message with these words."""
    with pytest.raises(ValueError) as error:
        prepared(data_of(path, **how))
    assert all(word in str(error.value) for word in words), error.value


def read(path, **how):
    """X, targets and the sentence."""
    return prepared(data_of(path, **how))


def normalised(X):
    """[24]: less the mean, and |x|^2 = d."""
    centred = X - X.mean(axis=0)
    norm = np.linalg.norm(centred, axis=1, keepdims=True)
    return centred / norm * math.sqrt(X.shape[1])


def images_of(tmp_path, label, *, first=False, header=None, N=60):
    """A table of N images of 6 pixels, mostly background, and labels."""
    rng = np.random.default_rng(0)
    ink = rng.random((N, 6)) < [0.1, 0.6, 0.8, 0.9, 0.6, 0.3]
    pixels = rng.integers(1, 17, (N, 6)) * ink
    y = np.array(label)[np.arange(N) % len(label)]
    columns = [y, pixels] if first else [pixels, y]
    return pixels, y, written(tmp_path, columns, header)


# What is read


def test_the_digits():
    X, label, where = load_data()
    counts = np.bincount(label.astype(int)).tolist()
    assert X.shape == (1797, 64) and X.max() == 16 and where == ""
    assert counts == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    inputs, target, about = prepared()
    assert np.allclose(inputs, normalised(X))
    assert np.array_equal(target, (-1) ** label.astype(int))
    assert about.startswith(
        "the shipped digits: N = 1797 samples, d = 64; target +1 for"
    )
    ours, theirs = (
        stream(2000, 0.3, batch=4, rng=3),
        Stream.digits(2000, 0.3, batch=4, rng=3),
    )
    assert np.array_equal(ours.X, theirs.X) and np.array_equal(ours.y, theirs.y)
    assert (ours.eta, ours.batch, ours.loss) == (0.3, 4, "squared")


def test_the_digits_need_numpy_alone(tmp_path):
    """And so does an archive; a table without pandas says what is missing."""
    np.savez(tmp_path / "a.npz", X=INPUTS, y=LABELS)
    path = written(tmp_path, [INPUTS, LABELS])
    program = f"""
import sys
sys.modules["pandas"] = None
from nfd_audit.data import prepared
print(len(prepared()[0]), len(prepared({str(tmp_path / "a.npz")!r})[0]))
try:
    prepared({path!r})
except ValueError as error:
    print(error)
"""
    root = str(Path(data_module.__file__).parents[1])
    env = os.environ | {"PYTHONPATH": root}
    done = subprocess.run(
        [sys.executable, "-c", program], env=env, capture_output=True, text=True
    )
    assert done.stdout.startswith("1797 60\n") and "needs pandas" in done.stdout, done


def test_samples_in_epochs():
    """Two classes; each epoch in an order of its own, the same for the same seed."""
    two = Data(classes=(3, 5))
    X, y = load_samples(800, two, 1)
    again, _ = load_samples(800, two, 1)
    assert np.array_equal(X, again)
    assert not np.array_equal(X[:365], X[365:730])
    assert len(np.unique(X[:365], axis=0)) == 365
    assert sum(y[:365] == 1) == 183  # threes
    assert np.array_equal(np.sort(X[:365], axis=0), np.sort(X[365:730], axis=0))


def test_every_kind_of_file_gives_the_same(tmp_path):
    pytest.importorskip("pyarrow")
    pytest.importorskip("openpyxl")
    expected = normalised(INPUTS)
    np.savez(tmp_path / "a.npz", X=INPUTS, y=LABELS)
    np.savez(tmp_path / "large.npz", X=INPUTS * 1e300, y=LABELS)
    FRAME.to_csv(tmp_path / "a.csv", index=False)
    FRAME.to_csv(tmp_path / "bare.csv", index=False, header=False)
    FRAME.to_csv(tmp_path / "bom.csv", index=False, encoding="utf-8-sig")
    FRAME.to_csv(tmp_path / "german.csv", index=False, sep=";", decimal=",")
    text = FRAME.to_csv(index=False, sep=";")
    (tmp_path / "sep.csv").write_text(f"sep=;\n{text}")
    (tmp_path / "gaps.csv").write_text(text.replace(";", " ,  ").replace("\n", "\n\n"))
    FRAME.to_csv(tmp_path / "a.tsv", index=False, sep="\t")
    FRAME.to_parquet(tmp_path / "a.parquet")
    FRAME.assign(y=LABELS == 1).to_parquet(tmp_path / "truth.parquet")
    pytest.importorskip("openpyxl")
    FRAME.to_excel(tmp_path / "a.xlsx", index=False)
    FRAME.to_excel(tmp_path / "bare.xlsx", index=False, header=False)
    FRAME.astype(str).to_excel(tmp_path / "text.xlsx", index=False)
    files = sorted(tmp_path.iterdir())
    assert len(files) == 14
    for path in files:
        X, target, about = prepared(path)
        assert np.allclose(X, expected, rtol=1e-12), path
        assert np.array_equal(target, 2 * LABELS - 1), path
        assert about.startswith(f"{path}: N = 60 samples, d = 4")


def test_every_digit_is_read(tmp_path):
    rng = np.random.default_rng(1)
    exact = rng.standard_normal((500, 3)) * 10.0 ** rng.integers(-90, 90, (500, 3))
    X, y, _ = load_data(written(tmp_path, [exact, np.arange(500) % 2]))
    assert np.array_equal(X, exact) and np.array_equal(y, np.arange(500) % 2)


def test_labels_last(tmp_path):
    pixels, y, path = images_of(tmp_path, [0, 1, 2])
    inputs, target, about = read(path, label="last")
    assert np.allclose(inputs, normalised(pixels))
    assert np.array_equal(target, np.where(y == 1, -1, 1))
    targets = "target +1 for 0, 2, -1 for 1"
    assert about == f"{path}: N = 60 samples, d = 6, label in column 7; {targets}"


@pytest.mark.parametrize(
    "label, header, settled, plus",
    [
        ([0, 1, 2], None, "first", {0, 2}),
        ([0, 1, 2], None, "1", {0, 2}),
        ([3, 8], "label,p1,p2,p3,p4,p5,p6", "label", {8}),
        ([3, 8], "digit,p1,p2,p3,p4,p5,p6", "digit", {8}),
        ([0, 2, 4], "kind,1,2,3,4,5,6", "first", {0, 4}),
    ],
)
def test_labels_first(tmp_path, label, header, settled, plus):
    """An error names both readings and the option; with it the file is read."""
    pixels, y, path = images_of(tmp_path, label, first=True, header=header)
    holds = "which holds " + ", ".join(map(str, label))
    refused(path, "y may be in column", holds, "--label")
    inputs, target, about = read(path, label=settled)
    assert np.allclose(inputs, normalised(pixels))
    assert np.array_equal(target, np.where(np.isin(y, list(plus)), 1, -1))
    assert "label in column 1" in about
    last, _, _ = read(path, label="last")  # who insists
    assert not np.allclose(last, inputs)


def test_a_header_that_says_where_the_label_is(tmp_path):
    """Columns that all look like labels are no question then."""
    both = np.random.default_rng(0).integers(0, 3, (60, 3))
    refused(
        written(tmp_path, [both]), "y may be in column 3", "or in column 1", "--label"
    )
    path = written(tmp_path, [both], "sex,kind,Class")
    assert "label in column 3 (Class)" in read(path)[2]
    for label in ("height", 3):
        refused(path, f"label={label!r} is no column", "sex, kind, Class", label=label)
    refused(written(tmp_path, [both], "y,kind,class"), "column class", "column y")


@pytest.mark.parametrize(
    "label, plus",
    [([0, 2, 4], {0, 4}), ([7, 3], {7}), ([1, 2, 3, 4], {1, 3}), ([-1, 1], {1})],
)
def test_targets_of_classes(tmp_path, label, plus):
    _, y, path = images_of(tmp_path, label)
    expected = np.where(np.isin(y, list(plus)), 1, -1)
    assert np.array_equal(read(path, label="last")[1], expected)


def test_two_classes(tmp_path):
    pixels, y, path = images_of(tmp_path, [0, 2, 4])
    inputs, target, about = read(path, label="last", classes=(4, 0))
    kept = y != 2
    assert np.allclose(inputs, normalised(pixels[kept]))
    assert np.array_equal(target, np.where(y[kept] == 4, 1, -1))
    assert about.endswith(
        "N = 40 samples, d = 6, label in column 7; target +1 for 4, -1 for 0"
    )
    for classes in ((4, 9), (4, 4)):
        refused(
            path, "two different labels out of 0, 2, 4", label="last", classes=classes
        )
    for classes in ("ab", 3, (1, 2, 3)):
        with pytest.raises(ValueError, match="classes=.* must be two different labels"):
            data_of(path, classes=classes)


def test_real_targets(tmp_path):
    path = written(tmp_path, [INPUTS, SUMS])
    refused(path, 'target="real" (--target real)')
    _, target, about = read(path, target="real", label="last")
    assert np.allclose(target, (SUMS - SUMS.mean()) / SUMS.std())
    assert f"targets (y - {SUMS.mean():.4g}) / {SUMS.std():.4g}" in about
    refused(path, "not for use together", target="real", label="last", classes=(0, 1))
    np.savez(tmp_path / "same.npz", X=np.eye(3), y=np.full(3, 0.5))
    refused(tmp_path / "same.npz", "all the same", target="real")


def test_pools_and_sequences():
    X, y = pool(None)
    train, _, test, _ = images(None)
    assert np.array_equal(np.concatenate([test, train]), X) and len(test) == 359
    assert np.array_equal(np.sort(y), np.sort(prepared()[1]))
    two = sequence(Data(loss="logistic"), (0, 1, 0), 0.5, rng=5)
    assert np.array_equal(two.X[0], two.X[2]) and (two.X[0] != two.X[1]).any()
    assert two.loss == "logistic" and two.eta == 0.5 / CURVATURE["logistic"]
    for name, loss in LOSSES.items():
        slope = (loss.chi(1e-6, 1.0) - loss.chi(-1e-6, 1.0)) / 2e-6
        assert math.isclose(CURVATURE[name], slope, rel_tol=1e-6)
    again = sequence(Data(loss="logistic"), (0, 1, 0), 0.5, rng=5)
    assert np.array_equal(two.X, again.X)
    assert stream_of(None, X[:4], y[:4], 0.5, 2).eta == 0.5


def test_no_input_comes_twice_in_a_sequence(tmp_path):
    """Nor with the other sign, which for odd phi is the same input."""
    x = np.random.default_rng(0).standard_normal((5, 3))
    twice = np.concatenate([x, x, -x, -x])  # of mean 0
    np.savez(tmp_path / "a.npz", X=twice, y=np.arange(20) % 2)
    for seed in range(20):
        X = sequence(tmp_path / "a.npz", (0, 1, 2), 0.1, rng=seed).X
        assert np.abs(X @ X.T - 3 * np.eye(3)).max() < 3 - 1e-6


def test_a_file_is_read_once(tmp_path, monkeypatch):
    reads, real = [], data_module._read_table
    monkeypatch.setattr(
        data_module, "_read_table", lambda *a: reads.append(a) or real(*a)
    )
    path = written(tmp_path, [INPUTS, LABELS])
    for _ in range(3):
        assert len(prepared(path)[0]) == len(pool(path)[0]) == 60
    assert len(reads) == 1
    written(tmp_path, [INPUTS[:50], LABELS[:50]])  # a new file of that name
    assert len(prepared(path)[0]) == len(pool(path)[0]) == 50 and len(reads) == 2


def test_stream_of_a_file(tmp_path):
    path = written(tmp_path, [INPUTS, LABELS], "a,b,c,d,y")
    run = stream(6, 0.1, data=path, batch=2, rng=0, loss="logistic", drop="b")
    assert (len(run), run.d, run.batch, run.loss) == (6, 3, 2, "logistic")
    with pytest.raises(ValueError, match="unknown etta; allowed: label, classes"):
        stream(6, 0.1, data=path, etta=1)
    for change, message in (
        (dict(samples=0), "samples=0 must be an integer >= 1"),
        (dict(samples=10**13), "samples=10000000000000 needs .* GiB"),
        (dict(eta=-1), "eta=-1"),
        (dict(rng="a"), "rng='a' must be a seed"),
        (dict(data=3), "data=3 must be the path"),
        (dict(target="reel"), "target='reel' is unknown; allowed: classes, real"),
        (dict(drop=3), "drop=3 must be names of columns"),
        (dict(header="yes"), "header='yes' must be True, False or None"),
    ):
        with pytest.raises(ValueError, match=message):
            stream(**({"samples": 6, "eta": 0.1} | change))


# What is refused: files


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.txt", "1,2\n", "its name must end in .npz, .csv, .tsv, .xlsx, .parquet"),
        ("a.npz", "not a zip", "cannot use"),
        ("a.xlsx", "not a workbook", "cannot use"),
        ("a.parquet", "not a table", "cannot use"),
        ("a.csv", "", "cannot use"),
        ("a.csv", "a,b\n", "no rows"),
        ("a.csv", "1,2,0\n1,x,1\n", "column 2: 'x' in row 2 is not a finite number"),
        ("a.csv", "1,2,0\n\n1,1\n", "column 3: 'nan' in row 2 is not a finite number"),
        ("a.csv", "1,2\n\n1,1,3\n", "Expected 2 fields in line 3, saw 3"),
        ("a.csv", "a,b,y\n1,2,0,5\n1,2,3,5\n", "cannot use"),
        ("a.csv", "1,2,0\n1,nan,1\n", "column 2: 'nan' in row 2 is not a finite"),
        ("a.csv", "1,2,0\n1,inf,1\n", "column 2: 'inf' in row 2 is not a finite"),
        ("a.csv", "1,2,0.5\n1,3,1\n", "integer labels"),
        ("a.csv", "1\n2\n", "one column only"),
        ("a.csv", "1,2,0\n2,3,0\n", "one label only"),
        ("a.csv", "0,1,0\n2,3,1\n1,2,1\n", "equals the mean"),
        ("a.csv", "0,1,1\n2,3,1e19\n", "at most 2"),
        ("a.csv", "a,a,y\n1,2,0\n3,5,1\n", "the header has the name 'a' twice"),
    ],
)
def test_bad_files(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        prepared(tmp_path / name)


def test_more_bad_files(tmp_path):
    np.savez(tmp_path / "a.npz", images=np.ones((2, 2)))
    np.savez(tmp_path / "b.npz", X=np.ones((2, 2)), y=np.ones(3))
    np.savez(tmp_path / "c.npz", X=np.array([object()]), y=np.ones(1))
    np.savez(tmp_path / "d.npz", X=[[1.0, np.nan]] * 2, y=np.ones(2))
    for name, message in (
        ("a.npz", "expected X"),
        ("b.npz", "y has shape (3,)"),
        ("c.npz", "cannot use"),
        ("d.npz", "X must be finite"),
        ("e.npz", "no such file"),
        (".", "not a file"),
    ):
        refused(tmp_path / name, message)
        with pytest.raises(ValueError, match="cannot use"):
            pool(tmp_path / name)


def test_text_dates_and_sheets(tmp_path):
    """What is no number can be dropped; of two sheets none is chosen."""
    pytest.importorskip("openpyxl")
    pytest.importorskip("pyarrow")
    path = str(tmp_path / "a.csv")
    FRAME.assign(y="setosa").to_csv(path, index=False)
    refused(path, "column y: 'setosa' in row 1 is not a finite number")
    FRAME.assign(name="q")[["name", *"abcdy"]].to_csv(path, index=False)
    refused(path, "column name: 'q'", "--drop name")
    assert read(path, drop="name")[2].startswith(
        f"{path}: N = 60 samples, d = 4, label in column 6 (y)"
    )
    path = str(tmp_path / "a.parquet")
    FRAME.assign(a=pandas.Timestamp("2020-01-01")).to_parquet(path)
    refused(path, "column a: '2020-01-01")
    pytest.importorskip("openpyxl")
    path = str(tmp_path / "a.xlsx")
    with pandas.ExcelWriter(path) as book:
        FRAME.to_excel(book, sheet_name="one", index=False)
        FRAME.to_excel(book, sheet_name="two", index=False)
    refused(path, "it has the sheets one, two")


def test_an_archive_that_announces_more_than_there_is_memory(tmp_path):
    """Its header is read before anything is unpacked."""
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, shape in (("X.npy", (10**6, 10**7)), ("y.npy", (10**6,))):
            with archive.open(name, "w") as file:
                header = dict(descr="<f8", fortran_order=False, shape=shape)
                np.lib.format.write_array_header_1_0(file, header)
    refused(tmp_path / "a.npz", "what it holds needs 7.45e+04 GiB")


# What is refused: guesses


@pytest.mark.parametrize(
    "header",
    [
        "2016,2017,2018,2019,2020",  # years
        "2000,2004,2012,2016,2020",
        "10,11,12,13,14",
        "0,1,2,3,4",  # pandas' own
        "858,856,854,852,850",  # wavelengths
        "400.5,410.2,433,450,612",
        "400,250,433,950,1",
        "3,3.1,7,3.2,0",  # a first row of samples 3, 3, 7, 3, 0 that was a header once
    ],
)
def test_a_header_of_numbers(tmp_path, header):
    path = written(tmp_path, [COUNTS, LABELS], header)
    refused(path, "may be a header of numbers", "--header, --no-header")
    X, target, about = read(path, header=True)
    assert np.allclose(X, normalised(COUNTS)) and "N = 60" in about
    assert np.array_equal(target, 2 * LABELS - 1)
    assert len(load_data(data_of(path, header=False, label="last"))[0]) == 61


def test_a_header_of_numbers_and_names(tmp_path):
    """Years and a name are a question; 1, 2, .. and a name are a header."""
    path = written(tmp_path, [COUNTS, LABELS], "2016,2017,2018,2019,label")
    refused(path, "numbers and text (2016, 2017", "--header, --no-header")
    assert "N = 60" in read(path, header=True)[2]
    refused(path, "'label' in row 1 is not a finite number", header=False)
    assert "N = 60" in read(written(tmp_path, [COUNTS, LABELS], "1,2,3,4,label"))[2]
    refused(written(tmp_path, [COUNTS, LABELS], "1,,3,4,1"), "numbers and text")


def test_rows_of_numbers_are_no_header(tmp_path):
    """Of forty tables without a header none is refused."""
    for seed in range(40):
        rng = np.random.default_rng(seed)
        kinds = rng.standard_normal((40, 3)), rng.integers(0, 9, (40, 3))
        columns = [kinds[seed % 2], rng.standard_normal(40), np.arange(40) % 2]
        path = written(tmp_path, columns, name=f"{seed}.csv")
        assert len(load_data(data_of(path, label="last"))[0]) == 40


@pytest.mark.parametrize(
    "name",
    [
        "rownames",
        "X",
        "Unnamed: 0.1",
        "...1",
        "row_id",
        "RowNumber",
        "PassengerId",
        "No.",
    ]
    + ["#", "", "id", "Index"],
)
def test_row_numbers(tmp_path, name):
    """Refused by their values, wherever they are, with both options."""
    numbers = np.arange(1, 61)
    called = name or "Unnamed: 0"
    path = written(tmp_path, [numbers, INPUTS, LABELS], f"{name},a,b,c,d,y")
    refused(path, f"column {called} only numbers the rows", "--drop", "--keep")
    X, _, about = read(path, drop=called)
    assert np.allclose(X, normalised(INPUTS)) and "label in column 6 (y)" in about
    assert read(path, keep=[called])[0].shape == (60, 5)
    refused(path, "drop='q' is no column", f"the header has {called}, a, b", drop="q")
    refused(path, "keep='q' is no column", keep="q")


@pytest.mark.parametrize(
    "numbers", [np.arange(60), np.arange(1, 61), np.arange(60)[::-1]]
)
@pytest.mark.parametrize("at", [0, 2, 4, 5])
@pytest.mark.parametrize("header", [False, True])
def test_row_numbers_anywhere(tmp_path, numbers, at, header):
    columns = np.insert(np.column_stack([INPUTS, LABELS]).T, at, numbers, axis=0)
    names = np.insert(list("abcdy"), at, "n")
    path = written(tmp_path, columns, ",".join(names) if header else None)
    called = "n" if header else str(at + 1)
    refused(path, f"column {called} only numbers the rows")
    X, target, _ = read(path, drop=called)
    assert np.allclose(X, normalised(INPUTS))
    assert np.array_equal(target, 2 * LABELS - 1)
    np.savez(tmp_path / "a.npz", X=columns.T, y=LABELS)
    refused(tmp_path / "a.npz", f"column {at + 1} only numbers the rows")
    assert read(tmp_path / "a.npz", drop=str(at + 1))[0].shape == (60, 5)


def test_row_numbers_by_name(tmp_path):
    """Of a part of a table they do not count, and are refused all the same."""
    numbers = np.sort(np.random.default_rng(0).choice(1000, 60, replace=False))
    for name in (
        "rownames",
        "id",
        "Unnamed: 0",
        "row_id",
        "PassengerId",
        "customer id",
    ):
        path = written(tmp_path, [INPUTS, numbers, LABELS], f"a,b,c,d,{name},y")
        refused(path, f"column {name} only numbers the rows")
    for name in ("X", "acid", "grid", "width", "rowing", "pyramid"):
        path = written(tmp_path, [INPUTS, numbers, LABELS], f"a,b,c,d,{name},y")
        assert read(path)[0].shape == (60, 5), name


@pytest.mark.parametrize(
    "header", ["y,a,b,c,d", "Label,a,b,c,d", "price,a,b,c,d", None]
)
def test_a_real_target_is_not_guessed(tmp_path, header):
    path = written(tmp_path, [SUMS, INPUTS], header)
    refused(path, 'target="real" has to be told where y is', "--label", target="real")
    X, target, _ = read(path, target="real", label="first")
    assert np.allclose(target, (SUMS - SUMS.mean()) / SUMS.std())
    path = written(tmp_path, [INPUTS, SUMS], "a,b,c,d,target")
    assert np.allclose(read(path, target="real")[1], target)


def test_a_last_column_of_counts_is_no_label(tmp_path):
    counts = np.random.default_rng(0).integers(0, 10**6, 60)
    path = written(tmp_path, [INPUTS, counts])
    refused(path, "y may be in column 5, which holds", '"real" that it is not a class')
    assert read(path, label="last", target="real")[0].shape == (60, 4)


def test_a_label_that_numbers_the_rows_is_a_label(tmp_path):
    """Where it is asked for: a time, say."""
    path = written(tmp_path, [np.arange(60), INPUTS], "id,a,b,c,d")
    _, target, _ = read(path, label="id", target="real")
    assert np.allclose(np.diff(target, 2), 0) and target[1] > target[0]


@pytest.mark.parametrize("first", [False, True])
def test_one_hot_labels(tmp_path, first):
    """The others would tell it; they are dropped, or kept by name."""
    hot = np.eye(3, dtype=int)[np.random.default_rng(0).integers(0, 3, 60)]
    names = ["setosa", "versicolor", "virginica"]
    columns = [hot, INPUTS] if first else [INPUTS, hot]
    header = [*names, *"abcd"] if first else [*"abcd", *names]
    path = written(tmp_path, columns, ",".join(header))
    if not first:
        refused(path, "are one label, one-hot", *names, "--drop versicolor")
    for i, label in enumerate(names):
        others = [name for name in names if name != label]
        refused(path, "are one label, one-hot", label=label)
        X, target, _ = read(path, label=label, drop=others)
        assert np.allclose(X, normalised(INPUTS))
        assert np.array_equal(target, 2 * hot[:, i] - 1)
        assert read(path, label=label, keep=others)[0].shape == (60, 6)
    np.savez(tmp_path / "a.npz", X=INPUTS, y=hot)
    refused(tmp_path / "a.npz", "y has shape (60, 3)")


def test_options_that_a_file_has_no_use_for(tmp_path):
    pytest.importorskip("pyarrow")
    pytest.importorskip("openpyxl")
    np.savez(tmp_path / "a.npz", X=INPUTS, y=LABELS)
    refused(tmp_path / "a.npz", "label is for tables", label="last")
    refused(tmp_path / "a.npz", "header is for tables", header=True)
    refused(tmp_path / "a.npz", "every column is dropped", drop=list("1234"))
    refused(tmp_path / "a.npz", "drop='5' is no column", drop="5")
    FRAME.to_parquet(tmp_path / "a.parquet")
    refused(tmp_path / "a.parquet", "always has names", header=False)


def test_many_columns_are_not_all_listed(tmp_path):
    path = written(tmp_path, [np.random.default_rng(0).standard_normal((5, 99))])
    refused(
        path, "label='q' is no column; it has no header; allowed are 1, 2", label="q"
    )
    with pytest.raises(ValueError) as error:
        load_data(data_of(path, label="q"))
    assert len(str(error.value)) < 300


def test_fields_for_a_json_file():
    about = data_of("a.csv", drop="id", classes=[3, 5]).about()
    assert about["data"] == "a.csv" and about["drop"] == ("id",) and "path" not in about
    assert data_of(None).about()["data"] == "digits" and about["classes"] == (3, 5)


def test_data_on_the_command_line(tmp_path, capsys):
    """The first line says what was read; what has to be guessed is exit status 2."""
    header = "row_id,kind,a,b,c,d"
    path = written(tmp_path, [np.arange(60), 5 - 2 * LABELS, INPUTS], header)
    options = ["--data", path, "--claims", "gradients", "--workers", "1"]
    with pytest.raises(SystemExit, match="2"):
        main(options)
    assert "column row_id only numbers the rows" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main([*options, "--drop", "row_id"])
    assert "y may be in column d" in capsys.readouterr().err
    chosen = ["--drop", "row_id", "--label", "kind", "--classes", "3,5"]
    assert main([*options, *chosen]) == 0
    about = read(path, drop="row_id", label="kind", classes=(3, 5))[2]
    assert capsys.readouterr().out.startswith(about)
    bare = written(tmp_path, [COUNTS, LABELS], "10,11,12,13,14", "b.csv")
    options[1] = bare
    with pytest.raises(SystemExit, match="2"):
        main(options)
    assert "--header, --no-header" in capsys.readouterr().err
    assert main([*options, "--header"]) == 0


def test_train_and_test_images():
    X, y, X_test, y_test = images(None)
    assert (
        len(X) + len(X_test) == 1797
        and len(X_test) == len(y_test) == 359
        and len(X) == len(y)
    )
    both = {row.tobytes() for row in X} & {row.tobytes() for row in X_test}
    assert not both


def test_samples():
    """Of cases with the same seed of the samples, and different seeds, the samples are
    the same."""
    one, two = (sequence(None, (0, 1, 0), 0.5, rng=5) for _ in range(2))
    assert (
        (one.X == two.X).all()
        and (one.X[0] == one.X[2]).all()
        and (one.X[0] != one.X[1]).any()
    )
    given = dict(
        data=None, order=(0,), eta=0, particles=30, depths=(2,), systems=("decoupled",)
    )
    assert (sequence(None, (0, 1, 0), 0.5, rng=6).X != one.X).any()
    first, second = (
        coupling_case(**given, seed=seed, root=5)["decoupled"]["f"] for seed in (1, 2)
    )
    assert first[0] != second[0]
