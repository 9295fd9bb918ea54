"""Notifications to phones: which events are worth one, and their way to the push gateways.

Rooms of users with pushers are followed by position. Looking at new events and queueing what they are worth
is one transaction, and what is queued goes when its gateway has taken it: a crash loses nothing, and
doubles at most what a gateway had taken and not yet answered.
"""
