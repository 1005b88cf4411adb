"""Libraries that send mail: of Python, Node, PHP, Ruby, Perl, Go and Java. Each example is a program of a user's."""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final
from urllib.parse import quote

from tests.clients.client import Call, Client, Example, Services, run, said

_NODE_MODULES: Final = os.environ.get("MTA_NODE_MODULES", "")
"""Directory in which npm has installed nodemailer."""
_PHPMAILER: Final = Path("/usr/share/php/libphp-phpmailer")
_SYMFONY: Final = Path("/usr/share/php/Symfony/Component/Mailer")
_JAKARTA: Final = [f"/usr/share/java/jakarta-{name}.jar" for name in ("mail", "activation")]


def _lines(*lines: str) -> str:
    """Those that are not empty, with line ends; "\n" stands for an empty one."""
    return "".join(line if line == "\n" else f"{line}\n" for line in lines if line)


def _python_version() -> str:
    return ".".join(map(str, sys.version_info[:3]))


def _options(call: Call, quote: str = '"') -> tuple[list[str], list[str]]:
    """Parameters of MAIL and RCPT that a feature needs, as literals."""
    mail, rcpt = {
        "8BITMIME": (["BODY=8BITMIME"], []), "SMTPUTF8": (["BODY=8BITMIME", "SMTPUTF8"], []),
        "DSN": (["RET=HDRS", "ENVID=run-7"], ["NOTIFY=SUCCESS,FAILURE"]), None: ([], []),
    }[call.feature]
    return [f"{quote}{word}{quote}" for word in mail], [f"{quote}{word}{quote}" for word in rcpt]


# -- Python ------------------------------------------------------------------------------------------------------------


def _smtplib(call: Call) -> Example:
    mail, rcpt = _options(call)
    extra = (f", mail_options=[{', '.join(mail)}]" if mail else "") + (
        f", rcpt_options=[{', '.join(rcpt)}]" if rcpt else "")
    if call.way == "Unix socket":
        head = _lines(
            "import smtplib", "import socket", "\n", "\n", "class LocalSMTP(smtplib.SMTP):",
            "    def _get_socket(self, host, port, timeout):", "        sock = socket.socket(socket.AF_UNIX)",
            "        sock.connect(host)", "        return sock", "\n", "\n")
        made = f'LocalSMTP("{call.socket}")'
    else:
        head = _lines("import smtplib", (call.tls and "import ssl") or "", "\n")
        made = f'smtplib.SMTP("{call.host}", {call.port})'
        if call.way == "implicit TLS":
            made = f'smtplib.SMTP_SSL("{call.host}", {call.port}, context=ssl.create_default_context())'
    return Example((sys.executable, "send.py"), {"send.py": head + _lines(
        f"with {made} as client:",
        "    client.starttls(context=ssl.create_default_context())" if call.way == "STARTTLS" else "",
        f'    client.login("{call.user}", "{call.password}")' if call.tls else "",
        '    with open("message.eml", "rb") as message:',
        f'        client.sendmail("{call.sender}", ["{call.recipient}"], message.read(){extra})')})


def _aiosmtplib(call: Call) -> Example:
    mail, rcpt = _options(call)
    extra = (f", mail_options=[{', '.join(mail)}]" if mail else "") + (
        f", rcpt_options=[{', '.join(rcpt)}]" if rcpt else "")
    where = f'hostname="{call.host}", port={call.port}'
    if call.way == "Unix socket":
        where = f'socket_path="{call.socket}"'
    where += {"STARTTLS": ", start_tls=True", "implicit TLS": ", use_tls=True"}.get(call.way, "")
    login = f', username="{call.user}", password="{call.password}"' if call.tls else ""
    return Example((sys.executable, "send.py"), {"send.py": _lines(
        "import asyncio", "\n", "import aiosmtplib", "\n", "\n", "async def main():",
        f"    async with aiosmtplib.SMTP({where}{login}) as client:",
        '        with open("message.eml", "rb") as message:',
        f'            await client.sendmail("{call.sender}", ["{call.recipient}"], message.read(){extra})',
        "\n", "\n", "asyncio.run(main())")})


def _aiosmtplib_version() -> str:
    if importlib.util.find_spec("aiosmtplib") is None:
        return ""
    from importlib.metadata import version
    return version("aiosmtplib")


# -- Node --------------------------------------------------------------------------------------------------------------


def _nodemailer(call: Call) -> Example:
    where = [f'host: "{call.host}"', f"port: {call.port}"] if call.way != "Unix socket" else []
    if call.way == "STARTTLS":
        where.append("requireTLS: true")
    elif call.way == "implicit TLS":
        where.append("secure: true")
    if call.tls:
        where.append(f'auth: {{user: "{call.user}", pass: "{call.password}"}}')
        if call.mechanism == "LOGIN":
            where.append('authMethod: "LOGIN"')
    envelope = [f'from: "{call.sender}"', f'to: "{call.recipient}"']
    if call.feature in ("8BITMIME", "SMTPUTF8"):
        envelope.append("use8BitMime: true")
    dsn = 'dsn: {id: "run-7", return: "headers", notify: ["success", "failure"]}, ' if call.feature == "DSN" else ""
    return Example(("node", "send.js"), {"send.js": _lines(
        'const fs = require("fs");',
        'const net = require("net");' if call.way == "Unix socket" else "",
        'const nodemailer = require("nodemailer");', "\n",
        f"const transport = nodemailer.createTransport({{{', '.join(where)}}});",
        "transport.transporter.getSocket = (options, done) => {" if call.way == "Unix socket" else "",
        f'  const connection = net.connect("{call.socket}", () => done(null, {{connection}}));'
        if call.way == "Unix socket" else "",
        "};" if call.way == "Unix socket" else "",
        "transport.sendMail({",
        f"  envelope: {{{', '.join(envelope)}}}, {dsn}raw: fs.readFileSync(\"message.eml\"),",
        "}).then(() => transport.close());")})


def _nodemailer_version() -> str:
    if not _NODE_MODULES or shutil.which("node") is None:
        return ""
    os.environ["NODE_PATH"] = _NODE_MODULES
    found = re.search(r'"version": "([^"]+)"', Path(_NODE_MODULES, "nodemailer", "package.json").read_text())
    return found[1] if found else ""


# -- PHP ---------------------------------------------------------------------------------------------------------------


def _phpmailer(call: Call) -> Example:
    secure = {"STARTTLS": "PHPMailer::ENCRYPTION_STARTTLS", "implicit TLS": "PHPMailer::ENCRYPTION_SMTPS"}.get(call.way)
    if call.way == "sendmail":
        where = ["$mail->isSendmail();", f"$mail->Sendmail = '{call.sendmail}';"]
    else:
        where = ["$mail->isSMTP();", f"$mail->Host = '{call.host}';", f"$mail->Port = {call.port};",
                 f"$mail->SMTPSecure = {secure};" if secure else ""]
        if call.tls:
            where += ["$mail->SMTPAuth = true;", f"$mail->Username = '{call.user}';",
                      f"$mail->Password = '{call.password}';"]
    return Example(("php", "send.php"), {"send.php": _lines(
        "<?php", "use PHPMailer\\PHPMailer\\PHPMailer;", f"require '{_PHPMAILER}/autoload.php';", "\n",
        "$mail = new PHPMailer(true);", *where, "$mail->CharSet = 'utf-8';",
        "$mail->dsn = 'SUCCESS,FAILURE';" if call.feature == "DSN" else "",
        "$mail->Encoding = '8bit';" if call.feature == "8BITMIME" else "",
        f"$mail->setFrom('{call.sender}');", f"$mail->addAddress('{call.recipient}');",
        "$mail->Subject = 'the subject';", "$mail->Body = file_get_contents('text.txt');", "$mail->send();")})


def _phpmailer_version() -> str:
    if shutil.which("php") is None or not (_PHPMAILER / "src" / "PHPMailer.php").exists():
        return ""
    found = re.search(r"VERSION = '([^']+)'", (_PHPMAILER / "src" / "PHPMailer.php").read_text())
    return found[1] if found else ""


def _symfony(call: Call) -> Example:
    login = f"{call.user}:{call.password}@" if call.tls else ""
    where = f"{'smtps' if call.way == 'implicit TLS' else 'smtp'}://{login}{call.host}:{call.port}"
    if call.way == "sendmail":
        where = "sendmail://default?command=" + quote(f"{call.sendmail} -bs", safe="")
    return Example(("php", "send.php"), {"send.php": _lines(
        "<?php", "use Symfony\\Component\\Mailer\\Envelope;", "use Symfony\\Component\\Mailer\\Transport;",
        "use Symfony\\Component\\Mime\\Address;", "use Symfony\\Component\\Mime\\RawMessage;",
        f"require '{_SYMFONY}/autoload.php';", "\n",
        f"$transport = Transport::fromDsn('{where}');",
        f"$envelope = new Envelope(new Address('{call.sender}'), [new Address('{call.recipient}')]);",
        "$transport->send(new RawMessage(file_get_contents('message.eml')), $envelope);")})


def _symfony_version() -> str:
    if shutil.which("php") is None or not (_SYMFONY / "autoload.php").exists():
        return ""
    return said("dpkg-query", "-W", "-f", "${Version}", "php-symfony-mailer").partition("+")[0]


# -- Ruby --------------------------------------------------------------------------------------------------------------


def _ruby(call: Call) -> Example:
    login = f', user: "{call.user}", secret: "{call.password}", authtype: :{(call.mechanism or "PLAIN").lower()}'
    return Example(("ruby", "send.rb"), {"send.rb": _lines(
        'require "net/smtp"', "\n", f'client = Net::SMTP.new("{call.host}", {call.port})',
        "client.enable_starttls" if call.way == "STARTTLS" else "client.disable_starttls",
        "client.enable_tls" if call.way == "implicit TLS" else "",
        f"client.start({login[2:] if call.tls else ''}) do",
        f'  client.send_message(File.binread("message.eml"), "{call.sender}", "{call.recipient}")', "end")})


def _ruby_version() -> str:
    found = re.search(r"ruby (\S+)", said("ruby", "--version"))
    return found[1] if found else ""


# -- Perl --------------------------------------------------------------------------------------------------------------


def _perl(call: Call) -> Example:
    mail = {"8BITMIME": ", Bits => 8", "DSN": ', Return => "HDRS", Envelope => "run-7"'}.get(call.feature or "", "")
    rcpt = ', {Notify => ["SUCCESS", "FAILURE"]}' if call.feature == "DSN" else ""
    ssl = ", SSL => 1" if call.way == "implicit TLS" else ""
    login = f'$client->auth("{call.user}", "{call.password}") or die $client->message;'
    if call.mechanism == "LOGIN":
        login = f"""$client->auth(Authen::SASL->new(mechanism => "LOGIN", callback => {{
    user => "{call.user}", pass => "{call.password}"}})) or die $client->message;"""
    return Example(("perl", "send.pl"), {"send.pl": _lines(
        "use strict;", "use Authen::SASL;" if call.tls and call.mechanism == "LOGIN" else "", "use Net::SMTP;", "\n",
        f'my $client = Net::SMTP->new("{call.host}", Port => {call.port}{ssl}) or die $@;',
        "$client->starttls() or die $client->message;" if call.way == "STARTTLS" else "",
        login if call.tls else "",
        'open(my $file, "<:raw", "message.eml") or die $!;', "my $message = do { local $/; <$file> };",
        f"$client->mail('{call.sender}'{mail}) or die $client->message;",
        f"$client->to('{call.recipient}'{rcpt}) or die $client->message;",
        "$client->data($message) or die $client->message;", "$client->quit;")})


def _perl_version() -> str:
    if shutil.which("perl") is None:
        return ""
    modules = ("Net::SMTP", "Authen::SASL", "IO::Socket::SSL")
    done = subprocess.run(["perl", *(f"-M{name}" for name in modules), "-e", "print $Net::SMTP::VERSION"],
                          capture_output=True, text=True, check=False)
    return done.stdout if done.returncode == 0 else ""


# -- Go ----------------------------------------------------------------------------------------------------------------


def _go(call: Call) -> Example:
    imports = ["log", "net/smtp", "os"]
    address = f'"{call.host}:{call.port}"'
    auth = f'smtp.PlainAuth("", "{call.user}", "{call.password}", "{call.host}")' if call.tls else "nil"
    if call.way in ("in clear", "STARTTLS"):
        body = _lines(
            f'\terr = smtp.SendMail({address}, {auth}, "{call.sender}", []string{{"{call.recipient}"}}, message)',
            "\tcheck(err)")
    else:
        if call.way == "implicit TLS":
            imports.append("crypto/tls")
            dial = f'tls.Dial("tcp", {address}, nil)'
        else:
            imports.append("net")
            dial = f'net.Dial("unix", "{call.socket}")'
        body = _lines(
            f"\tconnection, err := {dial}", "\tcheck(err)",
            f'\tclient, err := smtp.NewClient(connection, "{call.host}")', "\tcheck(err)",
            f"\tcheck(client.Auth({auth}))" if call.tls else "",
            f'\tcheck(client.Mail("{call.sender}"))', f'\tcheck(client.Rcpt("{call.recipient}"))',
            "\twriter, err := client.Data()", "\tcheck(err)", "\t_, err = writer.Write(message)", "\tcheck(err)",
            "\tcheck(writer.Close())", "\tcheck(client.Quit())")
    return Example(("go", "run", "send.go"), {"send.go": _lines(
        "package main", "\n", "import (", *(f'\t"{name}"' for name in sorted(imports)), ")", "\n",
        "func check(err error) {", "\tif err != nil {", "\t\tlog.Fatal(err)", "\t}", "}", "\n",
        "func main() {", '\tmessage, err := os.ReadFile("message.eml")', "\tcheck(err)") + body + "}\n"})


@functools.cache
def _go_version() -> str:
    found = re.search(r"go(\d[\d.]+)", said("go", "version"))
    if found:
        # One of our users' homes would have a cache; what a test's HOME has is gone each time.
        os.environ.setdefault("GOCACHE", os.path.join(tempfile.gettempdir(), "mta-clients-go-cache"))
        os.environ.setdefault("GOFLAGS", "-mod=mod")
    return found[1] if found else ""


# -- Java --------------------------------------------------------------------------------------------------------------


def _java(call: Call) -> Example:
    scheme = "smtps" if call.way == "implicit TLS" else "smtp"
    settings = [("host", call.host), ("port", str(call.port))]
    settings += [("starttls.required", "true")] if call.way == "STARTTLS" else []
    settings += [("auth", "true")] if call.tls else []
    settings += [("ssl.checkserveridentity", "true")] if call.tls else []
    settings += [("auth.mechanisms", call.mechanism)] if call.tls and call.mechanism else []
    settings += [("from", call.sender)]
    settings += [("allow8bitmime", "true")] if call.feature in ("8BITMIME", "SMTPUTF8") else []
    settings += [("dsn.notify", "SUCCESS,FAILURE"), ("dsn.ret", "HDRS")] if call.feature == "DSN" else []
    properties = [f'        settings.put("mail.{scheme}.{name}", "{value}");' for name, value in settings]
    if call.feature == "SMTPUTF8":
        properties.append('        settings.put("mail.mime.allowutf8", "true");')
    login = f'"{call.user}", "{call.password}"' if call.tls else ""
    return Example(("java", "-cp", ":".join(_JAKARTA), "Send.java"), {"Send.java": _lines(
        "import jakarta.mail.*;", "import jakarta.mail.internet.*;", "import java.io.*;", "import java.util.*;", "\n",
        "public class Send {", "    public static void main(String[] args) throws Exception {",
        "        Properties settings = new Properties();", *properties,
        "        Session session = Session.getInstance(settings);",
        '        Message message = new MimeMessage(session, new FileInputStream("message.eml"));',
        f'        try (Transport transport = session.getTransport("{scheme}")) {{',
        f"            transport.connect({login});",
        f'            transport.sendMessage(message, InternetAddress.parse("{call.recipient}"));',
        "        }", "    }", "}")})


def _run_java(call: Call, directory: Path, services: Services) -> None:
    """Java wants its authorities in a store of its own."""
    store = directory / "authorities"
    subprocess.run(["keytool", "-importcert", "-noprompt", "-alias", "one", "-file", call.ca_file, "-keystore",
                    str(store), "-storepass", "changeit"], check=True, capture_output=True)
    os.environ["JDK_JAVA_OPTIONS"] = f"-Djavax.net.ssl.trustStore={store} -Djavax.net.ssl.trustStorePassword=changeit"
    try:
        run(_java(call), directory, call.ca_file)
    finally:
        del os.environ["JDK_JAVA_OPTIONS"]


@functools.cache
def _java_version() -> str:
    if shutil.which("keytool") is None or not all(os.path.exists(path) for path in _JAKARTA):
        return ""
    if "jdk.compiler" not in said("java", "--list-modules"):
        return ""
    jars = sorted(Path(_JAKARTA[0]).parent.glob("jakarta-mail-[0-9]*.jar"))
    return jars[-1].stem.removeprefix("jakarta-mail-") if jars else ""


LIBRARIES: Final = (
    Client("Python smtplib", "Python", _python_version, _smtplib,
           ("in clear", "STARTTLS", "implicit TLS", "Unix socket"), ("PLAIN", "LOGIN"),
           ("8BITMIME", "SMTPUTF8", "DSN")),
    Client("aiosmtplib", "aiosmtplib from PyPI", _aiosmtplib_version, _aiosmtplib,
           ("in clear", "STARTTLS", "implicit TLS", "Unix socket"), ("PLAIN", "LOGIN"),
           ("8BITMIME", "SMTPUTF8", "DSN")),
    Client("Nodemailer", "nodemailer from npm, its directory in MTA_NODE_MODULES", _nodemailer_version, _nodemailer,
           ("in clear", "STARTTLS", "implicit TLS", "Unix socket"), ("PLAIN", "LOGIN"),
           ("8BITMIME", "SMTPUTF8", "DSN")),
    Client("PHPMailer", "Debian's packages php-cli and libphp-phpmailer", _phpmailer_version, _phpmailer,
           ("in clear", "STARTTLS", "implicit TLS", "sendmail"), ("PLAIN", "LOGIN"), ("8BITMIME", "DSN"),
           composes=True),
    Client("Symfony Mailer", "Debian's packages php-cli and php-symfony-mailer", _symfony_version, _symfony,
           ("in clear", "STARTTLS", "implicit TLS", "sendmail"), ("PLAIN", "LOGIN"), ("8BITMIME",), adds=b"\r\n"),
    Client("Ruby Net::SMTP", "Debian's package ruby", _ruby_version, _ruby,
           ("in clear", "STARTTLS", "implicit TLS"), ("PLAIN", "LOGIN")),
    Client("Perl Net::SMTP", "Debian's packages perl, libauthen-sasl-perl and libio-socket-ssl-perl", _perl_version,
           _perl, ("in clear", "STARTTLS", "implicit TLS"), ("PLAIN", "LOGIN"), ("8BITMIME", "DSN")),
    Client("Go net/smtp", "Debian's package golang-go", _go_version, _go,
           ("in clear", "STARTTLS", "implicit TLS", "Unix socket"), ("PLAIN",), ("8BITMIME", "SMTPUTF8")),
    Client("Jakarta Mail", "Debian's packages default-jdk-headless and libjakarta-mail-java", _java_version, _java,
           ("in clear", "STARTTLS", "implicit TLS"), ("PLAIN", "LOGIN"), ("8BITMIME", "SMTPUTF8", "DSN"),
           send=_run_java),
)
