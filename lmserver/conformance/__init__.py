"""`lmserver conformance`: the draft's requirements as a black-box list, against any implementation.

Nothing here shares a line with what it judges: hashes, redaction, canonical JSON, signatures and
the expectations themselves are written again from draft-ralston-mimi-linearized-matrix-04, with
another Ed25519. The suite is a small federation server (`persona`), in both roles: participant of
rooms whose hub is the server under test, hub of rooms its users are in (`our_room`). Checks are
functions in `checks_*`, registered with section, text, level and role (`model`); `runner` runs
them one after another and `report` prints what came out.
"""
