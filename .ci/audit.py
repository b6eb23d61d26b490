"""Audit of the pins in constraints.txt: known vulnerabilities where their database can be reached, else dates.

Run by `make audit` with the Python that has pip-audit. A pin that the database does not know is not counted as safe: it
is listed with the date of its release, as the package index tells it, the oldest first.
"""

import json
import re
import subprocess
import sys
import urllib.request
from pathlib import Path

PINS = Path(__file__).parents[1] / "constraints.txt"
INDEX = "https://pypi.org/simple"
SERVICES = ("pypi", "osv")
WAIT_S = 20


def main() -> int:
    """Print what is known of each pin; return 1 if there is a vulnerability."""
    pins = dict(re.findall(r"^([\w.-]+)==([^\s;]+)", PINS.read_text(encoding="utf-8"), re.MULTILINE))
    print(f"{len(pins)} pins of {PINS.name}")
    told = next((told for service in SERVICES if (told := _audited(service))), [])
    if not told:
        print("no database of vulnerabilities can be reached from here; the pins by date of release:")
        for date, name in sorted((_released(name, pins[name]), name) for name in pins):
            print(f"  {date}  {name}=={pins[name]}")
        return 0
    unknown = [one["name"] for one in told if "skip_reason" in one]
    vulnerable = [one for one in told if one.get("vulns")]
    for one in vulnerable:
        for found in one["vulns"]:
            fixed = ", ".join(found["fix_versions"]) or "none"
            print(f"  {one['name']}=={one['version']}: {found['id']} {' '.join(found['aliases'])}, fixed in {fixed}")
    print(f"{len(told) - len(unknown)} were looked up, {len(vulnerable)} of them have known vulnerabilities")
    for name in unknown:
        print(f"  not in the database: {name}")
    return int(bool(vulnerable))


def _audited(service: str) -> list[dict]:
    """Return what pip-audit says of each pin; nothing if it reaches no database, or one that knows none of them."""
    command = [sys.executable, "-m", "pip_audit", "--vulnerability-service", service, "--format", "json"]
    command += ["--no-deps", "--disable-pip", "--progress-spinner", "off", "--timeout", str(WAIT_S), "-r", str(PINS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        told = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        return []
    return told if any("skip_reason" not in one for one in told) else []


def _released(name: str, version: str) -> str:
    """Return the day a version was put on the index, "unknown" if it does not tell."""
    address = f"{INDEX}/{re.sub(r'[-_.]+', '-', name).lower()}/"
    asked = urllib.request.Request(address, headers={"Accept": "application/vnd.pypi.simple.v1+json"})
    try:
        with urllib.request.urlopen(asked, timeout=WAIT_S) as answer:
            files = json.load(answer)["files"]
    except (OSError, ValueError, KeyError):
        return "unknown   "
    start = re.compile(rf"{re.sub(r'[-_.]+', '[-_.]+', name)}-{re.escape(version)}(-|\.tar|\.zip)", re.IGNORECASE)
    days = [one["upload-time"][:10] for one in files if start.match(one["filename"]) and "upload-time" in one]
    return min(days, default="unknown   ")


if __name__ == "__main__":
    sys.exit(main())
