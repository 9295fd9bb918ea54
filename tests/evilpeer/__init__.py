"""A hostile server with its own keys, for tests: peer, hub, and the arena they attack in.

Everything goes over HTTP between a whole lmserver (`Victim`) and servers that own real keys, serve
them, sign what they like and answer as a test wants. Names resolve to loopback ports through
`Network`; nothing of the victim is replaced but its DNS.
"""
