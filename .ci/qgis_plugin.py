"""Pack the QGIS plugin as the zip file that QGIS installs: `make qgis-plugin`. The same files give the same bytes."""

import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
TIME = (2000, 1, 1, 0, 0, 0)


def pack(out: Path) -> None:
    """Write the plugin's files, and the licence, in the folder `geood_qgis` of a zip file."""
    plugin = ROOT / "geood_qgis"
    files = [path for path in sorted(plugin.iterdir()) if path.suffix in (".py", ".txt", ".svg")]
    out.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in (*files, ROOT / "LICENSE"):
            member = zipfile.ZipInfo(f"geood_qgis/{path.name}", TIME)
            member.compress_type, member.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            archive.writestr(member, path.read_bytes())
    print(f"{out}: {len(files) + 1} files; in QGIS: Plugins > Manage and Install Plugins > Install from ZIP")


if __name__ == "__main__":
    pack(Path(sys.argv[1]))
