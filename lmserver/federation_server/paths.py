"""Where federation endpoints live: the draft's paths, and the unstable ones peers use today."""

from __future__ import annotations

from lmserver.protocol.room_versions import LM_02_ID

STABLE = "/_matrix/federation"
RECOVERY = "/_matrix/federation/unstable/org.lmserver"
UNSTABLE = f"/_matrix/federation/unstable/{LM_02_ID}"
