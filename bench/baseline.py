#!/usr/bin/python3
"""Makes and reads patch files in the plainest way. It is the yardstick of the benchmarks, not a tool.

baseline.py build ID RELEASE KEY OUT RPM...   make OUT/ID.patch, signed with the private key KEY
baseline.py read FILE PUBLIC DIR              verify FILE with the public key and unpack its packages into DIR
baseline.py upload FILE PUBLIC DIR            send FILE over HTTP to a server that does what read does; print the seconds
baseline.py measure COMMAND...                run any command; print its seconds and its peak memory in bytes

The format is that of docs/format.md. RSA is left to openssl, which costs milliseconds.
"""

import gzip
import hashlib
import http.client
import http.server
import os
import resource
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import xml.etree.ElementTree as ET
from xml.dom import minidom

CHUNK = 1 << 20
ALL_ONES = (1 << 128) - 1


def chunks(path):
    with open(path, "rb") as f:
        while block := f.read(CHUNK):
            yield block


def digests(paths):
    """The checksum of the parts, and the SHA-256 of all of them together."""
    value, whole = ALL_ONES, hashlib.sha256()
    for path in paths:
        one = hashlib.md5()
        for block in chunks(path):
            one.update(block)
        value ^= int(one.hexdigest(), 16)
    for path in paths:
        for block in chunks(path):
            whole.update(block)
    return value, whole.digest()


def openssl(digest, *args):
    """Signs or verifies a digest that was computed here."""
    with tempfile.NamedTemporaryFile() as f:
        f.write(digest)
        f.flush()
        options = ["-pkeyopt", "digest:sha256", "-pkeyopt", "rsa_padding_mode:pss", "-pkeyopt", "rsa_pss_saltlen:32"]
        subprocess.run(["openssl", "pkeyutl", *args, "-in", f.name, *options], check=True, stdout=subprocess.DEVNULL)


def metadata(patch_id, release, rpms):
    root = ET.Element("patch")
    for name, text in (("id", patch_id), ("sw_version", release), ("summary", ""), ("description", ""),
                       ("install_instructions", ""), ("warnings", ""), ("status", "DEV"), ("unremovable", ""),
                       ("reboot_required", "N"), ("apply_active_release_only", "")):
        ET.SubElement(root, name).text = text
    contents = ET.SubElement(root, "contents")
    for rpm in sorted(rpms):
        ET.SubElement(contents, "rpm").text = os.path.basename(rpm)
    ET.SubElement(root, "requires")
    ET.SubElement(root, "semantics")
    return minidom.parseString(ET.tostring(root, "utf-8")).toprettyxml(indent="  ")


def pack(path, files):
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for f in files:
            tar.add(f, arcname=os.path.basename(f))


def build(patch_id, release, key, out, *rpms):
    with tempfile.TemporaryDirectory() as work:
        at = lambda name: os.path.join(work, name)
        copies = [shutil.copy(rpm, work) for rpm in rpms]  # they would be signed here
        with open(at("metadata.xml"), "w", encoding="utf-8") as f:
            f.write(metadata(patch_id, release, rpms))
        pack(at("metadata.tar"), [at("metadata.xml")])
        pack(at("software.tar"), copies)
        parts = [at("metadata.tar"), at("software.tar")]
        value, digest = digests(parts)
        with open(at("signature"), "w", encoding="ascii") as f:
            f.write("%x" % value)
        openssl(digest, "-sign", "-inkey", key, "-out", at("signature.v2"))
        name = patch_id + ".patch"
        with open(os.path.join(out, name), "wb") as f, gzip.GzipFile(name, "wb", 9, f) as z:
            with tarfile.open(fileobj=z, mode="w", format=tarfile.GNU_FORMAT) as tar:
                for part in parts + [at("signature"), at("signature.v2")]:
                    tar.add(part, arcname=os.path.basename(part))


def read(path, public, out):
    with tempfile.TemporaryDirectory() as work:
        at = lambda name: os.path.join(work, name)
        with tarfile.open(path, "r:gz") as tar:
            for name in ("metadata.tar", "software.tar", "signature", "signature.v2"):
                tar.extract(name, work)
        value, digest = digests([at("metadata.tar"), at("software.tar")])
        with open(at("signature"), encoding="ascii") as f:
            if int(f.read(), 16) != value:
                sys.exit("the checksum does not fit")
        openssl(digest, "-verify", "-pubin", "-inkey", public, "-sigfile", at("signature.v2"))
        with tarfile.open(at("metadata.tar")) as tar:
            tar.extract("metadata.xml", work)
        names = [e.text for e in ET.parse(at("metadata.xml")).iterfind("contents/rpm")]
        with tarfile.open(at("software.tar")) as tar:
            tar.extractall(out)
        for name in names:
            os.stat(os.path.join(out, name))


class Receiver(http.server.BaseHTTPRequestHandler):
    """Takes a patch as the body of a POST, buffers it as a file, reads it and keeps its packages."""

    public = out = ""

    def do_POST(self):
        with tempfile.TemporaryDirectory() as scratch:
            buffer, left = os.path.join(scratch, "upload.patch"), int(self.headers["Content-Length"])
            with open(buffer, "wb") as f:
                while left:
                    block = self.rfile.read(min(left, CHUNK))
                    f.write(block)
                    left -= len(block)
            read(buffer, self.public, self.out)
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_):
        pass


def upload(path, public, out):
    Receiver.public, Receiver.out = public, out
    server = http.server.HTTPServer(("127.0.0.1", 0), Receiver)
    child = os.fork()
    if child == 0:
        server.handle_request()
        os._exit(0)
    start = time.monotonic()
    client = http.client.HTTPConnection(*server.server_address)
    with open(path, "rb") as f:
        client.request("POST", "/", f, {"Content-Length": str(os.path.getsize(path))})
    if client.getresponse().status != 204:
        sys.exit("the upload failed")
    print(time.monotonic() - start)
    os.waitpid(child, 0)


def measure(*command):
    start = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    print(time.monotonic() - start, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)


if __name__ == "__main__":
    {"build": build, "read": read, "upload": upload, "measure": measure}[sys.argv[1]](*sys.argv[2:])
