"""How claims and verdicts are shown: the table on a terminal, plots, a page of HTML, formulas.

Results are the dicts that `nfd-audit --json` writes, one for each claim; a Claim is one of nfd_audit.
"""

import html
import inspect
import io
import os
import platform
import re
import shlex
import shutil
import sys
import textwrap
from datetime import datetime
from functools import partial
from typing import NamedTuple

import numpy as np

__all__ = ["coupling", "explain", "formulas", "lines", "listing", "mathml", "mathtext", "page", "rates"]

# ------------------------------------------------------------------------------------------------------------
# Of each claim: why one believes it, or why it fails, and its formulas in TeX


ABOUT = {
    "gradients": (
        "It is the chain rule; central differences of the loss see any factor, layer or sign that is wrong.",
        r"g_{l-1} = g_l + \phi'(h_{l-1}) \odot \frac{W_l^\top g_l}{\sqrt{nL}}, \quad g_L = v",
        r"\frac{\partial f}{\partial W_l} = \frac{g_l \phi(h_{l-1})^\top}{n \sqrt{nL}}, \quad "
        r"\frac{\partial f}{\partial U} = \frac{g_0 x^\top}{n \sqrt{d}}, \quad "
        r"\frac{\partial f}{\partial v} = \frac{h_L}{n}",
    ),
    "gia-width": (
        "W_l^T g_l is what an independent matrix would give, except along phi(h_{l-1}), the one direction of "
        "n that W_l has multiplied before: 1/(nL) of the mean square in each layer, 1/n over L layers.",
        r"\max_l \frac{1}{n} \mathrm{E} \| g_l - \tilde g_l \|^2 \le \frac{K}{n}, \quad "
        r"K \text{ independent of } n \text{ and } L",
    ),
    "init-limit": (
        "Of width n the kernels are means over n coordinates, so their squared errors are of order 1/n; "
        "L layers are steps of length 1/L of a differential equation.",
        r"d h_t = \sigma_t \, d B_t, \quad \sigma_t^2 = \mathrm{E} \phi(h_t)^2",
        r"d g_t = \phi'(h_t) \varsigma_t \, d \tilde B_t, \quad \varsigma_t^2 = \mathrm{E} g_t^2, \quad "
        r"t \text{ from } 1 \text{ to } 0",
    ),
    "depth-rate": (
        "Layers are Euler steps of a stochastic differential equation: of order 1/2, so O(1/L) in mean "
        "square, where something random multiplies the noise, as in g and through g in the drift of h; h^0 "
        "has no drift and additive noise, so order 1.",
        r"\max_l \mathrm{E} ( h_l^k - h_{t_l}^k )^2 = O(L^{-1}), \quad "
        r"\max_l \mathrm{E} ( g_l^k - g_{t_l}^k )^2 = O(L^{-1}), \quad t_l = l / L",
        r"\max_l \mathrm{E} ( h_l^0 - h_{t_l}^0 )^2 = O(L^{-2})",
    ),
    "nearest-coupling": (
        "Each layer's term has the factor 1/L^2; L of them add up to 1/L, whose square is 1/L^2.",
        r"c_l^{j \to k} = - \frac{\eta \chi_j}{L^2} C_{l-2}^{jk} \, "
        r"\mathrm{E} [ \phi'(h_{l-1}^j) \phi'(h_{l-1}^k) ] \, g_l^j, \quad "
        r"\mathrm{E} \left( \sum_l c_l^{j \to k} \right)^2 = O(L^{-2})",
    ),
    "nondegeneracy": (
        "Features of different inputs are linearly independent. At t = 1 Gamma is the Gram matrix of the "
        "readouts v^k, which one update moves by eta chi h: its smallest eigenvalue is of order (eta chi)^2.",
        r"\lambda_{\mathrm{min}}(C_t) \ge \delta, \quad \lambda_{\mathrm{min}}(\Gamma_t) \ge \delta > 0, "
        r"\quad \text{for all } t \text{ and passes}",
    ),
    "gaussian-init": (
        "A Gaussian matrix whose answer to a vector p is known is a fresh one on all orthogonal to p.",
        r"u_l = \frac{W_l p}{\sqrt{n}} = \frac{\| p \|}{\sqrt{n}} \xi_l, \quad p = \phi(h_{l-1})",
        r"z_l = \frac{W_l^\top g_l}{\sqrt{n}} = p \frac{\langle g_l, u_l \rangle}{\| p \|^2} + "
        r"\frac{\| g_l \|}{\sqrt{n}} \left( I - \frac{p p^\top}{\| p \|^2} \right) \zeta_l",
    ),
    "gaussian-update": (
        "The same, of a matrix of which one image and one image of its transpose are known.",
        r"u_l^1 = \rho u_l^0 + g \frac{\langle z_l^0, p_\perp \rangle}{\| g \|^2} + "
        r"\frac{\| p_\perp \|}{\sqrt{n}} \left( I - \frac{g g^\top}{\| g \|^2} \right) \xi^1",
        r"g = g_l^0, \quad u_l^k = \frac{W_l p_k}{\sqrt{n}}, \quad z_l^0 = \frac{W_l^\top g}{\sqrt{n}}, "
        r"\quad \rho = \frac{\langle p_0, p_1 \rangle}{\| p_0 \|^2}, \quad p_\perp = p_1 - \rho p_0",
    ),
    "exact-law": (
        "A Gaussian matrix may be drawn only where it is asked: M and N keep the answers W and W^T gave, "
        "Q_X and Q_P the directions they were asked for. Without N the backward weights are independent.",
        r"W x = M b + r \, W q, \quad x = Q_X b + r q, \quad q \perp Q_X, \quad \| q \| = 1",
        r"W q = Q_P N^\top q + (I - Q_P Q_P^\top) \xi \quad \text{(reused)}, \qquad "
        r"W q = \xi \quad \text{(decoupled)}",
    ),
    "first-step-kernel": (
        "One small step moves f by the squared gradient, Theta. In NFD the update's g meets a readout that "
        "is independent of its noise: E[v g_t] = E v^2 = 1 takes the place of E g_t^2 > 1.",
        r"\Theta = \mathrm{E} h_1^2 + \int_0^1 \mathrm{E} [ g_t^2 ] \, \mathrm{E} [ \phi(h_t)^2 ] \, dt + "
        r"\mathrm{E} [ g_0^2 ] \frac{\| x \|^2}{d}",
        r"\Theta_{\mathrm{NFD}} = \mathrm{E} h_1^2 + \int_0^1 \mathrm{E} [ \phi(h_t)^2 ] \, dt + "
        r"\frac{\| x \|^2}{d}",
    ),
    "full-coupling": (
        "It would follow if [17] were the whole coupling. But the gradients of all layers below, and of U, "
        "hold W_l^T g_l, so that their updates, multiplied by W_l, return a drift along g_l of order 1/L.",
        r"\text{claimed: } \mathrm{E} ( h_L - h_L^{\mathrm{NFD}} )^2 = O(L^{-2})",
        r"\text{but each layer adds } \frac{1}{L} A_l^{10} g_l^0, \quad "
        r"A_l^{10} = - \eta \chi_0 P_{l-1} r_{l-1}, \quad "
        r"P_l = \mathrm{E} [ \phi'(h_l^0) \phi'(h_l^1) ]",
        r"r_l = r_{l-1} + \frac{C_{l-1}^{01} + P_{l-1} r_{l-1}}{L}, \quad "
        r"r_0 = \frac{\langle x_0, x_1 \rangle}{d}",
    ),
    "branch-exponent": (
        "The response of each layer is proportional to L times the square of the branch scale; the mean "
        "square has the square of that.",
        r"h_l = h_{l-1} + s \frac{W_l \phi(h_{l-1})}{\sqrt{n}}, \quad s = L^{- \alpha}, \quad "
        r"\mathrm{E} ( h_L - h_L^{\mathrm{NFD}} )^2 \propto L^{2 - 4 \alpha}",
    ),
    "response-source": (
        "A is the derivative of h_{l-1} by W_l^T g_l, which U's update, every layer's drift and every "
        "layer's response hold; the share of any one layer is smaller by 1/L than that of all together.",
        r"A_l = \underset{\text{U}}{O(c)} + \underset{\text{layers below } l - 1}{O(c)} + "
        r"\underset{\text{drift of } l - 1}{O(c / L)} + \underset{\text{response of } l - 1}{O(c^2 / L)}, "
        r"\quad c = L s^2 = L^{1 - 2 \alpha}",
    ),
    "coherence": (
        "The signs leave the size of each layer's response as it is, but then the responses of the layers "
        "are added with these signs.",
        r"\tilde W_l = \varepsilon_l W_l, \quad \varepsilon_l = \pm 1, \quad "
        r"\mathrm{E} \left( \frac{1}{L} \sum_l A_l^{10} g_l^0 \right)^2 \propto "
        r"L^0 \text{ (equal)}, \; L^{-1} \text{ (random)}, \; L^{-2} \text{ (alternating)}",
    ),
    "correlation": (
        "Backward weights of correlation rho let the true and the used gradient have the kernel Gamma^rho, "
        "a polynomial in rho with positive coefficients: convex, so 1/2 goes less than half of the way.",
        r"\Theta_\rho = \mathrm{E} h_L^2 + \frac{1}{L} \sum_l \Gamma_l^\rho \, \mathrm{E} \phi(h_{l-1})^2 + "
        r"\Gamma_0^\rho \frac{\| x \|^2}{d}, \quad \Theta_0 = \Theta_{\mathrm{NFD}}, \quad \Theta_1 = \Theta",
        r"\Gamma_{l-1}^\rho = \left( 1 + \rho s^2 \, \mathrm{E} \phi'(h_{l-1})^2 \right) \Gamma_l^\rho, "
        r"\quad \cos(\text{update}, - \text{gradient}) = \frac{\Theta_\rho}{\Theta}",
    ),
    "orthogonal": (
        "The response A starts from the inputs' product, which is 0, and odd phi keep it there; B starts "
        "from the readout v, which all inputs share.",
        r"\langle x_0, x_1 \rangle = 0, \; \phi \text{ odd: } \quad A = 0, \; h = h^{\mathrm{NFD}}; \quad "
        r"B \ne 0, \; \mathrm{E} ( g - g^{\mathrm{NFD}} )^2 \propto L^0",
    ),
    "two-layer-exponent": (
        "The update of W1 passes through W2 of the same block; this term has no factor of the branch scale.",
        r"r_l = r_{l-1} + \frac{1}{L} ( C_l^x + C_{l-1}^h P_l^x + c \, P_{l-1}^h P_l^x r_{l-1} ), \quad "
        r"r_l^{\mathrm{NFD}} = r_{l-1}^{\mathrm{NFD}} + \frac{1}{L} C_l^x, "
        r"\quad c = L s^2 = L^{1 - 2 \alpha}",
    ),
    "coupled-limit": (
        "With the responses A and B of dynamical mean-field theory nothing of the network is left out; depth "
        "and width then act as in the decoupled system.",
        r"d h_t^k = d B_t^k + \sum_{j<k} ( A_t^{kj} - \eta \chi_j C_t^{jk} ) g_t^j \, dt",
        r"d g_t^k = \phi'(h_t^k) \left( d \tilde B_t^k + \sum_{j \le k} B_t^{kj} \phi(h_t^j) \, dt - "
        r"\eta \sum_{j<k} \chi_j \Gamma_t^{jk} \phi(h_t^j) \, dt \right)",
    ),
    "width-rate": (
        "Outputs and kernels are means over n coordinates that depend on each other through such means only.",
        r"\mathrm{E} ( f_k(n) - f_k(\infty) )^2 = O(n^{-1}), \quad "
        r"\mathrm{E} ( C_l^{jk}(n) - C_l^{jk}(\infty) )^2 = O(n^{-1}), \quad "
        r"\mathrm{E} ( \Gamma_l^{jk}(n) - \Gamma_l^{jk}(\infty) )^2 = O(n^{-1})",
    ),
    "post-activation": (
        "ReLU after the matrix adds something positive in every layer, of order 1/sqrt(L), and L of them.",
        r"h_l = h_{l-1} + \frac{1}{\sqrt{L}} \phi \left( \frac{W_l h_{l-1}}{\sqrt{n}} \right), \quad "
        r"\mathrm{E} h_l \ge \left( 1 + \frac{1}{\sqrt{2 \pi L}} \right) \mathrm{E} h_{l-1}",
    ),
    "alignment": (
        "It would follow if the coupling vanished with depth.",
        r"\text{from [28]: } | \ell_{\text{standard}} - \ell_{\text{decoupled}} | = O(L^{-1}), \quad "
        r"\ell \text{ the training losses}",
    ),
    "two-layer-collapse": (
        "The gradient that reaches x_l is of order L^(-1/2), and so is what W1's own update changes in x_l, "
        "which is of order 1 itself; a rate larger by L^(1/2) makes up for it.",
        r"x_l = \frac{W_l^{(1)} \phi(h_{l-1})}{\sqrt{n}}, \quad "
        r"h_l = h_{l-1} + \frac{W_l^{(2)} \phi(x_l)}{\sqrt{n L}}, \quad W_l^{(1)} \text{ at rate } L^b \eta",
        r"\text{own update of } x_l \text{, mean square} \propto L^{2 b - 1}, \quad "
        r"\text{part of } f_1 \propto L^b",
    ),
    "transfer": (
        "Where the training dynamics have a limit in depth, so has the best learning rate. With b = 1/2 "
        "the rate of W1 grows with the depth, and with reused weights its updates add up "
        "(two-layer-collapse), so a smaller eta is best; with decoupled weights too, if less so.",
        r"\text{claimed: } \eta^* (L) = \mathrm{arg min}_\eta \, \ell(\eta, L) \propto L^0",
    ),
}


def why(id):
    return ABOUT[id][0] if id in ABOUT else ""


def formulas(id):
    """Those of a claim, in TeX."""
    return ABOUT[id][1:] if id in ABOUT else ()


NAMES = (
    "alpha delta varepsilon zeta eta lambda xi pi rho sigma varsigma phi chi Gamma Theta ell infty perp top"
)
LETTERS = {f"\\{name}": letter for name, letter in zip(NAMES.split(), "αδεζηλξπρσςφχΓΘℓ∞⊥⊤", strict=True)}
SIGNS = {
    r"\odot": "⊙", r"\partial": "∂", r"\le": "≤", r"\ge": "≥", r"\ne": "≠", r"\pm": "±", r"\propto": "∝",
    r"\to": "→", r"\sum": "∑", r"\int": "∫", r"\max": "max", r"\cos": "cos", r"\|": "‖", r"\langle": "⟨",
    r"\rangle": "⟩", "-": "−", "*": "*",
}  # fmt: skip
NBSP = "\u00a0"
SPACES = {r"\,": 0.17, r"\;": 0.28, r"\quad": 1, r"\qquad": 2}
WORDS = re.compile(r"\\(text|mathrm)\{([^}]*)\}")
TOKEN = re.compile(r"\\(?:text|mathrm)\{[^}]*\}|\\[A-Za-z]+|\\.|\d+|\S")
FENCES = "(", ")", "[", "]", "|", r"\|", r"\langle", r"\rangle"


def mathml(tex):
    """The <math> element of a formula: of TeX what ABOUT needs. ValueError for anything else."""
    tokens = TOKEN.findall(tex)
    return f'<math display="block" alttext="{html.escape(tex)}">{_row(tokens, None)}</math>'


def _row(tokens, end):
    """The elements up to the token `end`, which is taken too; tokens : a list that gets shorter."""
    out, large = [], False
    while tokens and tokens[0] != end:
        if tokens[0] in ("^", "_", "'"):
            out.append(_scripts(out.pop(), tokens, large))
            continue
        large = tokens[0] in (r"\sum", r"\max")
        sign = tokens[0] == "-" and (not out or out[-1].startswith(("<mo", "<mspace")))
        out.append(_atom(tokens).replace("<mo>", '<mo form="prefix">') if sign else _atom(tokens))
    if end is not None and not tokens:
        raise ValueError(f"a formula has no {end}")
    del tokens[:1]
    return f"<mrow>{''.join(out)}</mrow>"


def _scripts(base, tokens, large):
    """An element with what is below and above it."""
    below, above = "", ""
    while tokens and tokens[0] in ("^", "_", "'"):
        kind = tokens.pop(0)
        if kind == "_":
            below = _atom(tokens)
        else:
            above += "<mo>′</mo>" if kind == "'" else _atom(tokens)
    names = ("under", "over") if large else ("sub", "sup")
    kind = "".join(name for name, script in zip(names, (below, above)) if script)
    return f"<m{kind}>{base}{''.join(f'<mrow>{s}</mrow>' for s in (below, above) if s)}</m{kind}>"


def _atom(tokens):
    """The next element."""
    token = tokens.pop(0)
    if words := WORDS.fullmatch(token):
        tag = "mtext" if words[1] == "text" else 'mi mathvariant="normal"'
        return f"<{tag}>{html.escape(words[2]).replace(' ', NBSP)}</{tag.split()[0]}>"
    if token == "{":
        return _row(tokens, "}")
    if token == r"\frac":
        return f"<mfrac>{_atom(tokens)}{_atom(tokens)}</mfrac>"
    if token == r"\sqrt":
        return f"<msqrt>{_atom(tokens)}</msqrt>"
    if token == r"\tilde":
        return f'<mover accent="true">{_atom(tokens)}<mo stretchy="false">~</mo></mover>'
    if token == r"\underset":
        under = _atom(tokens)
        return f"<munder>{_atom(tokens)}{under}</munder>"
    if token == r"\left":
        left, inside = tokens.pop(0), _row(tokens, r"\right")
        return f"<mrow><mo>{left}</mo>{inside}<mo>{tokens.pop(0)}</mo></mrow>"
    if token in SPACES:
        return f'<mspace width="{SPACES[token]}em"/>'
    if token in LETTERS or token.isalpha():
        letter = LETTERS.get(token, token)
        upright = ' mathvariant="normal"' * (letter in "ΓΘ∞⊥⊤")
        return f"<mi{upright}>{letter}</mi>"
    if token.isdigit():
        return f"<mn>{token}</mn>"
    if token in SIGNS or token in "()[]|+=<>/,;:":
        fence = ' stretchy="false"' * (token in FENCES)
        return f"<mo{fence}>{html.escape(SIGNS.get(token, token))}</mo>"
    raise ValueError(f"{token!r} of a formula is unknown here")


GREEK = "Gamma", "Theta", "alpha", "eta", "chi", "rho"
PIECE = re.compile(r" [-=] |[A-Za-z]~|[A-Za-z]+(?:-[A-Za-z]+)*|'s|\.\.|\|(?:\^2)?|.")


def mathtext(label):
    """A quantity's label as Matplotlib and TeX write it: "|g - g~|^2, L = 4" with norm, tilde and exponent.

    Letters and Greek names are mathematics, other words are text.
    """
    out, bar = "", r"\|" if "|^2" in label else "|"
    for piece in PIECE.findall(re.sub(r"\b([A-Z])(\d)", r"\1_\2", label)):
        if piece.strip() in ("-", "="):
            out += piece.strip()
        elif piece[0] == "|":
            out += bar + piece[1:]
        elif piece in GREEK:
            out += f"\\{piece} "
        elif piece[-1] == "~":
            out += rf"\tilde{{{piece[0]}}}"
        elif len(piece) > 1 and piece != ".." or piece == "E":
            out += rf"\text{{{piece}}}"
        else:
            out += {" ": r"\ ", "..": r"\ldots "}.get(piece, piece)
    return f"${out}$"


# ------------------------------------------------------------------------------------------------------------
# In words


def surprises(results):
    """The claims whose verdict is not the expected one."""
    return [r["id"] for r in results if r["verdict"] not in (r["expected"], "not applicable")]


def last_line(results):
    """How many verdicts are the expected ones, and which are not."""
    strange, n = surprises(results), sum(r["verdict"] != "not applicable" for r in results)
    others = f"; {len(results) - n} not applicable" if n < len(results) else ""
    named = f"; not: {', '.join(strange)}" if strange else ""
    return f"{n - len(strange)} of {n} verdicts as expected{named}{others}."


def expectations(results):
    """Which verdicts are expected."""
    failing = ", ".join(r["id"] for r in results if r["expected"] != "holds")
    if not failing:
        return 'Expected: "holds".'
    others = '; "holds" for all others' * any(r["expected"] == "holds" for r in results)
    which = "claim that does" if failing.count(", ") == 0 else "claims that do"
    return f'Expected: "fails" for {failing}, the paper\'s {which} not hold{others}.'


SAID = {"holds": ("holds", "hold"), "fails": ("fails", "fail"), "error": 2 * ("could not be measured",)}


def found(results):
    """What was found, a list of sentences."""
    expected = {(r["verdict"], r["verdict"] == r["expected"]): [] for r in results}
    for r in results:
        expected[r["verdict"], r["verdict"] == r["expected"]].append(r["id"])
    sentences = []
    for (verdict, fine), ids in expected.items():
        as_expected = ", as expected" if fine else ", which was not expected"
        named = "" if (verdict, fine) == ("holds", True) else f": {', '.join(ids)}"
        one, many = SAID.get(verdict, (f"is {verdict}", f"are {verdict}"))
        which = one if len(ids) == 1 else many
        how = "" if verdict == "not applicable" or (verdict, fine) == ("holds", True) else as_expected
        sentences.append(f"{len(ids)} claim{'s' * (len(ids) > 1)} {which}{how}{named}.")
    return sentences


def status_line(results, number_moved=0):
    """The exit status of nfd-audit, and why."""
    by = {r["id"]: r for r in results}
    why = [f'{id}: "{by[id]["verdict"]}", not "{by[id]["expected"]}"' for id in surprises(results)]
    why += [f"{number_moved} of the baseline's numbers moved"] * (number_moved > 0)
    return f"Exit status {int(bool(why))}: {'; '.join(why) or 'every verdict is the expected one'}."


def meaning(rate):
    """What the verdict on a quantity means, with its numbers."""
    label, verdict = rate["label"], rate["verdict"]
    if "worst" in rate:
        number = sum(len(point["errors"]) for point in rate["points"])
        above = rate["prediction"].startswith(">")
        each = f"of {number} values of {label} {'all' if verdict == 'holds' else 'not all'} are"
        side, which = ("above", "smallest") if above else ("below", "largest")
        each = f"the one value of {label} is{' not' * (verdict != 'holds')}" if number == 1 else each
        worst = f": the {which} is {rate['worst']:.2g}" if number > 1 else f": it is {rate['worst']:.2g}"
        return f"{each} {side} {rate['predicted']:g}{worst}"
    what, predicted = ("mean", "value") if rate["slope"] is None else ("slope", "exponent")
    if not np.isfinite(rate["low"]):
        return f"{label} has no slope: some errors are 0 or not finite, or a best eta is at the edge"
    lies = {"holds": "lies wholly within", "fails": "lies wholly farther away than"}
    return (
        f"the 95% interval of the {what} of {label}, {interval(rate)}, "
        f"{lies.get(verdict, 'lies neither wholly within nor wholly outside')} {rate['tolerance']:g} "
        f"{'from' if verdict == 'fails' else 'of'} the predicted {predicted} {rate['predicted']:g}"
    )


def interval(rate):
    return f"[{rate['low']:.3f}, {rate['high']:.3f}]"


def reason(result):
    """Why a claim has its verdict: of the quantities that decide it the bounds, and the one of which it is
    the closest call."""
    rates = [rate for rate in result["rates"] if rate["verdict"] == result["verdict"]]
    if not rates:
        return result["note"]
    bounds = [rate for rate in rates if "worst" in rate]
    others = sorted((rate for rate in rates if "worst" not in rate), key=_margin)
    said = [meaning(rate) for rate in bounds + others[:1]]
    more = f" Of its {len(others)} intervals this is the one nearest to an edge." * (len(others) > 1)
    return f"{result['verdict']}: {'; '.join(said)}.{more}"


def _margin(rate):
    """How far an interval is from the edges of what is allowed, in tolerances; NaN comes first."""
    edges = rate["predicted"] + rate["tolerance"] * np.array([[-1], [1]])
    far = np.abs(edges - np.array([rate["low"], rate["high"]])).min() / rate["tolerance"]
    return np.nan_to_num(far, nan=-1)


# ------------------------------------------------------------------------------------------------------------
# On a terminal

COLUMNS = "claim", "equation", "quantity", "predicted", "measured", "95% interval", "verdict"
ROW = "{:18} {:18} {:32} {:>9} {:>9} {:>17}  {}"
HEADER = "\n".join([ROW.format(*COLUMNS), "-" * len(ROW.format(*COLUMNS))])
COLOURS = {"holds": 32, "fails": 31, "error": 31, "inconclusive": 33}


class Screen(NamedTuple):
    """Where text goes: by default a file or a pipe, in which nothing is wrapped or coloured."""

    width: int | None = None
    colour: bool = False

    @property
    def narrow(self):
        """Whether it is too narrow for the table."""
        return self.width is not None and self.width < len(HEADER.splitlines()[1])

    def wrap(self, text, indent="", hang=None):
        """The lines of a text; words joined by NBSP stay together."""
        if self.width is None:
            return [f"{indent}{text}".replace(NBSP, " ")]
        hang = indent if hang is None else hang
        how = dict(break_on_hyphens=False, initial_indent=indent, subsequent_indent=hang)
        return [line.replace(NBSP, " ") for line in textwrap.wrap(text, max(20, self.width), **how)]

    def paint(self, line, verdict):
        """A line that ends with a verdict."""
        if not self.colour or verdict not in COLOURS or not line.endswith(verdict):
            return line
        return f"{line[: -len(verdict)]}\033[{COLOURS[verdict]}m{verdict}\033[0m"


def screen(stream=None):
    """The Screen of stdout."""
    stream = stream or sys.stdout
    if not stream.isatty():
        return Screen()
    colour = not os.environ.get("NO_COLOR") and os.environ.get("TERM", "dumb") != "dumb"
    return Screen(shutil.get_terminal_size().columns, colour)


def cells_of(result, i):
    """The table's cells of the i-th rate of a claim."""
    head = ("", "") if i else (result["id"], result["equation"])
    if not result["rates"]:
        return *head, "", "", "", "", result["verdict"]
    rate = result["rates"][i]
    measured, between = f"{rate['worst']:.2g}" if "worst" in rate else "", ""
    if "worst" not in rate:
        measured = f"{rate['mean'] if rate['slope'] is None else rate['slope']:.3f}"
        between = interval(rate)
    return *head, rate["label"], rate["prediction"], measured, between, rate["verdict"]


def rows_of(results):
    """The table's cells of all claims."""
    return [cells_of(r, i) for r in results for i in range(max(1, len(r["rates"])))]


def lines(result, screen=Screen()):
    """The lines of one claim, one for each of its rates: the table's, or below each other where the screen is
    narrow."""
    for row in rows_of([result]):
        if screen.narrow:
            yield from _stacked(row, screen)
        else:
            yield screen.paint(ROW.format(*row).rstrip(), row[-1])
    if result["verdict"] == result["expected"] or not result["rates"]:
        if screen.narrow:
            yield from screen.wrap(" ".join(result["note"].split()), "    ")
        else:
            yield from (f"    {line}" for line in result["note"].splitlines())


def _stacked(row, screen):
    id, equation, label, predicted, measured, between, verdict = (cell.replace(" ", NBSP) for cell in row)
    if id:
        yield from screen.wrap(f"{id}, {equation}", hang="    ")
    between = f" {between}" if between else ""
    numbers = f"{label}: {measured}{between}, predicted {predicted}:" if label else ""
    *before, last = screen.wrap(f"{numbers} {verdict}".strip(), "  ", "    ")
    yield from before
    yield screen.paint(last, row[-1])


def listing(claims, screen=Screen()):
    """Of each claim the name, equation and expected verdict, and its statement."""
    for claim in claims:
        head = f"{claim.id:18} {claim.equation:20} expected: {claim.expected}"
        if screen.width is not None and screen.width < 50:
            head = ", ".join(
                [claim.id, claim.equation.replace(" ", NBSP), f"expected:{NBSP}{claim.expected}"]
            )
        yield from screen.wrap(head, hang="    ")
        yield from screen.wrap(claim.statement, "    ")


# ------------------------------------------------------------------------------------------------------------
# What a claim says and how it is measured: read off the Claim, its Experiments and Parts


def explain(claim, rounds, screen=Screen()):
    """The lines of --explain; rounds : a sentence about what intervals leave open."""
    yield from screen.wrap(f'{claim.id}, {claim.equation}: expected "{claim.expected}"', hang="    ")
    yield ""
    yield from screen.wrap(claim.statement)
    for text in (why(claim.id) and f"Why: {why(claim.id)}", " ".join(claim.note.split())):
        if text:
            yield ""
            yield from screen.wrap(text)
    for number, experiment in enumerate(claim.experiments, 1):
        yield ""
        yield from screen.wrap(f"Measurement {number}:")
        yield from screen.wrap(_summary(experiment.measure), "  ")
        for full, name in enumerate(("quick", "full")):
            plan = experiment.plan(full)
            times = f"{plan.repeat} repetition{'s' * (plan.repeat > 1)}"
            yield from screen.wrap(f"{name}: {times}{_arguments(plan.given)}", "  ", "    ")
        if experiment.over:
            yield from screen.wrap(
                f"each repetition with every {' and '.join(experiment.over)}", "  ", "    "
            )
        for part in experiment.parts:
            yield from screen.wrap(f"{part.label}, predicted {part.prediction}:", "  ", "    ")
            yield from screen.wrap(reading(part), "    ", "      ")
            yield from screen.wrap(f"{part.rule}.", "    ", "      ")
    yield ""
    if any(hasattr(part, "what") for experiment in claim.experiments for part in experiment.parts):
        yield from screen.wrap(rounds)
    yield from screen.wrap('The claim holds if all of its quantities do; one that "fails" refutes it.')
    cases = dict.fromkeys(experiment.measure for experiment in claim.experiments)
    code = ", ".join(f"{case.__module__}.{case.__name__}" for case in cases)
    yield from screen.wrap(f"code: {code}", hang="    ")


def _summary(function):
    """The first paragraph of a docstring, in one line."""
    return " ".join((inspect.getdoc(function) or "").split("\n\n")[0].split())


def _arguments(given):
    return "".join(f"; {name} = {_value(value)}" for name, value in given.items())


def _value(value):
    """An argument, in words."""
    if isinstance(value, tuple):
        return ", ".join(map(_value, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


QUANTITIES = {
    "h2": "E h_L^2", "square": "E h_L^2", "mean": "E h_L", "bound": "the bound of Prop 3.1", "none": "NFD",
    "nearest": "the closed form [17]", "full": "the whole coupling", "below": "the layers below l - 1",
    "drift": "the SGD drift of layer l - 1", "response": "the response of layer l - 1",
    "accumulated": "the coupling accumulated over the layers", "share": "one layer's share",
    "own update": "the mean square of what W1's own update adds to x_l", "0.0": "0", "0.5": "1/2",
    "part of f^1": "what the updates of all W1 together add to f^1, over eta chi",
}  # fmt: skip
"""What short names of results and couplings stand for."""

MEASURED = {
    "relative error": "The largest difference of an entry, over the largest entry.",
    "|g - g~|^2, L = 4": "The mean square, against the width.",
    "|g - g~|^2, L = 16": "The mean square, against the width.",
    "|g - g~|^2, L = 64": "The mean square, against the width.",
    "n |g - g~|^2": "Width times the mean square, against the depth.",
    "(kernels - limit)^2": "The squared error, against the width.",
    "|kernels - limit|": "The largest error, against the depth.",
    "residual of [7]": "The largest difference of the two sides.",
    "residual of [15]": "The largest difference of the two sides.",
    "p-value": "The smallest p-value of the Kolmogorov-Smirnov tests.",
    "distance, reused / none": "The largest distance of the laws with reused and with decoupled weights.",
    "network / Theta": "The change of f by one step of the network, over -eta chi_0 Theta.",
    "NFD / Theta_NFD": "The change of f by one step of NFD, over -eta chi_0 Theta_NFD.",
    "particles / exact": "The accumulated coupling of particles, over the exact one.",
    "half / Theta_rho": "The change of f by one step of particles with rho = 1/2, over -eta chi_0 Theta_rho.",
    "share of Theta - Theta_NFD": "(Theta_rho - Theta_NFD) / (Theta - Theta_NFD) at rho = 1/2, by "
    "quadrature: a formula at L = 16 against its limit, not a run. Below 1/2, as Theta_rho is convex.",
    "cos(update, gradient), linear": "By quadrature, against 2/3 of the closed form; not a run.",
    "cos(update, gradient), tanh": "By quadrature, against the number of docs/theory.md; not a run.",
    "(f_1 - NFD) / (limit - NFD)": "The mean f_1 of the networks, on that scale.",
}
"""What a quantity is that a measurement gives as it is, by its label."""


def reading(part):
    """What a Part takes of a result, in words."""
    return _words(part.read) if part.read else MEASURED[part.label]


def _words(read):
    """The docstring of the function that made `read`, with the arguments it was made with in their places."""
    name = read.__qualname__.split(".<locals>")[0]
    text = _summary(getattr(sys.modules.get(read.__module__), name, None) or read)
    for name, value in inspect.getclosurevars(read).nonlocals.items():
        if callable(value):
            words = _words(value)
            words = words[:1].lower() + words[1:]
        else:
            words = QUANTITIES.get(_value(value), _value(value))
        text = text.replace(f"{{{name}}}", words)
    return text.rstrip(".") or "a number that a function of its own reads off the measurement"


# ------------------------------------------------------------------------------------------------------------
# Plots

INK, FIT, PREDICTED = "#010203", "#0072b2", "#d55e00"
VERDICT_INK = {"holds": "#00694b", "fails": "#b3261e"}
OPEN_INK = "#7a5900"
MARKS = {"holds": "✓", "fails": "✗", "inconclusive": "?", "not applicable": "–", "error": "!"}


def plotted(result):
    """The rates of a claim that have a slope."""
    return [rate for rate in result["rates"] if rate["slope"] is not None and np.isfinite(rate["slope"])]


def verdict_words(verdict, expected):
    """A verdict, and whether it is what was expected if it is not "holds"."""
    if verdict == "fails":
        return f"fails ({'as' if expected == 'fails' else 'not'} expected)"
    return verdict


def draw(axes, rate, expected, legend):
    """A log-log panel: the mean errors, the fitted line and the predicted one."""
    against = rate["against"]
    sizes = np.array([point[against] for point in rate["points"]], float)
    errors = np.array([point["errors"] for point in rate["points"]])
    mean, spread = errors.mean(axis=1), errors.std(axis=1) / np.sqrt(errors.shape[1])
    middle = np.exp(np.log(sizes).mean())
    centre = np.exp(rate["intercept"]) * middle ** rate["slope"]
    how = dict(fmt="o", color=INK, markersize=4)
    axes.errorbar(sizes, mean, 2 * spread, label="measured, 2 std. errors" if legend else None, **how)
    for slope, line, colour, name in (
        (rate["slope"], "-", FIT, rf"fit ${against}^{{{rate['slope']:.3f}}}$  {interval(rate)}"),
        (rate["predicted"], "--", PREDICTED, rf"predicted ${against}^{{{rate['predicted']:g}}}$"),
    ):
        axes.loglog(sizes, centre * (sizes / middle) ** slope, line, color=colour, label=name)
    low, high = axes.get_ylim()
    if high < 10 * low:
        axes.set_ylim(np.sqrt(low * high / 10), np.sqrt(low * high * 10))
    axes.set_xticks(sizes, [f"{size:g}" for size in sizes])
    axes.set_yticks(*few_ticks(*axes.get_ylim()))
    axes.minorticks_off()
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel(dict(n="width $n$", L="depth $L$")[against], fontsize=9)
    axes.set_title(mathtext(rate["label"]), loc="left", fontsize=9)
    words = verdict_words(rate["verdict"], expected)
    colour = VERDICT_INK.get(rate["verdict"], OPEN_INK)
    axes.set_title(words, loc="right", fontsize=9, color=colour, fontweight="bold")
    axes.legend(fontsize=7, frameon=False)


def few_ticks(low, high):
    """Two to five ticks of a logarithmic axis, and their names: 1, 2, 5, 10, .. or powers of ten."""
    decades = np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)) + 1)
    factors = (1, 2, 5) if high < 100 * low else (1,)
    ticks = [factor * 10.0**k for k in decades for factor in factors if low <= factor * 10.0**k <= high]
    ticks = ticks[:: 1 + (len(ticks) - 1) // 5]
    return ticks, [_tick_name(tick) for tick in ticks]


def _tick_name(tick):
    if 1e-2 <= tick < 1e4:
        return f"{tick:g}"
    digit, exponent = f"{tick:.0e}".split("e")
    return "$" + rf"{digit} \times " * (digit != "1") + f"10^{{{int(exponent)}}}$"


def rates(results, columns=4):
    """A matplotlib Figure of an Audit, or of the dicts of some claims: one panel for each rate, claim after
    claim."""
    from matplotlib.figure import Figure

    results = getattr(results, "results", results)
    shelves = []  # rows of claims that fit beside each other
    for result in filter(plotted, results):
        number = min(columns, len(plotted(result)))
        if not shelves or sum(n for n, _ in shelves[-1]) + number > columns:
            shelves.append([])
        shelves[-1].append((number, result))
    columns = max((sum(n for n, _ in shelf) for shelf in shelves), default=1)
    heights = [max(-(-len(plotted(result)) // n) for n, result in shelf) for shelf in shelves]
    figure = Figure(figsize=(3.6 * columns, 3.3 * sum(heights)), layout="constrained")
    rows = figure.subfigures(len(shelves), 1, height_ratios=heights, squeeze=False)[:, 0]
    for row, shelf in zip(rows, shelves):
        free = columns - sum(n for n, _ in shelf)
        widths = [n for n, _ in shelf] + [free] * (free > 0)
        for place, (number, result) in zip(
            row.subfigures(1, len(widths), width_ratios=widths, squeeze=False)[0], shelf
        ):
            place.suptitle(
                f"{result['id']}, {result['equation']}", x=0.01, ha="left", fontsize=11, fontweight="bold"
            )
            rates = plotted(result)
            for i, rate in enumerate(rates):
                axes = place.add_subplot(-(-len(rates) // number), number, i + 1)
                draw(axes, rate, result["expected"], i == 0)
    return inline(figure)


COUPLING = "full-coupling", "nearest-coupling", "branch-exponent"


def coupling(results):
    """The same of the claims about the coupling of the forward and the backward pass."""
    return rates([result for result in getattr(results, "results", results) if result["id"] in COUPLING])


def encoded(figure, form="png"):
    """The bytes of a Figure's file."""
    file = io.BytesIO()
    figure.savefig(file, format=form, dpi=150)
    return file.getvalue()


def inline(figure):
    """The Figure, as a notebook shows it."""
    figure._repr_png_ = partial(encoded, figure)  # what IPython asks for
    return figure


STYLES = {INK: "currentColor", FIT: "var(--fit)", PREDICTED: "var(--predicted)", OPEN_INK: "var(--open)"} | {
    colour: f"var(--{verdict})" for verdict, colour in VERDICT_INK.items()
}


def svg(result, rate, name):
    """The <svg> element of a panel; name : no other one of the page has it."""
    import matplotlib
    from matplotlib.figure import Figure

    keys = "text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"
    out = io.StringIO()
    with matplotlib.rc_context(dict.fromkeys(keys, INK) | {"svg.hashsalt": name}):
        figure = Figure(figsize=(3.4, 2.6))
        draw(figure.add_axes((0.17, 0.17, 0.81, 0.73)), rate, result["expected"], True)
        none = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(out, format="svg", transparent=True, metadata=none)
    text = out.getvalue()
    text = re.sub(r"<defs>\s*<style.*?</defs>", "", text[text.index("<svg") :], count=1, flags=re.DOTALL)
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)
    for colour, style in STYLES.items():
        text = text.replace(colour, style)
    said = f"Log-log plot of {rate['label']} against {rate['against']}: {meaning(rate)}."
    return text.replace("<svg ", f'<svg role="img" aria-label="{html.escape(said)}" ', 1)


# ------------------------------------------------------------------------------------------------------------
# HTML

RULE = (
    'A verdict is "holds" if the whole interval of the slope or mean lies within a tolerance of the '
    'predicted value, "fails" if none of it does, and "inconclusive" otherwise; a bound holds if all values '
    "keep it. A claim has the worst verdict of its quantities. The intervals are 95% for all looks together."
)

CSS = """
:root { color-scheme: light dark; --ink: #1c1c1c; --soft: #565656; --line: #d5d5d5; --paper: #fdfdfc;
  --card: #f4f4f1; --link: #0b57a4; --fit: #0072b2; --predicted: #b84a00; --holds: #00694b;
  --fails: #b3261e; --open: #7a5900; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e6e3; --soft: #a9a9a4; --line: #44443f; --paper: #171716; --card: #22221f;
    --link: #8ab8f0; --fit: #56b4e9; --predicted: #f0a030; --holds: #55c79a; --fails: #ff8a80;
    --open: #e8c04d; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 64rem; color: var(--ink);
  background: var(--paper); font: 1rem/1.55 system-ui, "Segoe UI", Roboto, "Noto Sans", sans-serif;
  overflow-wrap: break-word; }
p, li, dd { max-width: 44rem; }
a { color: var(--link); }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.3rem; margin: 0 0 .4rem; display: flex; flex-wrap: wrap; gap: .1rem .8rem;
  align-items: baseline; }
h2 small, .soft { color: var(--soft); font-weight: 400; }
h2 small { font-size: 1rem; }
section { border-top: 1px solid var(--line); margin-top: 2rem; padding-top: 1.2rem; }
.lead { font-size: 1.15rem; }
.verdict { font-weight: 600; white-space: nowrap; }
h2 .verdict { font-size: 1rem; }
.holds { color: var(--holds); } .fails, .error { color: var(--fails); } .inconclusive { color: var(--open); }
.formula, .scroll { overflow-x: auto; max-width: 100%; }
.formula { padding: .2rem 0; }
math { font-size: 1.15rem; font-family: "STIX Two Math", "Latin Modern Math", "Cambria Math", math; }
math[display="block"] { margin: .6rem 0; text-align: left; width: max-content; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--soft); padding: .3rem 0; }
th, td { text-align: left; padding: .25rem .9rem .25rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top; white-space: nowrap; }
th { font-weight: 600; }
td.wide { white-space: normal; min-width: 18rem; }
@media (max-width: 40rem) { .wide { display: none; } }
details { margin: .8rem 0; }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 18.5rem), 1fr)); gap: .8rem;
  margin: 1rem 0; }
figure { margin: 0; background: var(--card); border-radius: .4rem; padding: .4rem; }
figure svg { display: block; width: 100%; height: auto; max-width: 30rem; }
summary { cursor: pointer; color: var(--link); }
code, pre { font: .9em/1.5 ui-monospace, "DejaVu Sans Mono", Consolas, monospace; }
pre { background: var(--card); padding: .6rem .8rem; border-radius: .4rem; white-space: pre-wrap;
  overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1.2rem; }
dt { color: var(--soft); } dd { margin: 0; min-width: 0; overflow-wrap: anywhere; }
@media (max-width: 30rem) { dl { grid-template-columns: 1fr; } dd { margin-bottom: .4rem; } }
@media print { section { break-inside: avoid; } }
"""


def table(head, rows, caption=""):
    """A <table> of texts."""
    head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in head)
    body = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    caption = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def verdict_mark(result):
    """A <span>: mark, verdict, and whether it was expected."""
    verdict = result["verdict"]
    words = verdict_words(verdict, result["expected"])
    mark = f'<span aria-hidden="true">{MARKS.get(verdict, "")}</span>'
    return f'<span class="verdict {verdict.replace(" ", "-")}">{mark} {html.escape(words)}</span>'


def paragraphs(*texts, name=""):
    name = f' class="{name}"' if name else ""
    return "".join(f"<p{name}>{html.escape(text)}</p>" for text in texts if text)


def box(content, label, kind="scroll"):
    """What is too wide for the page scrolls inside its own box."""
    label = html.escape(label)
    return f'<div class="{kind}" tabindex="0" role="region" aria-label="{label}">{content}</div>'


def numbers_table(result):
    """The quantities of a claim, as a table."""
    rows = [
        [label, predicted, "" if rate["tolerance"] is None else f"± {rate['tolerance']:g}", *rest]
        for (_, _, label, predicted, *rest), rate in zip(rows_of([result]), result["rates"])
    ]
    return table([*COLUMNS[2:4], "tolerance", *COLUMNS[4:]], rows)


def points_table(rate):
    """The points of a quantity, as a table."""
    rows = []
    for point in rate["points"]:
        values = np.array(point["errors"], float)
        error = f"{values.std() / np.sqrt(len(values)):.2g}" if len(values) > 1 else ""
        mean, low, high = (f"{number:.4g}" for number in (point["mean"], values.min(), values.max()))
        rows.append([str(point[rate["against"]]), str(len(values)), mean, error, low, high])
    head = rate["against"], "repetitions", "mean", "standard error", "smallest", "largest"
    return box(table(head, rows, rate["label"]), f"points of {rate['label']}")


def anchor(id):
    """The place of a claim on the page."""
    return re.sub(r"\W", "-", id)


def claim_section(result, about):
    """The <section> of one claim."""
    id, place = result["id"], anchor(result["id"])
    out = [f'<section id="{place}" aria-labelledby="{place}-title"><h2 id="{place}-title">{html.escape(id)} ']
    out.append(f"<small>{html.escape(result['equation'])}</small> {verdict_mark(result)}</h2>")
    out.append(paragraphs(result["statement"]))
    if formulas(id):
        out.append(box("".join(map(mathml, formulas(id))), f"formulas of {id}", "formula"))
    out.append(paragraphs(why(id) and f"Why: {why(id)}", name="soft"))
    said = reason(result)
    out.append(paragraphs(said[0].upper() + said[1:] if said else "", result["note"] * bool(result["rates"])))
    if result["rates"]:
        out.append(box(numbers_table(result), f"numbers of {id}"))
    figures = [f"<figure>{svg(result, r, f'{place}-{i}')}</figure>" for i, r in enumerate(plotted(result))]
    out += [f'<div class="plots">{"".join(figures)}</div>'] * bool(figures)
    if result["rates"]:
        points = "".join(map(points_table, result["rates"]))
        out.append(f"<details><summary>The points as a table</summary>{points}</details>")
    out.append(f"<p><code>{html.escape(command_line(about, [id]))}</code></p></section>")
    return "".join(out)


def command_line(about, ids=None):
    """The command that gives these results; ids : of the claims, None for all."""
    words = ["nfd-audit"]
    words += ["--claims", ",".join(ids)] if ids else []
    words += ["--full"] * about["full"] + ["--seed", str(about["seed"])]
    usual = dict(data="digits", label=None, target="classes", loss="squared", phi="tanh", network=None)
    for key, value in usual.items():
        words += [f"--{key}", about[key]] if about[key] != value else []
    if about["classes"]:
        words.append("--classes=" + ",".join(map(str, about["classes"])))
    return shlex.join(words)


def facts(about):
    """What the numbers depend on: [(name, text)]."""
    data = "the 1,797 handwritten digits of UCI" if about["data"] == "digits" else about["data"]
    chosen = {key: about[key] for key in ("label", "classes", "target", "phi", "network") if about[key]}
    return [
        ("Sizes", "full" if about["full"] else "quick"),
        ("Seed", str(about["seed"])),
        ("Data", data),
        ("Loss", about["loss"]),
        *((key.capitalize(), str(value)) for key, value in chosen.items()),
        ("Versions", ", ".join(f"{name} {version}" for name, version in about["versions"].items())),
        ("Machine", f"{platform.platform()}, {os.cpu_count()} cores"),
        ("Date", datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")),
    ]


BARS = "Bars in the plots are those of the points; a slope is fitted within each repetition."

SYMBOLS = (
    (r"n, L, d", "width, depth, dimension of the inputs x; t = l / L is depth as time"),
    (
        r"U, W_l, v",
        "weights of the input, of layer l, of the readout; W~ those of the backward pass, where not W",
    ),
    (
        r"W_l^{(1)}, W_l^{(2)}",
        "of two-layer blocks, whose first matrix learns at L^b times the rate; x_l is between them",
    ),
    (r"\phi, s", "the activation; the scale of a branch, L^-alpha, in the paper L^(-1/2)"),
    (
        r"h_l^k, g_l^k",
        "features of layer l in pass k, n numbers; n times the derivative of the output in them",
    ),
    (r"f_k, \chi_k", "output; derivative of the loss at the output, f_k - y_k for squared loss"),
    (r"\eta", "the learning rate: every parameter moves at eta n"),
    (r"C_l^{jk}, \Gamma_l^{jk}", "kernels: means over the width of phi(h^j) phi(h^k) and of g^j g^k"),
    (r"A, B", "responses of the forward and of the backward pass: what a matrix returns of its own answers"),
    (r"C^x, P^x, C^h, P^h", "means of phi phi and of phi' phi' at x_l and at h_l"),
    (
        r"Q_X, M, Q_P, N",
        "what a matrix has been asked, orthonormal, with its answers M; its transpose, with N",
    ),
    (
        r"\text{NFD}",
        "Neural Feature Dynamics, the paper's limit, with backward weights independent of the forward ones",
    ),
)
"""What the letters on the page are, in words."""


def page(results, about, command):
    """The text of a page that needs nothing else: what `nfd-audit --html` writes."""
    begun = "Interrupted: only the claims that were decided until then. " * bool(about.get("interrupted"))
    rows = []
    for r in results:
        link = f'<a href="#{anchor(r["id"])}">{html.escape(r["id"])}</a>'
        each = link, verdict_mark(r), html.escape(r["equation"])
        cells = "".join(f"<td>{cell}</td>" for cell in each)
        rows.append(f'<tr>{cells}<td class="wide">{html.escape(r["statement"])}</td></tr>')
    head = "".join(f'<th scope="col">{name}</th>' for name in ("claim", "verdict", "equation"))
    head += '<th scope="col" class="wide">statement</th>'
    items = "".join(f"<dt>{key}</dt><dd>{html.escape(text)}</dd>" for key, text in facts(about))
    letters = "".join(f"<dt>{mathml(tex)}</dt><dd>{html.escape(text)}</dd>" for tex, text in SYMBOLS)
    title = "Audit of Neural Feature Dynamics"
    return f"""<!doctype html>
<html lang="en-GB"><head><meta charset="utf-8"/><title>{title}: {html.escape(last_line(results))}</title>
<meta name="viewport" content="width=device-width, initial-scale=1"/><style>{CSS}</style></head><body>
<header><h1>{title}</h1>
<p class="soft">Claims of <cite>Feature Learning Dynamics in Infinite-Depth Neural Networks</cite> (Yao, Wu,
Gao, <a href="https://arxiv.org/abs/2512.21075">arXiv 2512.21075</a>), and extensions [X], measured by
nfd-min.</p>
{paragraphs(begun + last_line(results), name="lead")}{paragraphs(" ".join(found(results)))}</header>
<main><section aria-labelledby="verdicts"><h2 id="verdicts">Verdicts</h2>
{box(f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>", "verdicts")}
{paragraphs(RULE, expectations(results), BARS, name="soft")}</section>
<section aria-labelledby="symbols"><h2 id="symbols">Symbols</h2><dl>{letters}</dl></section>
{"".join(claim_section(r, about) for r in results)}
<section aria-labelledby="made"><h2 id="made">How this page was made</h2>
<pre>{html.escape(command)}</pre><dl>{items}</dl></section></main></body></html>
"""
