"""Colors and style sheet of the ladder's page; the pictures take their colors from it, so that they are light or dark as the page is."""

from __future__ import annotations

COLORS = (
    ("#7a8391", "#9aa4b2"),
    ("#3a97cf", "#6fb9ea"),
    ("#1f4fa8", "#5b8ff0"),
    ("#86a61e", "#b9d45a"),
    ("#1f7a55", "#4fc08d"),
    ("#d8961a", "#f2bd55"),
    ("#c8432a", "#ff7d5c"),
    ("#b765c4", "#dc9ce8"),
    ("#6d2f86", "#ad6fd6"),
)
"""Of each rung, on light and on dark paper: a family of methods has one hue."""


def style() -> str:
    """The page's style sheet, the rungs' colors included."""
    light, dark = ("".join(f".r{i}{{--c:{pair[side]}}}" for i, pair in enumerate(COLORS)) for side in (0, 1))
    return f"{STYLE}{light}@media(prefers-color-scheme:dark){{{dark}}}"


STYLE = """
:root { --paper: #fff; --ink: #23272e; --faint: #626a75; --grid: #e4e7eb; --card: #f7f8fa; --mark: #fff0c2; }
@media (prefers-color-scheme:dark) {
  :root { --paper: #15181d; --ink: #e6e9ee; --faint: #9aa3b0; --grid: #2b313a; --card: #1c2027; --mark: #4a3d14; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui,sans-serif; }
main { max-width: 1040px; margin: 0 auto; padding: 24px 16px 48px; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: .2em 0; }
h2 { margin: 2em 0 .6em; }
h3 { margin: 0 0 .4em; font-size: 1.15rem; }
.lead { color: var(--faint); font-size: 1.1rem; margin-top: 0; }
figure { margin: 1.2em 0; }
svg { display: block; width: 100%; }
p { margin: .6em 0; }
em { font-style: normal; font-weight: 600; }
small { display: block; color: var(--faint); font-size: .78rem; }
.grid line { stroke: var(--grid); }
.grid text { fill: var(--faint); font-size: 12px; }
.best { stroke: var(--faint); stroke-dasharray: 5 5; }
.curve { fill: none; stroke: var(--c); stroke-width: 2; stroke-linejoin: round; }
.band { fill: var(--c); opacity: .16; }
.beside { fill: none; stroke: var(--faint); stroke-width: 1.5; opacity: .55; }
.dot { display: inline-block; width: .7em; height: .7em; border-radius: 50%; background: var(--c); margin-right: .5em; }
.legend { display: flex; flex-wrap: wrap; gap: .2em 1.2em; margin-top: .6em; font-size: .92rem; }
.caption, .missing, footer { color: var(--faint); font-size: .86rem; }
.caption { margin: .3em 0 0; }
.narrow { display: none; }
table { border-collapse: collapse; width: 100%; margin: 1.4em 0; font-variant-numeric: tabular-nums; }
th, td { padding: .45em .6em; text-align: left; vertical-align: top; border-bottom: 1px solid var(--grid); }
thead th { color: var(--faint); font-weight: 500; font-size: .88rem; }
tbody th { font-weight: 600; }
td { width: 21%; }
.bar { height: 5px; border-radius: 3px; background: var(--c); margin-top: 5px; }
.card { display: grid; grid-template-columns: 1fr 360px; gap: 24px; margin: 16px 0; }
.card { background: var(--card); border-radius: 12px; padding: 20px 22px; }
.card>* { min-width: 0; }
.card figure { margin: 0; }
.formula { font: 1.28rem/1.7 'STIX Two Math','Latin Modern Math',Cambria,Georgia,serif; margin: .3em 0; overflow-wrap: anywhere; }
.formula b { font-weight: inherit; background: var(--mark); border-radius: 4px; padding: .05em .2em; }
.formula sub, .formula sup { font-size: .68em; line-height: 0; }
.measured { color: var(--faint); }
.links { font-size: .86rem; }
code { font-size: .86em; overflow-wrap: anywhere; }
a { color: inherit; text-decoration-color: var(--faint); text-underline-offset: 3px; }
summary { cursor: pointer; font-size: .86rem; color: var(--faint); }
details code { display: block; margin-top: .4em; }
@media (max-width:760px) {
  .card { grid-template-columns: 1fr; padding: 16px 14px; }
  .wide { display: none; }
  .narrow { display: block; }
  th, td { padding: .45em .35em; font-size: .86rem; }
  h1 { font-size: 1.5rem; }
  .formula { font-size: 1.15rem; }
  td { width: auto; }
  th .dot { width: .55em; height: .55em; margin-right: .3em; }
}
"""
