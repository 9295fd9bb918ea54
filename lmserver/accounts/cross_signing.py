"""Cross-signing of local users: their keys, and the signatures they publish (CS API §Cross-signing).

Every signature is checked before it is kept: a client that trusts a key because of a signature gets
it from its server, and one that is not valid would only look like an attack.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import orjson

from lmserver.accounts import published_keys
from lmserver.accounts.device_lists import DeviceLists, Reach
from lmserver.protocol import cross_signing, ids
from lmserver.protocol.canonical_json import JsonObject
from lmserver.protocol.cross_signing import (
    MASTER,
    SELF_SIGNING,
    USAGES,
    USER_SIGNING,
    BadKey,
    CrossSigningKey,
)
from lmserver.storage import cross_signing as storage
from lmserver.storage import e2e_keys
from lmserver.storage.cross_signing import KeySignature
from lmserver.storage.database import Connection, Database, Executor

RemoteMasters = Callable[[Sequence[str]], Awaitable[dict[str, JsonObject]]]
"""Master keys of users of other servers, as far as those tell."""

Keys = dict[str, CrossSigningKey]
"""Usage to key, of one user."""


class Unconfirmed(Exception):
    """The upload would replace a key: whoever asks has to prove again who they are."""


class Refused(Exception):
    """A key or a signature that cannot be taken: Matrix error code and text."""

    def __init__(self, errcode: str, reason: str) -> None:
        super().__init__(reason)
        self.errcode = errcode
        self.reason = reason


@dataclass(slots=True)
class _Signing:
    """One request to publish signatures: what was taken, and why other things were not."""

    user_id: str
    keys: Keys
    taken: list[KeySignature] = field(default_factory=list)
    failures: dict[str, dict[str, Refused]] = field(default_factory=dict)

    def key(self, usage: str) -> CrossSigningKey:
        key = self.keys.get(usage)
        if key is None:
            raise Refused("M_NOT_FOUND", f"There is no {usage} key to sign with")
        return key

    def take(self, target_user: str, target: str, obj: JsonObject, key_id: str) -> None:
        signature = cross_signing.signatures_of(obj, self.user_id)[key_id]
        self.taken.append(KeySignature(target_user, target, self.user_id, key_id, signature))


class CrossSigning:
    """Keys and signatures of local users, and who is told when they change."""

    def __init__(self, db: Database, device_lists: DeviceLists, remote_masters: RemoteMasters) -> None:
        self._db = db
        self._device_lists = device_lists
        self._remote_masters = remote_masters

    # -- keys -----------------------------------------------------------------------------------

    async def upload(self, user_id: str, keys: Sequence[CrossSigningKey], *, confirmed: bool) -> None:
        """Publish keys. Raises Refused, and Unconfirmed unless `confirmed` where the user has a master
        key and anything would change (MSC3967); the same keys again change nothing."""

        async def work(db: Connection) -> Reach | None:
            await storage.lock_user(db, user_id)
            known = await _keys_of(db, user_id)
            changed = {k.usage: k for k in keys if k.usage not in known or known[k.usage].public != k.public}
            if not changed:
                return None
            if MASTER in changed:
                changed = {key.usage: key for key in keys}  # those that stay are signed by another key now
            master = changed.get(MASTER) or known.get(MASTER)
            if master is None:
                raise Refused("M_MISSING_PARAM", "There is no master key")
            await self._check_names(db, user_id, changed)
            checked = [await self._checked(db, user_id, key, master) for key in changed.values()]
            if MASTER in known and not confirmed:
                raise Unconfirmed
            await self._replace(db, user_id, known, checked)
            return await self._record(db, user_id, told=set(changed) != {USER_SIGNING})

        self._device_lists.tell(await self._db.run(work))

    @staticmethod
    async def _check_names(db: Executor, user_id: str, keys: Keys) -> None:
        """A public key that is a device's ID would let a signature over the one pass for the other."""
        publics = [key.public for key in keys.values()]
        if len(set(publics)) < len(publics):
            raise Refused("M_FORBIDDEN", "Each key must be another one")
        if (await e2e_keys.device_keys(db, {user_id: publics})).get(user_id):
            raise Refused("M_FORBIDDEN", "A key has the name of a device")

    @staticmethod
    async def _checked(
        db: Executor, user_id: str, key: CrossSigningKey, master: CrossSigningKey
    ) -> CrossSigningKey:
        """The key with those of its signatures that count."""
        if key.usage != MASTER:
            if not cross_signing.signed_by(key.fields, user_id, master.key_id, master.verify_key):
                raise Refused("M_INVALID_SIGNATURE", f"The {key.usage} key is not signed by the master key")
            signature = cross_signing.signatures_of(key.fields, user_id)[master.key_id]
            return key.with_signatures({user_id: {master.key_id: signature}})
        found = cross_signing.signatures_of(key.fields, user_id)
        valid = await _valid_device_signatures(db, user_id, key.fields)
        kept = {key_id: text for key_id, text in found.items() if key_id in valid}
        return key.with_signatures({user_id: kept} if kept else {})

    @staticmethod
    async def _replace(db: Connection, user_id: str, known: Keys, keys: Sequence[CrossSigningKey]) -> None:
        """A new master key ends what the old one vouched for; a new key of any kind its signatures."""
        new = {key.usage for key in keys}
        gone = set(known) if MASTER in new else set(known) & new
        await storage.remove_signatures_by(db, user_id, [known[usage].key_id for usage in gone])
        if MASTER in new:
            await storage.remove_keys(db, user_id, [usage for usage in USAGES if usage not in new])
        if MASTER in gone:
            await storage.remove_signatures_on(db, user_id, [known[MASTER].public])
        for key in keys:
            await storage.put_key(db, user_id, key.usage, orjson.dumps(key.fields))

    async def _record(self, db: Connection, user_id: str, *, told: bool) -> Reach:
        """`told`: there is something others may see."""
        shown = await published_keys.cross_signing_keys(db, [user_id], None)
        keys = {usage: of_users[user_id] for usage, of_users in shown.items() if user_id in of_users}
        return await self._device_lists.record(db, user_id, cross_signing=keys if told else {})

    # -- signatures -----------------------------------------------------------------------------

    async def sign(
        self, user_id: str, wanted: Mapping[str, Mapping[str, JsonObject]]
    ) -> dict[str, dict[str, Refused]]:
        """Keep signatures by the user: user ID to device ID or public master key to the signed object.
        The answer says in the same shape what was not taken."""
        others = [user for user in wanted if user != user_id]
        masters = await self._masters(others)

        async def work(db: Connection) -> tuple[_Signing, Reach | None]:
            await storage.lock_user(db, user_id)
            signing = _Signing(user_id, await _keys_of(db, user_id))
            await _sign_own(db, signing, wanted.get(user_id, {}))
            for other in others:
                _sign_other(signing, other, wanted[other], masters.get(other))
            added = await storage.add_signatures(db, signing.taken) if signing.taken else []
            return signing, await self._record_signatures(db, signing, added)

        signing, reach = await self._db.run(work)
        self._device_lists.tell(reach)
        return signing.failures

    async def _masters(self, user_ids: Sequence[str]) -> dict[str, JsonObject]:
        here = await published_keys.cross_signing_keys(self._db, user_ids, None)
        found = dict(here[MASTER])
        elsewhere = [user_id for user_id in user_ids if user_id not in found]
        return found | (await self._remote_masters(elsewhere) if elsewhere else {})

    async def _record_signatures(
        self, db: Connection, signing: _Signing, added: Sequence[KeySignature]
    ) -> Reach | None:
        """Signatures over own keys are a change of the device list; those over others' concern nobody
        but the user's own devices."""
        if not added:
            return None
        user_id, master = signing.user_id, signing.keys.get(MASTER)
        own = {s.target_key for s in added if s.target_user_id == user_id}
        names = sorted(own - ({master.public} if master else set()))
        reach = Reach((user_id,), ())
        if names:
            devices = await published_keys.devices(db, {user_id: names}, names=False)
            reach = await self._device_lists.record(db, user_id, changed=list(devices[user_id].values()))
        if len(own) > len(names):
            reach = reach.and_(await self._record(db, user_id, told=True))
        return reach


async def _keys_of(db: Executor, user_id: str) -> Keys:
    """What older versions took unchecked and is no key counts as none."""
    keys: Keys = {}
    for usage, data in (await storage.keys(db, [user_id])).get(user_id, {}).items():
        with suppress(BadKey):
            keys[usage] = cross_signing.parse(orjson.loads(data), user_id, usage)
    return keys


async def _valid_device_signatures(db: Executor, user_id: str, obj: JsonObject) -> set[str]:
    """Key IDs of the user's devices that signed the object."""
    claimed = [k.removeprefix("ed25519:") for k in cross_signing.signatures_of(obj, user_id)]
    names = [name for name in claimed if ids.is_device_id(name)]
    devices = (await e2e_keys.device_keys(db, {user_id: names})).get(user_id, {}) if names else {}
    valid = set()
    for device_id, (data, _) in devices.items():
        key, key_id = cross_signing.device_key(orjson.loads(data), device_id), f"ed25519:{device_id}"
        if key is not None and cross_signing.signed_by(obj, user_id, key_id, key):
            valid.add(key_id)
    return valid


async def _sign_own(db: Executor, signing: _Signing, wanted: Mapping[str, JsonObject]) -> None:
    """Devices by the self-signing key, the master key by devices."""
    user_id, master = signing.user_id, signing.keys.get(MASTER)
    names = [name for name in wanted if ids.is_device_id(name)]
    devices = (await e2e_keys.device_keys(db, {user_id: names})).get(user_id, {}) if names else {}
    for target, obj in wanted.items():
        try:
            if master is not None and target == master.public:
                await _sign_master(db, signing, master, obj)
            elif target in devices:
                _sign_device(signing, target, orjson.loads(devices[target][0]), obj)
            else:
                raise Refused("M_NOT_FOUND", "There is no such device or key")
        except Refused as refused:
            signing.failures.setdefault(user_id, {})[target] = refused


def _sign_device(signing: _Signing, device_id: str, stored: JsonObject, obj: JsonObject) -> None:
    key = signing.key(SELF_SIGNING)
    _check_same(stored, obj)
    if not cross_signing.signed_by(obj, signing.user_id, key.key_id, key.verify_key):
        raise Refused("M_INVALID_SIGNATURE", "The device is not signed by the self-signing key")
    signing.take(signing.user_id, device_id, obj, key.key_id)


async def _sign_master(db: Executor, signing: _Signing, master: CrossSigningKey, obj: JsonObject) -> None:
    _check_same(master.fields, obj)
    valid = await _valid_device_signatures(db, signing.user_id, obj)
    if not valid:
        raise Refused("M_INVALID_SIGNATURE", "The master key is not signed by a device of the user")
    for key_id in sorted(valid):
        signing.take(signing.user_id, master.public, obj, key_id)


def _sign_other(
    signing: _Signing, other: str, wanted: Mapping[str, JsonObject], stored: JsonObject | None
) -> None:
    """Another user's master key by the user-signing key."""
    for target, obj in wanted.items():
        try:
            key = signing.key(USER_SIGNING)
            try:
                master = cross_signing.parse(stored, other, MASTER)
            except BadKey:
                raise Refused("M_NOT_FOUND", "The user has no master key") from None
            if target != master.public:
                raise Refused("M_NOT_FOUND", "This is not the user's master key")
            _check_same(master.fields, obj)
            if not cross_signing.signed_by(obj, signing.user_id, key.key_id, key.verify_key):
                raise Refused("M_INVALID_SIGNATURE", "The key is not signed by the user-signing key")
            signing.take(other, target, obj, key.key_id)
        except Refused as refused:
            signing.failures.setdefault(other, {})[target] = refused


def _check_same(stored: JsonObject, obj: JsonObject) -> None:
    if not cross_signing.same_object(stored, obj):
        raise Refused("M_INVALID_SIGNATURE", "What was signed is not what is published")
