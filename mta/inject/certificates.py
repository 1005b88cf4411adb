"""The certificates of the listeners: TLS contexts, which certificate a client is shown, and new ones without a restart.

A client is shown the first certificate that has the name it asks for (SNI, RFC 6066 3), else the first that has the
listener's own name, else the first. A wildcard stands for one label (RFC 6125 6.4.3). TLS 1.2 is the oldest version
(RFC 8996), its ciphers those with forward secrecy and authenticated encryption.

The files are looked at now and then, and read again when one has changed. A certificate that cannot be read then is an
error in the log, and the one from before goes on: certificates are renewed at night, when nobody looks. What is read is
believed as a whole; a context is never changed while sessions begin with it.
"""

from __future__ import annotations

import _ssl
import hashlib
import logging
import os
import ssl
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from mta.config.access import Certificate
from mta.config.problems import printable

if TYPE_CHECKING:  # where it is used, it is imported: who has no certificates does without its 6 MB
    from cryptography import x509

# The plain one: gevent's, in a patched process, expects a socket of its own where we have memory buffers.
_SNI_CALLBACK: Final[Any] = vars(_ssl._SSLContext)["sni_callback"]

# Forward secrecy and AEAD for TLS 1.2; those of TLS 1.3 all have both.
CIPHERS: Final = "ECDHE+AESGCM:ECDHE+CHACHA20:DHE+AESGCM:!aNULL:!PSK:!aDSS"
_NAMES_KEPT: Final = 1000

log = logging.getLogger(__name__)


class CertificateError(Exception):
    """A certificate or key that cannot be used; the text says which file and why."""


@dataclass(slots=True)
class _Shown:
    """One certificate, ready to be shown."""

    context: ssl.SSLContext
    names: frozenset[str]
    end_point: bytes = field(repr=False)  # `tls-server-end-point`, RFC 5929 4.1


class Contexts:
    """The contexts of one listener, by one state of the files."""

    def __init__(self, shown: Sequence[_Shown], hostname: str) -> None:
        self._shown = shown
        self._default = next((one for one in shown if _covers(one.names, hostname)), shown[0])
        self._by_name: dict[str, _Shown] = {}
        for one in shown:
            _SNI_CALLBACK.__set__(one.context, self._asked)
        self.context = self._default.context
        """What a session begins with."""
        self._end_points = {id(one.context): one.end_point for one in shown}

    def _asked(self, tls: Any, name: str | None, _context: ssl.SSLContext) -> None:
        """The client has said by which name it wants us, in the middle of the handshake."""
        if name and (found := self._find(name.lower().rstrip("."))) is not None:
            tls.context = found.context

    def _find(self, name: str) -> _Shown | None:
        found = self._by_name.get(name)
        if found is None:
            found = next((one for one in self._shown if _covers(one.names, name)), None)
            if found is not None and len(self._by_name) < _NAMES_KEPT:
                self._by_name[name] = found
        return found

    def end_point(self, context: ssl.SSLContext) -> bytes:
        """The channel binding of the certificate that belongs to a context; empty when there is none."""
        return self._end_points.get(id(context), b"")


def make_contexts(certificates: Iterable[Certificate], client_ca: str | None, hostname: str) -> Contexts:
    """The contexts of a listener. Reads files, some milliseconds. Raises CertificateError."""
    return Contexts([_load(one, client_ca) for one in certificates], hostname)


def _load(certificate: Certificate, client_ca: str | None) -> _Shown:
    from cryptography import x509

    path, key = certificate.certificate, certificate.key
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS)
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    try:
        with open(path, "rb") as file:
            leaf = x509.load_pem_x509_certificate(file.read(4_000_000))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about odd but usable certificates, to stderr
            names, end_point = _names(leaf), _end_point(leaf)
    except OSError as error:
        raise CertificateError(f"{printable(path)}: {error.strerror}") from None
    except ValueError:
        raise CertificateError(f"{printable(path)}: no certificate in PEM form") from None
    try:
        # A key with a password would be asked for at a terminal: nobody is there.
        context.load_cert_chain(path, key, password=lambda: "")
    except ssl.SSLError as error:
        why = "the key does not belong to the certificate" if error.reason == "KEY_VALUES_MISMATCH" \
            else "no key without a password in PEM form"
        raise CertificateError(f"{printable(key or path)}: {why}") from None
    except OSError as error:
        raise CertificateError(f"{printable(key or path)}: {error.strerror}") from None
    if client_ca is not None:
        try:
            context.load_verify_locations(client_ca)
        except ssl.SSLError:
            raise CertificateError(f"{printable(client_ca)}: no certificates in PEM form") from None
        except OSError as error:
            raise CertificateError(f"{printable(client_ca)}: {error.strerror}") from None
        context.verify_mode = ssl.CERT_OPTIONAL
    return _Shown(context, names, end_point)


def _names(certificate: x509.Certificate) -> frozenset[str]:
    """The DNS names it is for."""
    from cryptography import x509
    from cryptography.x509.oid import ExtensionOID, NameOID

    try:
        names = certificate.extensions.get_extension_for_oid(ExtensionOID.SUBJECT_ALTERNATIVE_NAME).value
        assert isinstance(names, x509.SubjectAlternativeName)
        return frozenset(name.lower().rstrip(".") for name in names.get_values_for_type(x509.DNSName))
    except x509.ExtensionNotFound:
        common = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        return frozenset(str(name.value).lower() for name in common)


def _end_point(certificate: x509.Certificate) -> bytes:
    """The hash of the certificate, by the hash function of its signature, and no weaker one than SHA-256."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import Encoding

    try:
        used = certificate.signature_hash_algorithm
    except UnsupportedAlgorithm:
        return b""
    if used is None:
        return b""  # as with Ed25519: RFC 5929 does not say which
    name = "sha256" if used.name in ("md5", "sha1") else used.name
    return hashlib.new(name, certificate.public_bytes(Encoding.DER)).digest()


def _covers(names: frozenset[str], name: str) -> bool:
    return name in names or f"*.{name.partition('.')[2]}" in names


def names_of_client(certificate: dict[str, Any] | None) -> tuple[str, ...]:
    """The names in a client's verified certificate that may be a user, best first: e-mail address, DNS name, common
    name. A name with anything invisible in it is none (CVE-2009-4565)."""
    if not certificate:
        return ()
    alternatives = [(kind, value) for kind, value in certificate.get("subjectAltName", ()) if isinstance(value, str)]
    names = [value for wanted in ("email", "DNS") for kind, value in alternatives if kind == wanted]
    names += [value for part in certificate.get("subject", ()) for kind, value in part if kind == "commonName"]
    return tuple(name for name in names if name.isascii() and name.isprintable() and name and " " not in name)


State = list[tuple[str, int, int, int]]
News = tuple[State, Contexts | CertificateError]
"""A state of the files, and what they are good for."""


class Certificates:
    """The contexts of one listener, over all changes of its files."""

    def __init__(self, certificates: Sequence[Certificate], client_ca: str | None, hostname: str, *,
                 lenient: bool = False) -> None:
        """Raises CertificateError; when `lenient` there are no contexts until the files can be used."""
        self._certificates = certificates
        self._client_ca = client_ca
        self._hostname = hostname
        self._complained = ""
        self.contexts: Contexts | None = None
        self._state, found = self.read()
        if isinstance(found, Contexts):
            self.contexts = found
        elif not lenient:
            raise found
        else:
            self._state, self._complained = [], str(found)
            log.error("a certificate cannot be used: %s", found)

    def _look(self) -> State:
        """What tells one state of the files from another."""
        paths = [path for one in self._certificates for path in (one.certificate, one.key) if path]
        if self._client_ca:
            paths.append(self._client_ca)
        state = []
        for path in paths:
            try:
                status = os.stat(path)
                state.append((path, status.st_ino, status.st_size, status.st_mtime_ns))
            except OSError:
                state.append((path, 0, 0, 0))
        return state

    def are_of(self, certificates: Sequence[Certificate], client_ca: str | None, hostname: str) -> bool:
        """Whether these are those that the options name."""
        return (self._certificates, self._client_ca, self._hostname) == (certificates, client_ca, hostname)

    def changed(self) -> bool:
        """Whether a file has changed since it was read."""
        return self._look() != self._state

    def read(self) -> News:
        """Read the files again: some milliseconds for each, so for a thread. It logs nothing."""
        state = self._look()
        try:
            return state, make_contexts(self._certificates, self._client_ca, self._hostname)
        except CertificateError as error:
            return state, error

    def take(self, news: News) -> bool:
        """Take what was read. Whether other contexts hold from now on."""
        state, found = news
        if isinstance(found, CertificateError):
            # The next look tries again: the file with the key is perhaps not there yet.
            if str(found) != self._complained:
                self._complained = str(found)
                before = ", the one from before still is" if self.contexts is not None else ""
                log.error("a changed certificate cannot be used%s: %s", before, found)
            return False
        self.contexts, self._state, self._complained = found, state, ""
        paths = ", ".join(printable(one.certificate) for one in self._certificates)
        log.info("certificates were read again: %s", paths)
        return True
