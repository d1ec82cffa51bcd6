"""Platforms (`os/architecture[/variant]`) in the one spelling that engines bring them to.

As containerd's `platforms.Parse` and `Normalize` do it, so that `TARGETARCH` and its kin are here what they are in a
build, however a request or a Dockerfile writes the platform.
"""

DEFAULT_PLATFORM = "linux/amd64"

_SYSTEMS = frozenset({"darwin", "freebsd", "linux", "macos", "windows"})
_ALIASES = {
    "aarch64": "arm64",
    "armel": "arm/v6",
    "armhf": "arm/v7",
    "i386": "386",
    "x86-64": "amd64",
    "x86_64": "amd64",
}
# Variants that say no more than the architecture does, and those that are written without their `v`.
_VARIANTS = {
    ("amd64", "v1"): "",
    ("arm", ""): "v7",
    ("arm", "5"): "v5",
    ("arm", "6"): "v6",
    ("arm", "7"): "v7",
    ("arm", "8"): "v8",
    ("arm64", "8"): "",
    ("arm64", "v8"): "",
}


def normalize(platform: str, host: str = DEFAULT_PLATFORM) -> str:
    """`platform` in one spelling; what it leaves out (all of it, the system or the architecture) is the `host`'s."""
    parts = platform.lower().split("/")
    if parts == [""]:
        parts = host.split("/")
    elif len(parts) == 1:
        host_system, host_architecture = host.split("/")[:2]
        parts = [parts[0], host_architecture] if parts[0] in _SYSTEMS else [host_system, parts[0]]
    system, architecture, *variants = parts
    architecture, _, alias_variant = _ALIASES.get(architecture, architecture).partition("/")
    variant = alias_variant or "/".join(variants)
    system = "darwin" if system == "macos" else system
    return "/".join(filter(None, (system, architecture, _VARIANTS.get((architecture, variant), variant))))
