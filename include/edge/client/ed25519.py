"""Verify an Ed25519 signature (RFC 8032, section 5.1) in plain Python.

It takes milliseconds and does not need a library. Use it for verification only: it is not hardened
for secret keys.
"""

from hashlib import sha512
from typing import cast

P = 2**255 - 19
L = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, -1, P) % P
ROOT = pow(2, (P - 1) // 4, P)  # square root of -1
# X, Y, Z and T.
Point = tuple[int, int, int, int]


def verify(public_key: bytes, message: bytes, signature: bytes) -> bool:
    """Return whether a signature of 64 bytes is valid for a public key of 32 bytes."""
    key, s = _point(public_key), int.from_bytes(signature[32:], "little")
    if key is None or len(signature) != 64 or s >= L:
        return False
    challenge = int.from_bytes(sha512(signature[:32] + public_key + message).digest(), "little") % L
    minus_key = (P - key[0], key[1], key[2], P - key[3])
    return _packed(_add(_times(s, BASE), _times(challenge, minus_key))) == signature[:32]


def _add(a: Point, b: Point) -> Point:
    """Add points in extended coordinates (X, Y, Z, T)."""
    lower, upper = (a[1] - a[0]) * (b[1] - b[0]) % P, (a[1] + a[0]) * (b[1] + b[0]) % P
    c, d = 2 * a[3] * b[3] * D % P, 2 * a[2] * b[2] % P
    e, f, g, h = upper - lower, d - c, d + c, upper + lower
    return e * f % P, g * h % P, f * g % P, e * h % P


def _times(number: int, point: Point) -> Point:
    total = (0, 1, 1, 0)
    while number:
        if number & 1:
            total = _add(total, point)
        point, number = _add(point, point), number >> 1
    return total


def _point(packed: bytes) -> Point | None:
    """Decode a point from 32 bytes. Return None if they are not a point of the curve."""
    y, odd = int.from_bytes(packed, "little") & (1 << 255) - 1, packed[31] >> 7 if len(packed) == 32 else 0
    square = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    x = pow(square, (P + 3) // 8, P)
    x = x if (x * x - square) % P == 0 else x * ROOT % P
    if len(packed) != 32 or y >= P or (x * x - square) % P or (x == 0 and odd):
        return None
    x = x if x & 1 == odd else P - x
    return x, y, 1, x * y % P


def _packed(point: Point) -> bytes:
    inverse = pow(point[2], -1, P)
    x, y = point[0] * inverse % P, point[1] * inverse % P
    return (y | (x & 1) << 255).to_bytes(32, "little")


BASE = cast(Point, _point((4 * pow(5, -1, P) % P).to_bytes(32, "little")))
