"""Tokens (JWT) as the daemon's callers bring them: HS256, with a secret that only the tests know."""

import jwt

JWT_SECRET = "a-shared-secret-of-the-tests-0123456789"
AUDIENCE = "com.company.jobservice"


def mint(tenant: int, **claims: object) -> str:
    """A token of this tenant, as its client 1; `claims` replace the usual ones."""
    usual: dict[str, object] = {"tid": tenant, "oid": 1, "aud": AUDIENCE, "sub": f"user-of-{tenant}"}
    return jwt.encode(usual | claims, JWT_SECRET, algorithm="HS256")
