"""Polygons to a web map: one HTML file without a server, a library or the network, with the polygons inside as SVG.

`frame.explore()` of geopandas draws them on a background map; it needs folium and fetches tiles.
"""

import html
import sys
from pathlib import Path
from typing import Any

import geopandas

path = Path(sys.argv[1] if len(sys.argv) > 1 else "demo/anomalies.gpkg")
out = Path(sys.argv[2] if len(sys.argv) > 2 else "map.html")
frame = geopandas.read_file(path, layer="anomalies")
west, south, east, north = frame.total_bounds if len(frame) else (0, 0, 1, 1)
scale = 1000 / max(east - west, north - south)


def drawn(row: Any) -> str:
    """Return a polygon as an SVG path, with what is known of it as a title that shows under the mouse."""
    rings = [ring for part in row.geometry.geoms for ring in (part.exterior, *part.interiors)]
    points = " ".join(
        "M" + "L".join(f"{(x - west) * scale:.1f},{(north - y) * scale:.1f}" for x, y in ring.coords) + "Z"
        for ring in rings
    )
    told = html.escape(f"rank {row['rank']}: {row.class_name}, score {row.score_p95:.3f}, {row.area_m2:.1f} m2")
    return f'<path d="{points}"><title>{told}</title></path>'


paths = "\n".join(drawn(row) for _, row in frame.iterrows())
size = f"-10 -10 {(east - west) * scale + 20:.0f} {(north - south) * scale + 20:.0f}"
style = "svg{width:100%;height:90vh}path{fill:#d33a;stroke:#900;vector-effect:non-scaling-stroke}path:hover{fill:#fc0}"
page = f'<!doctype html><meta charset="utf-8"><title>{html.escape(path.name)}</title><style>{style}</style>'
out.write_text(f'{page}<h1>{len(frame)} anomalies</h1><svg viewBox="{size}">{paths}</svg>\n', encoding="utf-8")
frame.to_crs(4326).to_file(out.with_suffix(".geojson")) if frame.crs else None
print(f"{out}: {len(frame)} polygons")
