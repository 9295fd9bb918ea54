"""What can be wrong with a medium; HTTP layers turn these into the errors the specification names."""

from __future__ import annotations


class MediaError(Exception):
    """Base class; `str(error)` is a fixed text that anybody may read."""


class NotFound(MediaError):
    """There is no such medium, or its server says so."""


class NotYetUploaded(MediaError):
    """It is announced, and its content has not come in the time the asker would wait."""


class TooLarge(MediaError):
    """Another server's medium is larger than we take, or one of ours than may be served this way."""


class Unavailable(MediaError):
    """The medium's server cannot be reached, or answered with something unusable."""


class NoThumbnail(MediaError):
    """There is no thumbnail of this."""


class NotYours(MediaError):
    """Somebody else announced the medium."""


class AlreadyUploaded(MediaError):
    """The medium has its content: it is never replaced."""


class QuotaReached(MediaError):
    """The user has uploaded as much as one may."""


class TooManyPending(MediaError):
    """The user has announced too much that has not come."""


class NoImage(MediaError):
    """What was to be kept is no image that we know."""


class NoPreview(MediaError):
    """There is no preview of the URL; the text never says why."""
