"""The markup of the results page: its style sheet and its Jinja template."""

STYLE = """
:root { color-scheme: light dark; --paper: #fcfcfa; --ink: #1d1d1b; --soft: #63635e; --line: #dcdcd5; --accent: #22668f;
  --met: #1c7045; --missed: #ad2e22; }
@media (prefers-color-scheme: dark) { :root { --paper: #161618; --ink: #e8e8e3; --soft: #a3a39c; --line: #36363c;
  --accent: #7dbbe3; --met: #6fc898; --missed: #f08f84; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 3rem; max-width: 68rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; font-variant-numeric: tabular-nums; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0 0 .75rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 0 0 .5rem; }
h3 { font-size: 1rem; margin: 1.25rem 0 .5rem; }
section, details { margin-top: 2.25rem; }
summary h2 { display: inline; }
p { color: var(--soft); margin: .25rem 0 .75rem; max-width: 42rem; }
dl { display: flex; flex-wrap: wrap; gap: .5rem 2rem; margin: 0; }
dt { color: var(--soft); font-size: .85rem; }
dd { margin: 0; overflow-wrap: anywhere; }
footer dl { gap: .25rem 1.25rem; font-size: .85rem; }
footer dl div { display: flex; gap: .4rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: baseline; padding: .35rem 1.25rem .35rem 0;
  border-bottom: 1px solid var(--line); }
th { font-weight: normal; }
thead th { color: var(--soft); font-size: .85rem; }
.number { text-align: right; white-space: nowrap; }
.unit { color: var(--soft); white-space: nowrap; }
.verdict { white-space: nowrap; } .met { color: var(--met); } .missed { color: var(--missed); font-weight: 600; }
@media (max-width: 30rem) { th, td { padding-right: .7rem; } }
.columns { display: grid; gap: 0 3rem; align-items: start;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); }
.charts { display: grid; gap: 1rem 1.5rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 18rem), 1fr)); }
figure { margin: 0; }
figcaption { font-size: .9rem; } figcaption span { color: var(--soft); }
svg { display: block; width: 100%; max-width: 28rem; height: auto; }
svg text { fill: var(--soft); font: 12px system-ui, sans-serif; }
svg path { fill: none; stroke: var(--accent); stroke-width: 1.75; stroke-linejoin: round; }
svg .axis { stroke: var(--line); stroke-width: 1; }
svg .raw { stroke-opacity: .35; stroke-width: 1; }
svg .level { stroke: var(--soft); stroke-width: 1; stroke-dasharray: 3 4; }
svg .dot { fill: var(--accent); }
.pictures { display: flex; flex-wrap: wrap; gap: .75rem; }
.pictures img { display: block; min-width: 8rem; max-width: 100%; height: auto; }
.pictures .scroll { max-width: 100%; } .pictures .scroll img { max-width: none; }
"""

TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{{ name }}: results</title>
<style>{{ style }}</style>
</head>
<body>
<header>
<h1>{{ name }}</h1>
<dl>
{% for label, value in facts %}
<div><dt>{{ label }}</dt><dd>{{ value | shown }}</dd></div>
{% endfor %}
</dl>
</header>
<main>
{% if targets %}
<section>
<h2>Targets</h2>
<p>{{ targets | selectattr("met") | list | length }} of {{ targets | length }} met.</p>
<div class="scroll" role="region" aria-label="Targets" tabindex="0">
<table>
<thead><tr><th scope="col">Target</th><th scope="col" class="number">Found</th><th scope="col" class="number">Bound</th>
<th scope="col">Verdict</th></tr></thead>
<tbody>
{% for target in targets %}
<tr><th scope="row">{{ target.name }}</th><td class="number">{{ target.found | shown }}</td>
<td class="number">{{ target.bound | shown }}</td>
<td class="verdict {{ "met" if target.met else "missed" }}">{{ "✓ met" if target.met else "✗ missed" }}</td></tr>
{% endfor %}
</tbody>
</table>
</div>
</section>
{% endif %}
{% for title, items in galleries %}
{% set looping = title == "Looping clips" %}
<{{ "details open" if looping else "section" }}>
{% if looping %}<summary><h2>{{ title }}</h2></summary>{% else %}<h2>{{ title }}</h2>{% endif %}

<div class="pictures">
{% for text, address in items %}
{% if looping %}
<img src="{{ address }}" alt="{{ text }}">
{% else %}
<div class="scroll" role="region" aria-label="{{ text }}" tabindex="0"><img src="{{ address }}" alt="{{ text }}"></div>
{% endif %}
{% endfor %}
</div>
</{{ "details" if looping else "section" }}>
{% endfor %}
{% if drift %}
<section>
<h2>Drift over time</h2>
<p>Frames at the frame index t against real frames; the dashed line is the distance at t = 0.</p>
<div class="columns">
{% if drift_chart %}
<figure>{{ drift_chart }}</figure>
{% endif %}
<table>
<thead><tr><th scope="col" class="number">t</th><th scope="col" class="number">{{ distance }}</th>
<th scope="col" class="number">Ratio to t = 0</th></tr></thead>
<tbody>
{% for t, found, ratio in drift %}
<tr><th scope="row" class="number">{{ t | shown }}</th><td class="number">{{ found | shown }}</td>
<td class="number">{{ ratio | shown }}</td></tr>
{% endfor %}
</tbody>
</table>
</div>
</section>
{% endif %}
{% if tables %}
<div class="columns">
{% for title, note, rows in tables %}
{% set units = rows | map(attribute=2) | select | list %}
<section>
<h2>{{ title }}</h2>
{% if note %}
<p>{{ note }}</p>
{% endif %}
<table>
<thead><tr><th scope="col">Measure</th><th scope="col" class="number">Value</th>
{% if units %}<th scope="col">Unit</th>{% endif %}</tr></thead>
<tbody>
{% for label, value, unit in rows %}
<tr><th scope="row">{{ label }}</th><td{% if value is number %} class="number"{% endif %}>{{ value | shown }}</td>
{% if units %}<td class="unit">{{ unit }}</td>{% endif %}</tr>
{% endfor %}
</tbody>
</table>
</section>
{% endfor %}
</div>
{% endif %}
{% if stages %}
<section>
<h2>Training</h2>
{% for stage, charts in stages.items() %}
<h3>{{ stage }}</h3>
<div class="charts">
{% for name, caption, chart in charts %}
<figure><figcaption>{{ name }} <span>{{ caption }}</span></figcaption>{{ chart }}</figure>
{% endfor %}
</div>
{% endfor %}
</section>
{% endif %}
</main>
{% if versions %}
<footer>
<section>
<h2>Made with</h2>
<dl>
{% for label, value in versions.items() %}
<div><dt>{{ label }}</dt><dd>{{ value | shown }}</dd></div>
{% endfor %}
</dl>
</section>
</footer>
{% endif %}
</body>
</html>
"""
