"""What runs in the worker processes, and only there: decoders fed with what strangers made.

Nothing here is imported by the server, whose memory would grow by the libraries and whose process a
broken decoder would take along. `media/workers.py` starts `python -m lmserver.media.decoding.process`.
"""
