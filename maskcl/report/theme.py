"""Colours of pages and pictures, light and dark, and the page's style sheet.

A picture is drawn in the light colours. In its SVG each of them becomes a CSS variable with that
colour as its fallback, so that a page, which sets the variables, shows the picture in its own.
"""

from __future__ import annotations

INK, MUTED, GRID, PAPER = "#1e293b", "#5b6879", "#e2e8f0", "#ffffff"
SHADES = ("#f1f5f9", "#bfdbfe")
# Cells of heat maps: more or less of this over the paper; in the darkest the second is written.
HEAT, ON_HEAT = "#1d4ed8", "#fffffe"
SERIES = (
    "#2563eb", "#c2410c", "#047857", "#9333ea", "#be123c",
    "#0e7490", "#a16207", "#db2777", "#4d7c0f", "#475569",
)  # fmt: skip
_DARK_SERIES = (
    "#60a5fa", "#fb923c", "#34d399", "#c084fc", "#fb7185",
    "#22d3ee", "#facc15", "#f472b6", "#a3e635", "#94a3b8",
)  # fmt: skip

# Variable -> (light, dark).
COLORS = {
    "ink": (INK, "#e2e8f0"),
    "muted": (MUTED, "#a3b0c2"),
    "line": (GRID, "#334155"),
    "paper": (PAPER, "#172033"),
    "faint": (SHADES[0], "#243047"),
    "pale": (SHADES[1], "#1e4a8a"),
    "heat": (HEAT, "#3b74f0"),
    "on-heat": (ON_HEAT, "#ffffff"),
    "back": ("#f8fafc", "#0d1424"),
    **{f"s{i}": pair for i, pair in enumerate(zip(SERIES, _DARK_SERIES))},
}


def variables(*, dark: bool) -> str:
    """The declarations of all colours."""
    return ";".join(f"--{name}:{pair[dark]}" for name, pair in COLORS.items())


def themed(svg: str) -> str:
    """An SVG whose colours are the page's where it stands in one."""
    for name, (light, _) in COLORS.items():
        if name != "back":
            svg = svg.replace(f": {light}", f": var(--{name},{light})")
    return svg


SCHEMES = (
    f":root{{color-scheme:light dark;{variables(dark=False)}}}\n"
    f"@media(prefers-color-scheme:dark){{:root{{{variables(dark=True)}}}}}\n"
)

STYLE = (
    SCHEMES
    + """*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--back);color:var(--ink);
 font:15px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif;
 overflow-wrap:anywhere}
main{max-width:1120px;margin:0 auto;padding:28px 16px 56px}
h1{font-size:26px;line-height:1.25;margin:0 0 6px;letter-spacing:-.01em}
h2{font-size:17px;margin:0 0 4px}
p{margin:0 0 12px;color:var(--muted)}
a{color:var(--s0)}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(132px,1fr));gap:10px;margin:20px 0}
.card,section{background:var(--paper);border:1px solid var(--line);border-radius:10px}
.card{padding:12px}
.card b{display:block;font-size:19px;line-height:1.3;font-variant-numeric:tabular-nums}
.card span{color:var(--muted);font-size:13px}
section{padding:16px;margin:14px 0;min-width:0}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,440px),1fr));gap:14px;
 margin:14px 0}
.pair section{margin:0}
.scroll{overflow-x:auto;max-width:100%}
.scroll:focus-visible,summary:focus-visible{outline:2px solid var(--s0);outline-offset:2px}
svg{display:block;margin:6px auto 0;height:auto}
svg text{font-family:inherit!important}
svg [tabindex],svg use,svg rect,svg path{outline:none}
table{border-collapse:collapse;font-size:14px;font-variant-numeric:tabular-nums}
th,td{text-align:left;padding:5px 14px 5px 0;border-bottom:1px solid var(--line);
 vertical-align:top}
th{font-weight:600}
td.n,th.n{text-align:right;white-space:nowrap}
.scroll th,.scroll td{overflow-wrap:normal;white-space:nowrap}
td code{overflow-wrap:anywhere}
.muted{color:var(--muted)}
.note{border-left:4px solid var(--s1)}
dl{display:grid;grid-template-columns:auto 1fr;gap:4px 12px;margin:0;font-size:14px}
dt{font-weight:600}
dd{margin:0;color:var(--muted)}
summary{cursor:pointer;font-weight:600;font-size:17px}
code{font-family:ui-monospace,SFMono-Regular,Menlo,"DejaVu Sans Mono",monospace;font-size:13px}
@media print{body{background:none}main{max-width:none;padding:0}
 .card,section{break-inside:avoid}.scroll{overflow:visible}}
"""
)
