"""The one login that private registries and token servers of the harness know."""

USERNAME = "builder"
PASSWORD = "correct-horse"
# docker-registry takes bcrypt only, which Python has no module for: the hash of PASSWORD, at the lowest cost.
HTPASSWD = "builder:$2y$05$abcdefghijklmnopqrstuuZ0Fx87Pb/Aqb0E90lfvCwzXnaFKUHpS\n"
