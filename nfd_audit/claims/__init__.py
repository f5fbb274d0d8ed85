"""The claims, a file for each chapter.

A claim is one place: its measurement, what is read off it, predictions, tolerances,
sizes, statement, equation, note, reason and formulas stand together in its chapter.
"""

from nfd_audit.claim import Claim
from nfd_audit.claims import (
    coupling,
    depth,
    exponents,
    initialisation,
    one_update,
    training,
    two_layer,
)

__all__ = ["CLAIMS"]

CLAIMS: dict[str, Claim] = {
    claim.id: claim
    for claim in (
        initialisation.GRADIENTS,
        initialisation.GIA_WIDTH,
        initialisation.INIT_LIMIT,
        depth.DEPTH_RATE,
        coupling.NEAREST_COUPLING,
        depth.NONDEGENERACY,
        initialisation.GAUSSIAN_INIT,
        one_update.GAUSSIAN_UPDATE,
        one_update.EXACT_LAW,
        one_update.FIRST_STEP_KERNEL,
        coupling.FULL_COUPLING,
        exponents.BRANCH_EXPONENT,
        exponents.RESPONSE_SOURCE,
        coupling.COHERENCE,
        one_update.CORRELATION,
        coupling.ORTHOGONAL,
        two_layer.TWO_LAYER_EXPONENT,
        depth.COUPLED_LIMIT,
        depth.WIDTH_RATE,
        initialisation.POST_ACTIVATION,
        training.ALIGNMENT,
        two_layer.TWO_LAYER_COLLAPSE,
        training.TRANSFER,
    )
}
"""All claims by their names, in the order of the table."""
