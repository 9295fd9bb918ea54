"""Simplified sliding sync (MSC4186): a client says which rooms it wants, and is told what changed there.

A request carries everything: windows into the user's rooms by recency (lists), single rooms
(subscriptions) and extensions. What a connection has been sent of each room is kept in the database
under its `pos`, so that an answer is the difference between that and now, whatever happened to the
answer before and to the server meanwhile.

`request` parses, `room_list` knows the user's rooms and cuts the windows, `connection` is what was
sent, `room_data` puts rooms together, `extensions` the rest, `service` waits.
"""
