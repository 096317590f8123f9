"""Who is calling: kernel credentials on the unix socket, a bearer token on the TCP side.

A role is fixed by what the kernel or the token says of the connection, never by what the request
claims. Roles are ordered: an admin may all that an operator may, and so on down.
"""

from __future__ import annotations

import grp
import hashlib
import hmac
import os
import pwd
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum

from appliance.config.machine import AccessConfig
from appliance.errors import Refused

_SO_PEERGROUPS = 59
"""Not in Python's socket module; the same number on x86-64 and arm64 (asm-generic/socket.h)."""

_GROUPS_MAX = 1024


class Role(IntEnum):
    NOBODY = 0
    USER = 1
    OPERATOR = 2
    ADMIN = 3

    @property
    def word(self) -> str:
        return self.name.lower()


class Unauthenticated(Refused):
    code = "unauthenticated"
    http_status = 401


@dataclass(frozen=True, slots=True)
class Peer:
    """The caller. `pid` is 0 where the kernel does not say (TCP)."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    pid: int
    role: Role

    def sees_all(self) -> bool:
        """May look at other users' sessions."""
        return self.role >= Role.OPERATOR

    def owner_filter(self) -> int | None:
        """The owner whose rows this peer sees; None for everybody's."""
        return None if self.sees_all() else self.uid


def unix_peer(connection: socket.socket, access: AccessConfig) -> Peer:
    """The peer of a unix socket by SO_PEERCRED and SO_PEERGROUPS, with its role."""
    packed = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, uid, gid = struct.unpack("3i", packed)
    groups = _peer_groups(connection)
    return Peer(uid, gid, groups, pid, role_of(uid, (gid, *groups), access))


def role_of(uid: int, gids: Iterable[int], access: AccessConfig) -> Role:
    """The highest role `[access]` gives; root and the daemon's own user are admins."""
    if uid in (0, os.geteuid()):
        return Role.ADMIN
    gids = frozenset(gids)
    for role, entries in (
        (Role.ADMIN, access.admins),
        (Role.OPERATOR, access.operators),
        (Role.USER, access.users),
    ):
        if any(_matches(entry, uid, gids) for entry in entries):
            return role
    return Role.NOBODY


def _matches(entry: str | int, uid: int, gids: frozenset[int]) -> bool:
    if isinstance(entry, int):
        return entry == uid
    try:
        if entry.startswith("@"):
            return grp.getgrnam(entry[1:]).gr_gid in gids
        return pwd.getpwnam(entry).pw_uid == uid
    except KeyError:
        return False  # no such user or group on this machine


def _peer_groups(connection: socket.socket) -> tuple[int, ...]:
    size = struct.calcsize("I")
    try:
        packed = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, size * _GROUPS_MAX)
    except OSError:
        return ()
    return tuple(group for (group,) in struct.iter_unpack("I", packed))


class Tokens:
    """Bearer tokens of the TCP side, kept as SHA-256 only and compared in constant time."""

    def __init__(self, admin_token: str) -> None:
        self._admin = _digest(admin_token)

    def peer(self, authorization: str) -> Peer:
        """The peer a `Authorization: Bearer …` header (or `x-api-key` value) stands for."""
        token = authorization.removeprefix("Bearer ").strip()
        if not token or not hmac.compare_digest(_digest(token), self._admin):
            raise Unauthenticated(
                "the TCP side needs a bearer token",
                hint="the admin's is in state/admin.token",
            )
        return Peer(os.geteuid(), os.getegid(), (), 0, Role.ADMIN)


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
