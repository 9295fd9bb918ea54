"""Devices, their keys, and what is sent straight to them (D04 §MLS, §Ephemeral Data Units)."""

from __future__ import annotations

import time
from typing import Any
from urllib.parse import quote

from lmserver.conformance import draft, our_rooms
from lmserver.conformance.draft import Event
from lmserver.conformance.model import Failed, Level, Skipped, check, expect
from lmserver.conformance.persona import WAIT
from lmserver.conformance.session import Session

DEVICE = "GET /_matrix/federation/v1/user/:userId/device/:deviceId"
CLAIM = "POST /_matrix/federation/v1/user/keys/claim"
TO_DEVICE = "To-Device Messaging"
PUBLISHING = "Device Info Publishing"
EDUS = "Ephemeral Data Units (EDUs)"
TXN = "Transaction Identifiers"
MLS = "dhkemx25519-aes128gcm-sha256-ed25519"
KEY_PACKAGE = f"m.mls.v1.key_package.{MLS}"
CREDENTIAL = "m.mls.v1.credential.ed25519"
MESSAGE = "org.lmserver.conformance"


def _device_id(s: Session) -> str:
    if not s.user.device_id:
        raise Skipped("needs to know the device of its user: log in with --register or --user")
    return s.user.device_id


# -- device keys ------------------------------------------------------------------------------------


async def _published(s: Session) -> Event:
    """The device object that the user's device has signed and uploaded."""

    async def upload() -> Event:
        user, device = s.user.user_id, _device_id(s)
        key = draft.Key.make(user, f"{CREDENTIAL}:{device}")
        published = key.sign_object(
            {
                "user_id": user,
                "device_id": device,
                "algorithms": [f"m.mls.v1.{MLS}"],
                "keys": {f"{CREDENTIAL}:{device}": key.public},
            }
        )
        await s.user.ok("POST", "/keys/upload", {"device_keys": published})
        return published

    return await s.once("device keys", upload)


@check("device.served", DEVICE, "The response is the object the device itself signed.")
async def device_served(s: Session) -> None:
    published = await _published(s)
    found = (await s.me.ask("GET", s.paths.device(s.user.user_id, s.user.device_id))).expect(200)
    for name, value in published.items():
        expect(found.get(name) == value, f"{name} was {value}, is {found.get(name)}")


@check("device.unknown_device", DEVICE, "A device the user does not have is answered 404 M_NOT_FOUND.")
async def unknown_device(s: Session) -> None:
    (await s.me.ask("GET", s.paths.device(s.user.user_id, "NOSUCHDEVICE"))).expect(404, "M_NOT_FOUND")


@check("device.unknown_user", DEVICE, "A user who does not exist is answered 404 M_NOT_FOUND.")
async def unknown_user(s: Session) -> None:
    user = f"@{s.fresh('nobody')}:{s.server}"
    (await s.me.ask("GET", s.paths.device(user, "ABCDEF"))).expect(404, "M_NOT_FOUND")


@check("device.foreign_user", DEVICE, "A user of another server is answered 404 M_NOT_FOUND.")
async def foreign_user(s: Session) -> None:
    (await s.me.ask("GET", s.paths.device(s.me.user("somebody"), "ABCDEF"))).expect(404, "M_NOT_FOUND")


@check("device.changed", PUBLISHING, "Servers that share a room are told of a user's changed device.")
async def device_changed(s: Session) -> None:
    await our_rooms.joined(s)
    published = await _published(s)

    def told() -> Event | None:
        for edu in s.me.edus:
            if edu.get("type") == "m.device_list_update" and _sender(edu) == s.user.user_id:
                changed = edu["content"].get("changed")
                if isinstance(changed, list) and any(d.get("keys") == published["keys"] for d in changed):
                    return edu
        return None

    await s.me.until(told, "an m.device_list_update with the device in `changed`")


# -- one-time keys -----------------------------------------------------------------------------------


async def _claim(s: Session, wanted: dict[str, Any]) -> dict[str, Any]:
    found = (await s.me.ask("POST", s.paths.claim(), {"one_time_keys": wanted})).expect(200)
    keys = found.get("one_time_keys")
    expect(isinstance(keys, dict), f"one_time_keys MUST be specified: {found}")
    return dict(keys or {})


async def _upload_key_packages(s: Session, *names: str) -> dict[str, str]:
    keys = {f"{KEY_PACKAGE}:{name}": draft.encode(f"key package {name}".encode()) for name in names}
    await s.user.ok("POST", "/keys/upload", {"one_time_keys": keys})
    return keys


def _claimed(s: Session, found: dict[str, Any]) -> dict[str, Any]:
    of_device: dict[str, Any] = found.get(s.user.user_id, {}).get(s.user.device_id, {})
    return of_device


@check("claim.served", CLAIM, "A key package of the device is returned, under user, device and algorithm.")
async def claim_served(s: Session) -> None:
    device = _device_id(s)
    uploaded = await _upload_key_packages(s, s.fresh("A"))
    found = _claimed(s, await _claim(s, {s.user.user_id: {device: KEY_PACKAGE}}))
    expect(len(found) == 1 and set(found.values()) <= set(uploaded.values()), f"claimed {found}")


@check("claim.once", CLAIM, "Servers MUST NOT reuse a device's one-time key.")
async def claim_once(s: Session) -> None:
    device = _device_id(s)
    await _upload_key_packages(s, s.fresh("B"), s.fresh("C"))
    claims = [_claimed(s, await _claim(s, {s.user.user_id: {device: KEY_PACKAGE}})) for _ in range(4)]
    given = [value for claim in claims for value in claim.values()]
    expect(len(given) >= 2, f"two keys were uploaded, {len(given)} could be claimed")
    expect(len(set(given)) == len(given), f"a key was given out twice: {given}")


@check("claim.unknown", CLAIM, "Users and devices that the server does not have are ignored.")
async def claim_unknown(s: Session) -> None:
    nobody = f"@{s.fresh('nobody')}:{s.server}"
    wanted = {nobody: {"ABCD": KEY_PACKAGE}, s.me.user("somebody"): {"ABCD": KEY_PACKAGE}}
    found = await _claim(s, wanted)
    expect(not any(found.values()), f"claimed {found}")


@check("claim.missing", CLAIM, "one_time_keys MUST be specified: 400 M_BAD_JSON without it.")
async def claim_missing(s: Session) -> None:
    (await s.me.ask("POST", s.paths.claim(), {})).expect(400, "M_BAD_JSON")


# -- to-device messages that arrive ------------------------------------------------------------------


def _sender(edu: Event) -> object:
    return edu.get("sender", edu.get("sender_id"))


def _direct(s: Session, marker: str, **changes: Any) -> Event:
    """The draft's form: one EDU for each device and payload."""
    edu = {
        "type": "m.direct_to_device",
        "sender": s.me.user("conformance"),
        "content": {
            "target": s.user.user_id,
            "target_device": _device_id(s),
            "message_type": MESSAGE,
            "message": {"marker": marker},
        },
    }
    return edu | changes


async def _arrive(s: Session, *edus: Event, until: str) -> list[str]:
    """Send EDUs; the markers that reach the device, up to and with the last one."""
    token = await s.once("sync token", lambda: _token(s))
    (await s.transaction([], edus=list(edus))).expect(200)
    found: list[str] = []
    deadline = time.monotonic() + WAIT
    while time.monotonic() < deadline:
        answer = await s.user.ok("GET", f"/sync?timeout=1000&since={quote(token[0], safe='')}")
        token[0] = answer["next_batch"]
        events = answer.get("to_device", {}).get("events", [])
        found += [event["content"]["marker"] for event in events if event.get("type") == MESSAGE]
        if until in found:
            return found
    raise Failed(f"waited {WAIT:.0f} s for a message to the device; {found} came")


async def _token(s: Session) -> list[str]:
    """Where the device's /sync stands."""
    return [(await s.user.ok("GET", "/sync?timeout=0"))["next_batch"]]


@check("edu.to_device", TO_DEVICE, "An EDU with target, device, message_type and message is delivered.")
async def to_device(s: Session) -> None:
    marker = s.fresh("m")
    await _arrive(s, _direct(s, marker), until=marker)


@check("edu.sender_id", EDUS, "The sender may be called sender_id, as the text of the draft has it.")
async def sender_id(s: Session) -> None:
    marker = s.fresh("m")
    edu = draft.without(_direct(s, marker), "sender") | {"sender_id": s.me.user("conformance")}
    await _arrive(s, edu, until=marker)


@check("edu.matrix_form", EDUS, "Matrix's form SHOULD be understood too: it is what known peers send.",
       level=Level.SHOULD)  # fmt: skip
async def matrix_form(s: Session) -> None:
    marker = s.fresh("m")
    content = {
        "sender": s.me.user("conformance"), "type": MESSAGE, "message_id": marker,
        "messages": {s.user.user_id: {_device_id(s): {"marker": marker}}},
    }  # fmt: skip
    await _arrive(s, {"edu_type": "m.direct_to_device", "content": content}, until=marker)


@check("edu.unknown_device", TO_DEVICE, "An EDU for a user or device that does not exist is dropped.")
async def edu_unknown_device(s: Session) -> None:
    lost, marker = s.fresh("m"), s.fresh("m")
    bad = [_direct(s, lost), _direct(s, lost)]
    bad[0]["content"]["target_device"] = "NOSUCHDEVICE"
    bad[1]["content"]["target"] = f"@{s.fresh('nobody')}:{s.server}"
    found = await _arrive(s, *bad, _direct(s, marker), until=marker)
    expect(lost not in found, "it was delivered to another device")


@check("edu.spoofed", EDUS, "An EDU in the name of another server's user SHOULD be dropped.",
       level=Level.SHOULD)  # fmt: skip
async def spoofed(s: Session) -> None:
    forged, marker = s.fresh("m"), s.fresh("m")
    bad = _direct(s, forged, sender="@somebody:elsewhere.example.org")
    found = await _arrive(s, bad, _direct(s, marker), until=marker)
    expect(forged not in found, "it was delivered")


@check("edu.once", TXN, "The EDUs of a repeated transaction are processed only once.")
async def edu_once(s: Session) -> None:
    first, marker, last, txn_id = s.fresh("m"), s.fresh("m"), s.fresh("m"), s.fresh()
    await _arrive(s, _direct(s, first), until=first)
    for _ in range(2):
        (await s.transaction([], edus=[_direct(s, marker)], txn_id=txn_id)).expect(200)
    found = await _arrive(s, _direct(s, last), until=last)
    expect(found.count(marker) == 1, f"it came {found.count(marker)} times")


@check("edu.order", TO_DEVICE, "Messages to one device arrive in the order they were sent.")
async def edu_order(s: Session) -> None:
    markers = [s.fresh("m") for _ in range(20)]
    found = await _arrive(s, *(_direct(s, marker) for marker in markers), until=markers[-1])
    expect([m for m in found if m in markers] == markers, f"{found} should be {markers}")


# -- to-device messages that are sent -----------------------------------------------------------------


async def _send_to_us(s: Session, marker: str, *devices: str) -> list[Event]:
    """Let the user send to devices of ours; the EDUs that came for it."""
    target = s.me.user("conformance")
    path = f"/sendToDevice/{MESSAGE}/{s.fresh()}"
    await s.user.ok("PUT", path, {"messages": {target: {d: {"marker": marker} for d in devices}}})

    def came() -> list[Event] | None:
        found = [edu for edu in s.me.edus if marker in draft.canonical(edu).decode()]
        return found or None

    return await s.me.until(came, f"a message to the device {devices[0]} of {target}")


@check("edu.sent", TO_DEVICE, "A message is sent to the server of the target user, in the draft's form.")
async def edu_sent(s: Session) -> None:
    await our_rooms.joined(s)
    edu = (await _send_to_us(s, s.fresh("m"), "ABCD"))[0]
    content = edu.get("content", {})
    expect(edu.get("type") == "m.direct_to_device", f"type is {edu.get('type')!r}")
    expect(_sender(edu) == s.user.user_id, f"the sender is {_sender(edu)!r}")
    expect(content.get("target") == s.me.user("conformance"), f"target is {content.get('target')!r}")
    expect(content.get("target_device") == "ABCD", f"target_device is {content.get('target_device')!r}")
    expect(content.get("message_type") == MESSAGE, f"message_type is {content.get('message_type')!r}")
    expect(isinstance(content.get("message"), dict), f"message is {content.get('message')!r}")


@check("edu.one_for_each", TO_DEVICE, "There is one EDU for each recipient device and payload.")
async def one_for_each(s: Session) -> None:
    await our_rooms.joined(s)
    marker = s.fresh("m")
    await _send_to_us(s, marker, "ABCD", "EFGH")

    def both() -> set[object] | None:
        found = {
            e["content"].get("target_device") for e in s.me.edus if marker in draft.canonical(e).decode()
        }
        return found if len(found) > 1 else None

    found = await s.me.until(both, "an EDU for each of two devices")
    expect(found == {"ABCD", "EFGH"}, f"the devices are {found}")
