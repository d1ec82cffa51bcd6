"""The login that private registries and token servers of the harness know, and the tokens of the daemon's callers."""

import jwt

USERNAME = "builder"
PASSWORD = "correct-horse"
# docker-registry takes bcrypt only, which Python has no module for: the hash of PASSWORD, at the lowest cost.
HTPASSWD = "builder:$2y$05$abcdefghijklmnopqrstuuZ0Fx87Pb/Aqb0E90lfvCwzXnaFKUHpS\n"
# As the builder API and the native one have it, and as the distribute API does.
LOGIN = {"username": USERNAME, "password": PASSWORD}
BASIC = {"basicauth": {"user": USERNAME, "password": PASSWORD}}
# JWT, HS256, with a secret that only the tests know.
JWT_SECRET = "a-shared-secret-of-the-tests-0123456789"
AUDIENCE = "com.company.jobservice"


def mint(tenant: int, **claims: object) -> str:
    """A token of this tenant, as its client 1; `claims` replace the usual ones."""
    usual: dict[str, object] = {"tid": tenant, "oid": 1, "aud": AUDIENCE, "sub": f"user-of-{tenant}"}
    return jwt.encode(usual | claims, JWT_SECRET, algorithm="HS256")
