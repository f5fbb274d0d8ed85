"""Old names of `nfd_audit.data`, until the claims import from there."""

from nfd_audit.data import images, pool, sequence, stream_of  # noqa: F401
