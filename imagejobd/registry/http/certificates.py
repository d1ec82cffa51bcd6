"""TLS towards a host: whom we trust there, and what we show of ourselves.

The client certificate is for the host that it was configured for, reached as configured: a redirect to that host, or a
connection that a request made weaker, does not show it.
"""

import ssl

import msgspec

ClientFiles = tuple[str, str]
"""Paths of our certificate, with what leads to its authority, and of its key."""


class Certificates(msgspec.Struct, frozen=True, eq=False):
    """`own`: as configured. `strict`: verified, whatever is configured. `foreign`: as configured, without our
    certificate, for where others send us."""

    own: ssl.SSLContext
    strict: ssl.SSLContext
    foreign: ssl.SSLContext


def certificates(*, is_verified: bool, ca_file: str | None, client_files: ClientFiles | None) -> Certificates:
    """Read the files. Raises `OSError`; an `ssl.SSLError` among them means a file that is no certificate or key."""
    strict = _showing(verified(ca_file), client_files)
    if is_verified:
        return Certificates(strict, strict, strict if client_files is None else verified(ca_file))
    return Certificates(_showing(unverified(), client_files), strict, unverified())


def verified(ca_file: str | None = None) -> ssl.SSLContext:
    """Trust in the system's authorities and those of `ca_file`."""
    context = ssl.create_default_context()
    if ca_file is not None:
        context.load_verify_locations(cafile=ca_file)
    return context


def unverified() -> ssl.SSLContext:
    """Trust in any certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # without the authorities, whose reading takes its time
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _showing(context: ssl.SSLContext, client_files: ClientFiles | None) -> ssl.SSLContext:
    if client_files is not None:
        # An encrypted key would make OpenSSL ask for its password on the terminal.
        context.load_cert_chain(*client_files, password=_no_password)
    return context


def _no_password() -> str:
    raise ssl.SSLError(ssl.SSL_ERROR_SSL, "the key is encrypted")
